"""Runs of an ONNX original under rounding noise; see `bnfold.verification.judging.noise`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from onnx import numpy_helper

from bnfold.input_spec import Array
from bnfold.verification.inputs.feeds import Feed
from bnfold.verification.judging.noise import STREAM, moved_by_one_ulp
from bnfold.verification.onnx.outputs.parameters import OpenModel
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.parts import InParts


def perturbed_runs(
    opened: OpenModel, device: Device, seed: int, draws: Iterable[int], feeds: Sequence[Feed]
) -> Iterator[list[dict[str, object]]]:
    """What the original gives with parameters moved at random: for each draw, its outputs for each sample.

    Raises:
        DeviceError: The model does not run on `device`.
        RuntimeFailure: The runtime refuses it.
    """
    numbers = {tensor.name: number for number, tensor in enumerate(opened.tensors) if tensor.place is None}
    nbytes = {name: opened.tensors[number].nbytes for name, number in numbers.items()}
    parts = None
    for draw in draws:
        moved = partial(_moved, opened, seed, draw)
        for number, tensor in enumerate(opened.tensors):
            if tensor.place is not None:
                tensor.place.CopyFrom(numpy_helper.from_array(moved(number), tensor.place.name))
        if parts is None or opened.holds_parameters:
            parts = InParts(opened.proto, nbytes, device)
        rng = np.random.default_rng([seed, draw, STREAM])
        signs = {name: np.array(rng.choice([-1, 1]), np.float32) for name in opened.signs}
        yield parts.run([{**feed, **signs} for feed in feeds], lambda name, moved=moved: moved(numbers[name]))  # type: ignore[misc]


def _moved(opened: OpenModel, seed: int, draw: int, number: int) -> Array:
    """A tensor as it is in a draw, however often it is read."""
    tensor = opened.tensors[number]
    value = tensor.read()
    if not tensor.movable:
        return value
    return moved_by_one_ulp(value, np.random.default_rng([seed, draw, STREAM, number]))
