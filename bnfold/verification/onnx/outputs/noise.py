"""Runs of an ONNX original under rounding noise; see `bnfold.verification.judging.noise`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from onnx import numpy_helper

from bnfold.verification.inputs.feeds import Feed
from bnfold.verification.judging.noise import STREAM, moved_by_one_ulp
from bnfold.verification.onnx.outputs.parameters import OpenModel
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.sessions import Session


def perturbed_runs(
    opened: OpenModel, device: Device, seed: int, draws: Iterable[int], feeds: Sequence[Feed]
) -> Iterator[list[dict[str, object]]]:
    """What the original gives with parameters moved at random: for each draw, its outputs for each sample.

    Raises:
        DeviceError: The model does not run on `device`.
        RuntimeFailure: The runtime refuses it.
    """
    session = None
    for draw in draws:
        rng = np.random.default_rng([seed, draw, STREAM])
        fed, injected = {}, {}
        for tensor in opened.tensors:
            value = tensor.read()
            if tensor.movable:
                value = moved_by_one_ulp(value, rng)
            if tensor.place is not None:
                tensor.place.CopyFrom(numpy_helper.from_array(value, tensor.place.name))
            elif tensor.movable:
                fed[tensor.name] = value
            else:
                injected[tensor.name] = value
        fed |= {name: np.array(rng.choice([-1, 1]), np.float32) for name in opened.signs}
        if session is None or opened.holds_parameters:
            session = Session(opened.proto.SerializeToString(), device, injected)
        yield [session.run({**feed, **fed}) for feed in feeds]
