"""The model's own rounding noise: its outputs under parameters moved by −1, 0 or +1 unit in the last place.

Any exact rewriting of a model moves its outputs by rounding errors, and how far those travel is a property of
the model: 1e-7 in a shallow network, 1e-2 in a deep one with random weights. So no fixed tolerance can tell a
correct fold from a wrong one, but the distance that the original itself moves under the smallest possible
change of its parameters can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnfold.input_spec import Array
from bnfold.verification.judging.metrics import is_float

DRAWS = 4
"""Perturbed copies that are run for every verification."""

MORE_DRAWS = 12
"""Further copies, where the first ones leave a verdict close."""

_CHUNK = 1 << 18  # elements: what the temporaries take stays in the cache
STREAM = 0x756C70  # keeps the draws apart from the streams of the inputs
_INTEGER: dict[int, type[np.signedinteger]] = {2: np.int16, 4: np.int32, 8: np.int64}
_STEPS = np.array([-1, 0, 0, 1], np.int8)
_FOUR_STEPS = np.stack([_STEPS[np.arange(256) >> shift & 3] for shift in (0, 2, 4, 6)], axis=-1).view(np.int32)[:, 0]
"""The four steps that a byte stands for, side by side."""
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000}


def moved_by_one_ulp(array: Array, rng: np.random.Generator) -> Array:
    """A copy with each element moved by −1, 0 or +1 unit in the last place, with probability ¼, ½, ¼.

    Zeros stay: they are exact in every format, and so a variance never becomes negative. NaN and Inf stay,
    and so does the largest finite number, whose neighbour is Inf.

    Args:
        array: float16, bfloat16, float32 or float64, any shape.
        rng: Source of the draws.
    """
    stored = np.ascontiguousarray(array).reshape(-1)
    infinity = _INFINITY[stored.dtype.name]
    old = stored.view(_INTEGER[stored.dtype.itemsize])
    bits = np.empty_like(old)
    for start in range(0, bits.size, _CHUNK):
        part = slice(start, min(start + _CHUNK, bits.size))
        chunk = old[part]
        steps = _random_steps(chunk.size, rng)
        magnitude = chunk & np.iinfo(chunk.dtype).max
        # Numbers of one sign are ordered like their bits: the neighbours of x are those of its bit pattern.
        if not 0 < magnitude.min() <= magnitude.max() < infinity - 1:
            steps = steps * ((magnitude != 0) & (magnitude < infinity - 1))
        np.add(chunk, steps, out=bits[part])
    return bits.view(stored.dtype).reshape(np.shape(array))


def _random_steps(size: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    """−1, 0, 0, +1 with equal probability: two random bits each, four to a byte."""
    return _FOUR_STEPS[np.frombuffer(rng.bytes((size + 3) // 4), np.uint8)].view(np.int8)[:size]


@dataclass(frozen=True, slots=True)
class Shift:
    """How one output moved in one draw, on one sample.

    Attributes:
        norm: ‖perturbed − original‖ in float64 over what is finite in both; 0 where there are no numbers.
        changed: What is discrete came out differently: a shape, an integer, the place of a NaN.
    """

    norm: float
    changed: bool


def shift_between(original: object, perturbed: object) -> Shift:
    """How far an output of the perturbed model is from the original's; None is one that is not there."""
    if (original is None) != (perturbed is None):
        return Shift(0.0, changed=True)
    if not isinstance(original, np.ndarray) or not isinstance(perturbed, np.ndarray):
        return Shift(0.0, changed=False)
    if original.shape != perturbed.shape or original.dtype != perturbed.dtype:
        return Shift(0.0, changed=True)
    if not is_float(original.dtype):
        return Shift(0.0, changed=not np.array_equal(original, perturbed))
    first, second = original.astype(np.float64), perturbed.astype(np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    changed = not np.array_equal(first[~finite], second[~finite], equal_nan=True)
    return Shift(float(np.linalg.norm(second[finite] - first[finite])), changed)
