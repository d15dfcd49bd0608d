"""Operators that only move elements about: whatever is done to each element can be done before or after.

    f(x)[i] = x[p(i)]        s·f(x) + t = f(s'·x + t')  where  s'[p(i)] = s[i]

so both parts pass, backward if no element of x is asked to take two different values, forward always.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import Blocks, Gathered, Joined, OpNode, Permutation, Picked
from bnfold.reasons import Stop, StopCode
from bnfold.rules.row import Arrays, Part, Row
from bnfold.rules.shapes import is_too_large, narrowed, reshaped, widened


def _varies(node: OpNode, why: str) -> Stop:
    return Stop(StopCode.VARIES, f"{node.op_type} '{node.name}' {why}")


def _permutation(node: OpNode) -> tuple[int, ...]:
    assert isinstance(node.parameters, Permutation)  # the front-end's contract, see graph.py
    return node.parameters.axes


def _identity_backward(_: OpNode, __: int, array: Float64Array, ___: Part) -> Sequence[Arrays]:
    return [(array,)]


def _identity_forward(_: OpNode, arrays: Arrays, __: Part) -> Arrays:
    return arrays


def _transpose_backward(node: OpNode, _: int, array: Float64Array, __: Part) -> Sequence[Arrays]:
    return [(array.transpose(np.argsort(_permutation(node))),)]


def _transpose_forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays:
    return tuple(None if array is None else array.transpose(_permutation(node)) for array in arrays)


def _reshape(node: OpNode, array: Float64Array, *, backward: bool) -> Float64Array | Stop:
    source, target = node.inputs[0].shape, node.outputs[0].shape
    if source is None or target is None:
        return Stop(StopCode.UNKNOWN_RANK, f"the shapes around {node.op_type} '{node.name}' are not known")
    carried = reshaped(array, target, source) if backward else reshaped(array, source, target)
    if carried is None:
        shapes = f"{list(source)} to {list(target)}"
        return _varies(node, f"mixes axes along which the affine varies ({shapes})")
    return carried


def _reshape_backward(node: OpNode, _: int, array: Float64Array, __: Part) -> Sequence[Arrays] | Stop:
    carried = _reshape(node, array, backward=True)
    return carried if isinstance(carried, Stop) else [(carried,)]


def _reshape_forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays | Stop:
    assert arrays[0] is not None  # at least one input has an array
    carried = _reshape(node, arrays[0], backward=False)
    return carried if isinstance(carried, Stop) else (carried,)


def _sizes_along(node: OpNode, axis: int) -> list[int] | None:
    """The sizes of the inputs of a Concat along its axis, None if one is not known."""
    sizes = [None if value.shape is None else value.shape[axis] for value in node.inputs]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _concat_backward(node: OpNode, _: int, array: Float64Array, __: Part) -> Sequence[Arrays] | Stop:
    assert isinstance(node.parameters, Joined)  # the front-end's contract, see graph.py
    axis = node.parameters.axis
    if array.shape[axis] == 1:
        return [(array,) * len(node.inputs)]
    sizes = _sizes_along(node, axis)
    if sizes is None:
        return _varies(node, "joins inputs of unknown sizes")
    return [tuple(np.split(array, np.cumsum(sizes)[:-1], axis))]


def _concat_forward(node: OpNode, arrays: Arrays, part: Part) -> Arrays | Stop:
    assert isinstance(node.parameters, Joined)  # the front-end's contract, see graph.py
    axis = node.parameters.axis
    given = [array for array in arrays if array is not None]
    if len(given) == len(arrays) and all(
        array.shape == given[0].shape and array.shape[axis] == 1 and np.array_equal(array, given[0]) for array in given
    ):
        return (given[0],)
    sizes = _sizes_along(node, axis)
    if sizes is None:
        return _varies(node, "joins inputs of unknown sizes")
    rank = given[0].ndim
    filled = [np.full((1,) * rank, part.neutral) if array is None else array for array in arrays]
    whole = np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in filled))
    if is_too_large((*whole, sum(sizes))):
        return _varies(node, "joins inputs that are too large for an affine that varies along them")
    parts = [
        np.broadcast_to(array, (*whole[:axis], size, *whole[axis + 1 :]))
        for array, size in zip(filled, sizes, strict=True)
    ]
    return (np.concatenate(parts, axis),)


def _pick_backward(node: OpNode, position: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    """What an output takes is changed, and what nothing else reads may be changed along with it."""
    assert isinstance(node.parameters, Picked)  # the front-end's contract, see graph.py
    others_read = any(value.uses or value.observer for at, value in enumerate(node.outputs) if at != position)
    for axis, indices in node.parameters.outputs[position].items():
        if array.shape[axis] == 1 and not others_read:
            continue
        shape = node.inputs[0].shape
        size = None if shape is None else shape[axis]
        if indices is None or not isinstance(size, int):
            return _varies(node, f"cuts axis {axis} at positions that are not known")
        whole = _put_back(array, axis, indices, size, part)
        if whole is None:
            return _varies(node, "takes an element more than once, and the affine treats it differently each time")
        array = whole
    return [(array,)]


def _put_back(array: Float64Array, axis: int, indices: NDArray[np.int64], size: int, part: Part) -> Float64Array | None:
    """What is done to the elements picked along an axis, done to all; None where one would be treated in two ways."""
    if is_too_large((*array.shape[:axis], size, *array.shape[axis + 1 :])):
        return None
    whole = np.full((*array.shape[:axis], size, *array.shape[axis + 1 :]), part.neutral)
    whole[(slice(None),) * axis + (indices,)] = array
    return whole if (whole.take(indices, axis) == array).all() else None


def _pick_forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays | Stop:
    assert isinstance(node.parameters, Picked)  # the front-end's contract, see graph.py
    results = []
    for cuts in node.parameters.outputs:
        array = arrays[0]
        assert array is not None  # at least one input has an array
        for axis, indices in cuts.items():
            if array.shape[axis] == 1:
                continue
            if indices is None:
                return _varies(node, f"cuts axis {axis} at positions that are not known")
            array = array.take(indices, axis)
        results.append(array)
    return tuple(results)


def _gather_backward(node: OpNode, _: int, array: Float64Array, part: Part) -> Sequence[Arrays] | Stop:
    assert isinstance(node.parameters, Gathered)  # the front-end's contract, see graph.py
    axis, rank, indices = node.parameters.axis, node.parameters.rank, node.parameters.indices
    picked = array.shape[axis : axis + rank]
    before, after = array.shape[:axis], array.shape[axis + rank :]
    if all(size == 1 for size in picked):
        return [(array.reshape((*before, 1, *after)),)]
    shape = node.inputs[0].shape
    size = None if shape is None else shape[axis]
    whole = None
    if indices is not None and rank == 1 and isinstance(size, int):
        whole = _put_back(array, axis, np.array(indices, dtype=np.int64), size, part)
    if whole is None:
        return _varies(node, f"takes elements of axis {axis} more than once, or it is not known which")
    return [(whole,)]


def _gather_forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays | Stop:
    assert isinstance(node.parameters, Gathered)  # the front-end's contract, see graph.py
    array, axis, rank = arrays[0], node.parameters.axis, node.parameters.rank
    assert array is not None  # at least one input has an array
    if array.shape[axis] == 1:
        return (array.reshape(array.shape[:axis] + (1,) * rank + array.shape[axis + 1 :]),)
    if node.parameters.indices is None or rank != 1:
        return _varies(node, f"takes elements of axis {axis}, and it is not known which")
    return (array.take(node.parameters.indices, axis),)


def _expand_backward(node: OpNode, _: int, array: Float64Array, __: Part) -> Sequence[Arrays] | Stop:
    carried = narrowed(array, node.inputs[0].shape)
    return _varies(node, "repeats elements that the affine treats differently") if carried is None else [(carried,)]


def _expand_forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays | Stop:
    shape = node.outputs[0].shape
    assert arrays[0] is not None  # at least one input has an array
    if shape is None:
        return Stop(StopCode.UNKNOWN_RANK, f"the rank of the output of {node.op_type} '{node.name}' is not known")
    if any(have not in (1, size) for have, size in zip(arrays[0].shape[::-1], shape[::-1], strict=False)):
        return _varies(node, "repeats axes along which the affine varies")
    return (widened(arrays[0], len(shape)),)


def _to_deep(array: Float64Array, blocks: Blocks) -> Float64Array | None:
    """From channels of the wide image to those of the deep one; the image has to be treated alike everywhere."""
    if any(size != 1 for axis, size in enumerate(array.shape) if axis != 1):
        return None
    if array.shape[1] == 1:
        return array
    repeats = blocks.size**2
    channels = array.reshape(-1)
    deep = np.tile(channels, repeats) if blocks.depth_last else np.repeat(channels, repeats)
    return deep.reshape(1, -1, *array.shape[2:])


def _to_wide(array: Float64Array, blocks: Blocks) -> Float64Array | None:
    if any(size != 1 for axis, size in enumerate(array.shape) if axis != 1):
        return None
    if array.shape[1] == 1:
        return array
    repeats = blocks.size**2
    if array.shape[1] % repeats:
        return None
    split = array.reshape((repeats, -1) if blocks.depth_last else (-1, repeats))
    split = split if blocks.depth_last else split.T
    return split[0].reshape(1, -1, *array.shape[2:]) if (split == split[0]).all() else None


def _blocks(node: OpNode, array: Float64Array | None, *, deepen: bool) -> Float64Array | Stop:
    assert isinstance(node.parameters, Blocks)  # the front-end's contract, see graph.py
    assert array is not None  # at least one input has an array
    carried = _to_deep(array, node.parameters) if deepen else _to_wide(array, node.parameters)
    return _varies(node, "mixes elements that the affine treats differently") if carried is None else carried


def _blocks_row(*, widens: bool) -> Row:
    def backward(node: OpNode, _: int, array: Float64Array, __: Part) -> Sequence[Arrays] | Stop:
        carried = _blocks(node, array, deepen=widens)
        return carried if isinstance(carried, Stop) else [(carried,)]

    def forward(node: OpNode, arrays: Arrays, _: Part) -> Arrays | Stop:
        carried = _blocks(node, arrays[0], deepen=not widens)
        return carried if isinstance(carried, Stop) else (carried,)

    return Row(backward, forward)


IDENTITY = Row(_identity_backward, _identity_forward)
TRANSPOSE = Row(_transpose_backward, _transpose_forward)
RESHAPE = Row(_reshape_backward, _reshape_forward)
CONCAT = Row(_concat_backward, _concat_forward)
PICK = Row(_pick_backward, _pick_forward)
GATHER = Row(_gather_backward, _gather_forward)
EXPAND = Row(_expand_backward, _expand_forward)
DEPTH_TO_SPACE = _blocks_row(widens=True)
SPACE_TO_DEPTH = _blocks_row(widens=False)
