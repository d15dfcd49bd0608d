"""The model's own rounding noise: its outputs under parameters moved by −1, 0 or +1 unit in the last place.

Any exact rewriting of a model moves its outputs by rounding errors, and how far those travel is a property of
the model: 1e-7 in a shallow network, 1e-2 in a deep one with random weights. So no fixed tolerance can tell a
correct fold from a wrong one, but the distance that the original itself moves under the smallest possible
change of its parameters can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from bnfold.verification.devices import Device
from bnfold.verification.metrics import is_float
from bnfold.verification.parameters import OpenModel
from bnfold.verification.runtimes import Array, Session

DRAWS = 4
"""Perturbed copies that are run for every verification."""

MORE_DRAWS = 12
"""Further copies, where the first ones leave a verdict close."""

_CHUNK = 1 << 18  # elements: what the temporaries take stays in the cache
_STREAM = 0x756C70  # keeps the draws apart from the streams of the inputs
_INTEGER: dict[int, type[np.signedinteger]] = {2: np.int16, 4: np.int32, 8: np.int64}
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000}


def moved_by_one_ulp(array: Array, rng: np.random.Generator) -> Array:
    """A copy with each element moved by −1, 0 or +1 unit in the last place, with probability ¼, ½, ¼.

    Zeros stay: they are exact in every format, and so a variance never becomes negative. NaN and Inf stay,
    and so does the largest finite number, whose neighbour is Inf.

    Args:
        array: float16, bfloat16, float32 or float64, any shape.
        rng: Source of the draws.
    """
    moved = np.array(array, order="C", copy=True)
    infinity = _INFINITY[moved.dtype.name]
    bits = moved.reshape(-1).view(_INTEGER[moved.dtype.itemsize])
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        steps = _random_steps(chunk.size, rng)
        magnitude = chunk & np.iinfo(chunk.dtype).max
        # Numbers of one sign are ordered like their bits: the neighbours of x are those of its bit pattern.
        movable = (magnitude != 0) & (magnitude < infinity - 1)
        chunk += steps if movable.all() else steps * movable
    return moved


def _random_steps(size: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    """−1, 0, 0, +1 with equal probability: the sum of two random bits, less one."""
    bits = np.unpackbits(np.frombuffer(rng.bytes((size + 3) // 4), np.uint8)).view(np.int8)
    return (bits[0::2] + bits[1::2] - np.int8(1))[:size]


@dataclass(frozen=True, slots=True)
class Shift:
    """How one output moved in one draw, on one sample.

    Attributes:
        norm: ‖perturbed − original‖ in float64 over what is finite in both; 0 where there are no numbers.
        changed: What is discrete came out differently: a shape, an integer, the place of a NaN.
    """

    norm: float
    changed: bool


def perturbed_sessions(opened: OpenModel, device: Device, seed: int, draws: range) -> Iterator[Session]:
    """One session after another with parameters moved at random; let go of each before asking for the next.

    Raises:
        DeviceError: A session does not run on `device`.
        RuntimeFailure: The runtime refuses it.
    """
    for draw in draws:
        rng = np.random.default_rng([seed, draw, _STREAM])
        injected = {}
        for tensor in opened.tensors:
            value = tensor.read()
            if tensor.movable:
                value = moved_by_one_ulp(value, rng)
            if tensor.place is None:
                injected[tensor.name] = value
            else:
                tensor.place.CopyFrom(numpy_helper.from_array(value, tensor.place.name))
        yield Session(opened.proto.SerializeToString(), device, injected)


def shift_between(original: object, perturbed: object) -> Shift:
    """How far an output of the perturbed model is from the original's."""
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
