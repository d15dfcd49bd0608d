"""Transposed convolutions of one value that become one: whichever stays has the window and the groups of all."""

import numpy as np
import pytest
from onnx_fold import batch_norm, fold, parse, random

from bnfold.reasons import StopCode

IMAGE = "double[N, 4, H, W]"


def folded(body: str, **weights: np.ndarray):
    text = f"g ({IMAGE} x, double[1, 4, 1, 1] z) => (double[A, B, C, D] y) {{ {body} }}"
    feeds = {"x": random(2, 4, 6, 5), "z": random(1, 4, 1, 1)}
    return fold(parse(text, **weights), feeds=feeds, merge=True)


PAIRS = {
    "a smaller kernel": ("", (4, 4, 1, 1), "<pads = [1, 1, 1, 1]>", (4, 4, 3, 3)),
    "other groups": ("<group = 4, pads = [1, 1, 1, 1]>", (4, 1, 3, 3), "<pads = [1, 1, 1, 1]>", (4, 4, 3, 3)),
    "another dilation": (
        "<pads = [1, 1, 1, 1], dilations = [1, 1]>",
        (4, 4, 3, 3),
        "<pads = [2, 2, 2, 2], dilations = [1, 1]>",
        (4, 4, 5, 5),
    ),
    "an output padding": (
        "<strides = [2, 2], output_padding = [1, 1]>",
        (4, 4, 1, 1),
        "<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>",
        (4, 4, 3, 3),
    ),
    "more at the end than is padded": (
        "<strides = [3, 3], output_padding = [2, 2]>",
        (4, 4, 1, 1),
        "<strides = [3, 3], pads = [1, 0, 0, 0], output_padding = [1, 1]>",
        (4, 4, 3, 2),
    ),
    "one axis each": ("<pads = [1, 0, 1, 0]>", (4, 4, 3, 1), "<pads = [1, 1, 1, 1]>", (4, 4, 3, 3)),
    "valid by name": ('<auto_pad = "VALID">', (4, 4, 3, 3), "<group = 2>", (4, 2, 3, 3)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_the_one_that_stays_is_made_for_all(name: str, swapped: bool, held: bool) -> None:
    """Held is the other, so that what stays is not the one that need not change: z would have to change its sign."""
    one, one_shape, two, two_shape = PAIRS[name]
    if swapped:
        one, one_shape, two, two_shape = two, two_shape, one, one_shape
    maps = f"p = ConvTranspose {one} (x, w) q = ConvTranspose {two} (x, v, c)"
    ends = "r = Relu (z) d = Sub (r, p) u = Sub (q, d)" if held else "u = Add (q, p)"
    body = f"{maps} {ends} y = BatchNormalization (u, bn_g, bn_b, bn_m, bn_v)"
    result = folded(body, w=random(*one_shape), v=random(*two_shape, seed=1), c=random(4), **batch_norm(4))
    assert len(result.plan.merges) == 1
    assert result.count("ConvTranspose") == 1


def test_a_shift_does_not_go_into_what_has_become_a_larger_kernel() -> None:
    """A transposed conv of one tap sums the whole kernel at each output; with three taps it does not."""
    body = (
        "n = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v) p = ConvTranspose <pads = [1, 1, 1, 1]> (n, w)"
        " q = ConvTranspose (n, v) r = Relu (z) d = Sub (r, p) y = Sub (q, d)"
    )
    result = folded(body, w=random(4, 4, 3, 3), v=random(4, 4, 1, 1), **batch_norm(4))
    assert (result.count("ConvTranspose"), result.codes) == (1, [StopCode.PADDED_SHIFT])
