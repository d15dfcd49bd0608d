"""Long models: no recursion as deep as the model, no time that grows with its square."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import pytest
from onnx_fold import batch_norm, parse, random

import bnfold
from bnfold.plan import Plan

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="needs a timer signal")

LENGTH = 3000
BUDGET_S = 5.0
"""Some ten times what a linear fold of such a model takes, and a fraction of what a quadratic one would."""

NEUTRAL = {"bn_g": np.ones(4), "bn_b": np.zeros(4), "bn_m": np.zeros(4), "bn_v": np.ones(4)}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Fails what takes more time of the processor, instead of hanging on it."""

    def ring(_: int, __: FrameType | None) -> None:
        message = f"no result after {seconds} s"
        raise TimeoutError(message)

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def folded(lines: list[str], **constants: np.ndarray) -> Plan:
    """Folds a model that goes from `v0` to the last value of `lines`; no slower than the budget allows."""
    last = lines[-1].split("=")[0].split("]")[-1].strip()
    text = "agraph (double[N,4,2,2] v0) => (double[N,4,2,2] LAST) {\n".replace("LAST", last) + "\n".join(lines) + "\n}"
    model = parse(text, **{**batch_norm(4), "w": random(4, 4, 1, 1), **constants})
    with limited(BUDGET_S):
        return bnfold.fold(model).plan


def test_a_residual_chain() -> None:
    lines = []
    for index in range(LENGTH // 3):
        lines += [
            f"c{index} = Conv (v{index}, w)",
            f"b{index} = BatchNormalization (c{index}, bn_g, bn_b, bn_m, bn_v)",
            f"v{index + 1} = Add (v{index}, b{index})",
        ]
    assert folded(lines).batch_norms_folded == LENGTH // 3


def test_a_chain_of_nodes_that_all_have_one_name() -> None:
    lines = []
    for index in range(LENGTH // 2):
        lines += [
            f"[n] c{index} = Conv (v{index}, w)",
            f"[n] v{index + 1} = BatchNormalization (c{index}, bn_g, bn_b, bn_m, bn_v)",
        ]
    assert folded(lines).batch_norms_folded == LENGTH // 2


def test_a_preactivation_chain_that_stays() -> None:
    lines = []
    for index in range(LENGTH // 3):
        lines += [
            f"b{index} = BatchNormalization (v{index}, bn_g, bn_b, bn_m, bn_v)",
            f"r{index} = Relu (b{index})",
            f"v{index + 1} = Add (v{index}, r{index})",
        ]
    assert folded(lines).batch_norms_left == LENGTH // 3


@pytest.mark.parametrize("place", ["behind", "before"])
def test_a_chain_of_identities(place: str) -> None:
    first, last = "c = Conv (v0, w)", "y = BatchNormalization (i0, bn_g, bn_b, bn_m, bn_v)"
    if place == "before":
        first, last = "c = BatchNormalization (v0, bn_g, bn_b, bn_m, bn_v)", "y = Conv (i0, w)"
    chain = [f"i{index} = Identity (i{index + 1})" for index in range(LENGTH)]
    chain[-1] = f"i{LENGTH - 1} = Identity (c)"
    assert folded([first, *reversed(chain), last]).batch_norms_folded == 1


def test_a_chain_of_bns_behind_a_conv() -> None:
    lines = [f"v{index + 2} = BatchNormalization (v{index + 1}, bn_g, bn_b, bn_m, bn_v)" for index in range(LENGTH)]
    assert folded(["v1 = Conv (v0, w)", *lines], **NEUTRAL).batch_norms_folded == LENGTH


def test_a_chain_of_bns_that_stays() -> None:
    lines = [f"v{index + 1} = BatchNormalization (v{index}, bn_g, bn_b, bn_m, bn_v)" for index in range(LENGTH)]
    assert folded([*lines, "y = Relu (v3000)"], **NEUTRAL).batch_norms_left == LENGTH


@pytest.mark.parametrize("large", [False, True])
def test_a_chain_of_constants(large: bool) -> None:
    lines = [f"w{index + 1} = Add (w{index}, w0)" for index in range(60 if large else LENGTH)]
    width = 70_000 if large else 4
    lines.append(f"s = Slice (w{len(lines)}, zero, four, one)")
    lines += ["c = Conv (v0, s)", "y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"]
    constants = {"w0": random(width, 4, 1, 1), "zero": np.array([0]), "four": np.array([4]), "one": np.array([0])}
    assert folded(lines, **constants).batch_norms_folded == 1


def test_a_tower_of_shared_constants() -> None:
    """Each constant reads the one before twice: a walk that forgets where it was takes 2^40 steps."""
    lines = [f"w{index + 1} = Mul (w{index}, w{index})" for index in range(40)]
    lines += ["c = Conv (v0, w40)", "y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"]
    assert folded(lines, w0=np.ones((4, 4, 1, 1))).batch_norms_folded == 1


def test_a_tower_of_large_shared_constants() -> None:
    lines = [f"w{index + 1} = Mul (w{index}, w{index})" for index in range(20)]
    lines += ["s = Slice (w20, zero, four)", "c = Conv (v0, s)", "y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"]
    constants = {"w0": np.ones((20_000, 4, 1, 1)), "zero": np.array([0]), "four": np.array([4])}
    assert folded(lines, **constants).batch_norms_folded == 1
