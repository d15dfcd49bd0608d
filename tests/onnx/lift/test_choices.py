"""What takes each of its elements from somewhere else: of one of several values, or at another place of one."""

import numpy as np
import pytest
from onnx_fold import batch_norm, fold, parse, random

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"
POSITIVE = {**batch_norm(4), "bn_g": np.abs(batch_norm(4)["bn_g"])}
OF_ANY_SIGN = {**POSITIVE, "bn_g": POSITIVE["bn_g"] * [1, -1, 1, 1]}
CONSTANTS = {
    "w": random(4, 3, 1, 1),
    "w8": random(8, 3, 1, 1),
    "v": random(4, 3, 1, 1, seed=1),
    "v1": random(1, 3, 1, 1, seed=1),
    "u": random(5, 4, 1, 1),
    "t": random(4, 1, 1),
    "one": np.array(1.0),
    "rows": np.zeros((3, 4, 2, 6), np.int64),
    "channels": np.zeros((3, 2, 6, 6), np.int64),
    "all_channels": np.zeros((3, 4, 6, 6), np.int64),
    "one_number": np.array([[0], [2], [2]]),
    "chosen": np.array([True, False, True]),
    "lengths": np.array([6, 3, 1, 2]),
}


def folded(body: str, norm: dict[str, np.ndarray], results: str = "double[N,C,P,Q] y") -> object:
    text = f"agraph (double[3,3,6,6] x, double[3,3,6,6] z, bool[3,1,6,6] g) => ({results}) {{ {body} }}"
    words = {*text.replace(",", " ").replace("(", " ").replace(")", " ").split()}
    used = {name: array for name, array in {**CONSTANTS, **norm}.items() if name in words}
    return fold(parse(text, **used), exactly=True, leftover="keep")


CHOICES = {
    "the larger": ("a = Conv (x, w) b = Conv (z, v) m = Max (a, b)", POSITIVE),
    "the larger half": ("c = Conv (x, w8) p, q = Split <axis=1> (c) m = Max (p, q)", POSITIVE),
    "the smallest of three": ("a = Conv (x, w) b = Conv (z, v) c = Conv (z, w) m = Min (a, b, c)", POSITIVE),
    "by a condition": ("a = Conv (x, w) b = Conv (z, v) m = Where (g, a, b)", OF_ANY_SIGN),
    "elements of rows": ("c = Conv (x, w) m = GatherElements <axis=2> (c, rows)", OF_ANY_SIGN),
    "items": ("c = Conv (x, w) m = GatherND (c, one_number)", OF_ANY_SIGN),
    "items that are kept": ("c = Conv (x, w) m = Compress <axis=0> (c, chosen)", OF_ANY_SIGN),
    "items in another order": (
        "c = Conv (x, w) e = Transpose <perm=[2,1,0,3]> (c)"
        " r = ReverseSequence <time_axis=0, batch_axis=1> (e, lengths) m = Transpose <perm=[2,1,0,3]> (r)",
        OF_ANY_SIGN,
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_affine_goes_to_all_that_may_be_taken(name: str) -> None:
    body, norm = CHOICES[name]
    result = folded(f"{body} n = {NORM % 'm'} y = Sigmoid (n)", norm)
    assert result.codes == []
    assert result.count("BatchNormalization") == 0


STAYS = {
    "the larger, turned round": ("a = Conv (x, w) b = Conv (z, v) m = Max (a, b)", OF_ANY_SIGN, "negative_scale"),
    "a number": ("a = Conv (x, w) m = Max (a, one)", POSITIVE, "no_rule"),
    "a constant": ("a = Conv (x, w) m = Where (g, a, t)", POSITIVE, "no_rule"),
    "one of them broadcast": ("a = Conv (x, w) b = Conv (z, v1) m = Where (g, a, b)", POSITIVE, "broadcast"),
    "one with another reader": ("a = Conv (x, w) b = Sigmoid (a) m = Max (a, b)", POSITIVE, "other_consumers"),
    "elements of channels": (
        "c = Conv (x, w) d = GatherElements <axis=1> (c, channels) m = Concat <axis=1> (d, d)",
        OF_ANY_SIGN,
        "other_consumers",
    ),
    "elements of channels, once": ("c = Conv (x, w) m = GatherElements <axis=1> (c, all_channels)", POSITIVE, "varies"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_not_all_can_take_stays(name: str) -> None:
    body, norm, code = STAYS[name]
    assert folded(f"{body} n = {NORM % 'm'} y = Sigmoid (n)", norm).codes == [code]


def test_forward_all_carry_the_same() -> None:
    norms = {**POSITIVE, **batch_norm(4, "other")}
    body = f"a = Conv (x, w) s = Sigmoid (a) b = {NORM % 's'} c = {NORM % 's'} m = Where (g, b, c) y = Conv (m, u)"
    assert folded(body, norms).codes == []
    other = body.replace("c = BatchNormalization (s, bn_g", "c = BatchNormalization (s, other_g")
    assert len(folded(other, norms).codes) == 2
