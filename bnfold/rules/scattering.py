"""Operators that add elements to places of another value, wherever the indices say.

    y = base + Σ updates        s·y = (s·base) + Σ s·updates        y + t = (base + t) + Σ updates

The scale has to be constant along the axes that the indices lead along. A shift of the updates would come as often as
there are updates for a place, which only the run tells, and where the base is zero, there is nothing to take one.
"""

from collections.abc import Sequence

import numpy as np

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import OpNode, Scattered
from bnfold.reasons import Stop, StopCode
from bnfold.rules.row import Arrays, Part, Row


def _scattered(node: OpNode) -> Scattered:
    assert isinstance(node.parameters, Scattered)  # the front-end's contract, see graph.py
    return node.parameters


def _has_base(node: OpNode) -> bool:
    return len(node.inputs) > 1


def _counts(node: OpNode) -> Stop:
    reason = f"a shift does not pass {node.op_type} '{node.name}', which adds it as often as its indices say"
    return Stop(StopCode.SHIFT, reason)


def _varies(node: OpNode) -> Stop:
    reason = f"{node.op_type} '{node.name}' puts elements where the affine may treat them differently"
    return Stop(StopCode.VARIES, reason)


def _for_updates(node: OpNode, array: Float64Array) -> Float64Array | None:
    """An array for the result as one for the updates; None where elements of one are treated differently."""
    scattered, updates = _scattered(node), node.inputs[-1].shape
    if updates is None or any(array.shape[axis] != 1 for axis in scattered.axes):
        return None
    if scattered.leading is not None:
        array = array.reshape((1,) * scattered.leading + array.shape[len(scattered.axes) :])
    fits = len(updates) == array.ndim and all(
        have in (1, size) for have, size in zip(array.shape, updates, strict=True)
    )
    return array if fits else None


def _for_result(node: OpNode, array: Float64Array) -> Float64Array | None:
    """The other way round."""
    scattered, result = _scattered(node), node.outputs[0].shape
    if result is None:
        return None
    if scattered.leading is not None:
        if any(size != 1 for size in array.shape[: scattered.leading]):
            return None
        array = array.reshape((1,) * len(scattered.axes) + array.shape[scattered.leading :])
    if len(result) != array.ndim or any(array.shape[axis] != 1 for axis in scattered.axes):
        return None
    return array if all(have in (1, size) for have, size in zip(array.shape, result, strict=True)) else None


def _backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    if part is Part.SHIFT:
        return [(array, None)] if _has_base(node) else _counts(node)
    updates = _for_updates(node, array)
    if updates is None:
        return _varies(node)
    return [(array, updates) if _has_base(node) else (updates,)]


def _forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    base, updates = (arrays[0] if _has_base(node) else None), arrays[-1]
    if part is Part.SHIFT:
        return _counts(node) if updates is not None else (base,)
    moved = None if updates is None else _for_result(node, updates)
    alike = moved is not None and (not _has_base(node) or (base is not None and np.array_equal(base, moved)))
    return (moved,) if alike else _varies(node)


SCATTER = Row(_backward, _forward)
