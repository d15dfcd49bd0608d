"""Long models: no recursion as deep as the model, no work that grows with its square."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx_fold import batch_norm, parse, random
from work import bytecodes

import bnfold
from bnfold.planning.plan import Plan

LENGTH = 3000
SMALL, LARGE = 90, 720
GROWTH = 10
"""Eight times the length is eight times the work, and a little for what grows with its logarithm; a square is 64."""

NEUTRAL = {"bn_g": np.ones(4), "bn_b": np.zeros(4), "bn_m": np.zeros(4), "bn_v": np.ones(4)}


def folder(lines: list[str], **constants: np.ndarray) -> Callable[[], Plan]:
    """Folds a model that goes from `v0` to the last value of `lines`."""
    last = lines[-1].split("=")[0].split("]")[-1].strip()
    text = "agraph (double[N,4,2,2] v0) => (double[N,4,2,2] LAST) {\n".replace("LAST", last) + "\n".join(lines) + "\n}"
    model = parse(text, **{**batch_norm(4), "w": random(4, 4, 1, 1), **constants})
    return lambda: bnfold.fold(model).plan


def grows_linearly(model: Callable[[int], Callable[[], Plan]]) -> Plan:
    """Folds a model of the full length; eight times the length may not be more than ten times the work."""
    model(SMALL)()  # what is computed once and kept
    small = bytecodes(model(SMALL))
    bytecodes(model(LARGE), limit=GROWTH * small)
    return model(LENGTH)()


def test_a_residual_chain() -> None:
    def model(length: int) -> Callable[[], Plan]:
        lines = []
        for index in range(length // 3):
            lines += [
                f"c{index} = Conv (v{index}, w)",
                f"b{index} = BatchNormalization (c{index}, bn_g, bn_b, bn_m, bn_v)",
                f"v{index + 1} = Add (v{index}, b{index})",
            ]
        return folder(lines)

    assert grows_linearly(model).batch_norms_folded == LENGTH // 3


def test_a_chain_of_nodes_that_all_have_one_name() -> None:
    def model(length: int) -> Callable[[], Plan]:
        lines = []
        for index in range(length // 2):
            lines += [
                f"[n] c{index} = Conv (v{index}, w)",
                f"[n] v{index + 1} = BatchNormalization (c{index}, bn_g, bn_b, bn_m, bn_v)",
            ]
        return folder(lines)

    assert grows_linearly(model).batch_norms_folded == LENGTH // 2


def test_a_preactivation_chain_that_stays() -> None:
    def model(length: int) -> Callable[[], Plan]:
        lines = []
        for index in range(length // 3):
            lines += [
                f"b{index} = BatchNormalization (v{index}, bn_g, bn_b, bn_m, bn_v)",
                f"r{index} = Relu (b{index})",
                f"v{index + 1} = Add (v{index}, r{index})",
            ]
        return folder(lines)

    assert grows_linearly(model).batch_norms_left == LENGTH // 3


@pytest.mark.parametrize("place", ["behind", "before"])
def test_a_chain_of_identities(place: str) -> None:
    first, last = "c = Conv (v0, w)", "y = BatchNormalization (i0, bn_g, bn_b, bn_m, bn_v)"
    if place == "before":
        first, last = "c = BatchNormalization (v0, bn_g, bn_b, bn_m, bn_v)", "y = Conv (i0, w)"

    def model(length: int) -> Callable[[], Plan]:
        chain = [f"i{index} = Identity (i{index + 1})" for index in range(length)]
        chain[-1] = f"i{length - 1} = Identity (c)"
        return folder([first, *reversed(chain), last])

    assert grows_linearly(model).batch_norms_folded == 1


def test_a_chain_of_bns_behind_a_conv() -> None:
    def model(length: int) -> Callable[[], Plan]:
        norms = [f"v{index + 2} = BatchNormalization (v{index + 1}, bn_g, bn_b, bn_m, bn_v)" for index in range(length)]
        return folder(["v1 = Conv (v0, w)", *norms], **NEUTRAL)

    assert grows_linearly(model).batch_norms_folded == LENGTH


def test_a_chain_of_bns_that_stays() -> None:
    def model(length: int) -> Callable[[], Plan]:
        norms = [f"v{index + 1} = BatchNormalization (v{index}, bn_g, bn_b, bn_m, bn_v)" for index in range(length)]
        return folder([*norms, f"y = Relu (v{length})"], **NEUTRAL)

    assert grows_linearly(model).batch_norms_left == LENGTH


def chain_of_constants(length: int, width: int) -> Callable[[], Plan]:
    """The weight of a conv is the first rows of a sum of constants."""
    lines = [f"w{index + 1} = Add (w{index}, w0)" for index in range(length)]
    lines.append(f"s = Slice (w{length}, zero, four, zero)")
    lines += ["c = Conv (v0, s)", "y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"]
    constants = {"w0": random(width, 4, 1, 1), "zero": np.array([0]), "four": np.array([4])}
    return folder(lines, **constants)


def test_a_chain_of_constants() -> None:
    assert grows_linearly(lambda length: chain_of_constants(length, width=4)).batch_norms_folded == 1


def test_a_chain_of_large_constants() -> None:
    assert chain_of_constants(60, width=70_000)().batch_norms_folded == 1


def tower(height: int, width: int) -> Callable[[], Plan]:
    """Each constant reads the one before twice: a walk that forgets where it was takes 2^height steps."""
    lines = [f"w{index + 1} = Mul (w{index}, w{index})" for index in range(height)]
    lines += [f"s = Slice (w{height}, zero, four)", "c = Conv (v0, s)"]
    lines.append("y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)")
    return folder(lines, w0=np.ones((width, 4, 1, 1)), zero=np.array([0]), four=np.array([4]))


@pytest.mark.parametrize("width", [4, 20_000])
def test_a_tower_of_shared_constants(width: int) -> None:
    low, high = (5, 20) if width > 4 else (10, 40)
    tower(low, width)()
    small = bytecodes(tower(low, width))
    bytecodes(tower(high, width), limit=GROWTH * small)
    assert tower(high, width)().batch_norms_folded == 1
