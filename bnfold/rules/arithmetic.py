"""Operators that combine the elements of two values, and those that treat each element of one.

    s·(a + b) + t = (s·a + t) + s·b        s·(a · b) = (s·a) · b        s·(a / b) = (s·a) / b
    s·mean(a, b) + t = mean(s·a + 2·t, s·b)        s·relu(x) = relu(s·x) for s ≥ 0
    s·where(c, a, b) + t = where(c, s·a + t, s·b + t), and likewise max and min for s ≥ 0

An array passes to an operand only if it is constant along every axis along which the operand is broadcast.
"""

from collections.abc import Sequence

import numpy as np

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import Chosen, Op, OpNode, Signs
from bnfold.reasons import Stop, StopCode
from bnfold.rules.row import Arrays, Part, Row
from bnfold.rules.shapes import is_too_large, narrowed, widened


def _is_broadcast(node: OpNode, position: int) -> Stop:
    operand = node.inputs[position].name
    reason = f"{node.op_type} '{node.name}' broadcasts '{operand}', or may, along an axis along which the affine varies"
    return Stop(StopCode.BROADCAST, reason)


def _not_linear(node: OpNode, part: Part) -> Stop:
    return Stop(StopCode.SHIFT, f"a {part} does not pass {node.op_type} '{node.name}'")


def _signs(node: OpNode) -> tuple[int, ...]:
    if node.op is Op.MEAN:
        return (1,) * len(node.inputs)
    assert isinstance(node.parameters, Signs)  # the front-end's contract, see graph.py
    return node.parameters.signs


def _divisor(node: OpNode) -> int:
    """What a sum is divided by."""
    return len(node.inputs) if node.op is Op.MEAN else 1


def _grow_too_large(arrays: Sequence[Float64Array | None]) -> bool:
    """Whether arrays that vary along different axes are too large in one."""
    return is_too_large(
        [max(sizes) for sizes in zip(*(array.shape for array in arrays if array is not None), strict=True)]
    )


def _varies_too_widely(node: OpNode) -> Stop:
    reason = f"behind {node.op_type} '{node.name}' the affine would vary along too many axes to be written out"
    return Stop(StopCode.VARIES, reason)


def _rank(node: OpNode, arrays: Arrays) -> int:
    """The rank of the result of a broadcasting operator."""
    ranks = [len(value.shape) for value in node.inputs if value.shape is not None]
    return max([*ranks, *(array.ndim for array in arrays if array is not None)])


def _add_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    carried = [narrowed(array, value.shape) for value in node.inputs]
    if part is Part.SCALE:
        missing = next((position for position, operand in enumerate(carried) if operand is None), None)
        return [tuple(carried)] if missing is None else _is_broadcast(node, missing)
    ways: list[Arrays] = []
    for position, (operand, sign) in enumerate(zip(carried, _signs(node), strict=True)):
        if operand is not None:
            moved = sign * _divisor(node) * operand
            ways.append(tuple(moved if at == position else None for at in range(len(carried))))
    return ways or _is_broadcast(node, 0)


def _add_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    if any(value.shape is None for value in node.inputs):
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of an input of {node.op_type} '{node.name}' is not known")
    rank = _rank(node, arrays)
    given = [None if array is None else widened(array, rank) for array in arrays]
    if _grow_too_large(given):
        return _varies_too_widely(node)
    if part is Part.SHIFT:
        moved = [sign * array for sign, array in zip(_signs(node), given, strict=True) if array is not None]
        total = moved[0]
        for array in moved[1:]:
            total = total + array
        return (total / _divisor(node),)
    scales = [array for array in given if array is not None]
    if len(scales) < len(given) or not all(_same(scales[0], array) for array in scales[1:]):
        reason = f"the inputs of {node.op_type} '{node.name}' do not all carry the same scale"
        return Stop(StopCode.VARIES, reason)
    return (scales[0],)


def _same(first: Float64Array, second: Float64Array) -> bool:
    """Whether two arrays are equal wherever they are broadcast to."""
    try:
        return bool((first == second).all())
    except ValueError:
        return False


def _mul_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    if part is Part.SHIFT:
        return _not_linear(node, part)
    ways: list[Arrays] = []
    for position, value in enumerate(node.inputs):
        operand = narrowed(array, value.shape)
        if operand is not None:
            ways.append(tuple(operand if at == position else None for at in range(len(node.inputs))))
    return ways or _is_broadcast(node, 0)


def _mul_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    if part is Part.SHIFT:
        return _not_linear(node, part)
    if any(value.shape is None for value in node.inputs):
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of an input of {node.op_type} '{node.name}' is not known")
    given = [widened(array, _rank(node, arrays)) for array in arrays if array is not None]
    if _grow_too_large(given):
        return _varies_too_widely(node)
    total = given[0]
    for array in given[1:]:
        total = total * array
    return (total,)


def _div_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    if part is Part.SHIFT:
        return _not_linear(node, part)
    numerator = narrowed(array, node.inputs[0].shape)
    return _is_broadcast(node, 0) if numerator is None else [(numerator, None)]


def _div_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    if part is Part.SHIFT or arrays[1] is not None:
        return _not_linear(node, part)
    return _mul_forward(node, arrays, part)


def negative(node: OpNode, array: Float64Array) -> Stop | None:
    """The reason that a scale does not pass an operator that keeps order only for scales of one sign."""
    if (array >= 0).all():
        return None
    channel = int(np.flatnonzero(array.reshape(-1) < 0)[0])
    reason = f"the scale is negative (first at {channel}), and {node.op_type} '{node.name}' does not commute with that"
    return Stop(StopCode.NEGATIVE_SCALE, reason)


def _relu(node: OpNode, array: Float64Array | None, part: Part) -> Float64Array | Stop:
    assert array is not None  # at least one input has an array
    if part is Part.SHIFT:
        return Stop(StopCode.NONLINEAR, f"{node.op_type} '{node.name}' is not linear, a shift does not move past it")
    return negative(node, array) or array


def _relu_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    carried = _relu(node, array, part)
    return carried if isinstance(carried, Stop) else [(carried,)]


def _relu_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    carried = _relu(node, arrays[0], part)
    return carried if isinstance(carried, Stop) else (carried,)


def _out_of_order(node: OpNode, array: Float64Array, part: Part) -> Stop | None:
    assert isinstance(node.parameters, Chosen)  # the front-end's contract, see graph.py
    return negative(node, array) if node.parameters.ordered and part is Part.SCALE else None


def _choice_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    carried = [narrowed(array, value.shape) for value in node.inputs]
    missing = next((position for position, operand in enumerate(carried) if operand is None), None)
    if missing is not None:
        return _is_broadcast(node, missing)
    return _out_of_order(node, array, part) or [tuple(carried)]


def _choice_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    if any(value.shape is None for value in (*node.inputs, *node.outputs)):
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of an input of {node.op_type} '{node.name}' is not known")
    rank = max(_rank(node, arrays), *(len(value.shape or ()) for value in node.outputs))
    given = [widened(array, rank) for array in arrays if array is not None]
    if len(given) < len(arrays) or not all(_same(given[0], array) for array in given[1:]):
        reason = f"the inputs of {node.op_type} '{node.name}' do not all carry the same {part}"
        return Stop(StopCode.VARIES, reason)
    return _out_of_order(node, given[0], part) or (given[0],)


ADD = MEAN = Row(_add_backward, _add_forward)
MUL = Row(_mul_backward, _mul_forward)
DIV = Row(_div_backward, _div_forward)
RELU = Row(_relu_backward, _relu_forward)
CHOICE = Row(_choice_backward, _choice_forward)
