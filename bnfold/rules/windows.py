"""Operators that mix elements along some axes: pooling, reductions, resizing, padding.

The affine has to be the same for all elements that are mixed: its arrays have size 1 along these axes. Then

    average       mean(s·x + t) = s·mean(x) + t
    sum           Σ s·x = s·Σ x
    maximum       max(s·x + t) = s·max(x) + t for s ≥ 0
    resampling    weights that sum to one, as for the average
    zero padding  pad(s·x) = s·pad(x)

An average that counts the zeros of a padding is no average of x at the border, and no shift passes it.
"""

from collections.abc import Sequence

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import Along, OpNode
from bnfold.reasons import Stop, StopCode
from bnfold.rules.arithmetic import negative
from bnfold.rules.row import Arrays, Part, Row


def _along(node: OpNode) -> Along:
    assert isinstance(node.parameters, Along)  # the front-end's contract, see graph.py
    return node.parameters


def _varies(node: OpNode) -> Stop:
    return Stop(StopCode.VARIES, f"{node.op_type} '{node.name}' mixes elements that the affine treats differently")


def _shift_stop(node: OpNode, why: str) -> Stop:
    return Stop(StopCode.SHIFT, f"a shift does not pass {node.op_type} '{node.name}', {why}")


def _guard(node: OpNode, array: Float64Array, part: Part, *, adds: str, keeps_order: bool) -> Stop | None:
    if part is Part.SHIFT:
        why = adds or _along(node).counts
        return _shift_stop(node, f"which {why}") if why else None
    return negative(node, array) if keeps_order else None


def _row(*, adds: str = "", keeps_order: bool = False) -> Row:
    def backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
        stop = _guard(node, array, part, adds=adds, keeps_order=keeps_order)
        if stop is not None:
            return stop
        along = _along(node)
        if not along.keep:
            shape = list(array.shape)
            for axis in sorted(along.axes):
                shape.insert(axis, 1)
            return [(array.reshape(shape),)]
        return _varies(node) if any(array.shape[axis] != 1 for axis in along.axes) else [(array,)]

    def forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
        array, along = arrays[0], _along(node)
        assert array is not None  # at least one input has an array
        stop = _guard(node, array, part, adds=adds, keeps_order=keeps_order)
        if stop is not None:
            return stop
        if any(array.shape[axis] != 1 for axis in along.axes):
            return _varies(node)
        if along.keep:
            return (array,)
        return (array.reshape([size for axis, size in enumerate(array.shape) if axis not in along.axes]),)

    return Row(backward, forward)


AVERAGE = _row()
SUM = _row(adds="adds up as many shifts as elements")
MAXIMUM = _row(keeps_order=True)
RESAMPLE = _row()
ZERO_PAD = _row(adds="puts zeros beside the elements, or may")
