"""What one node of the standard computes of constants.

onnx's reference implementation says so, but its import takes longer than the fold of a small network. What exporters
write most, and what numpy computes just so, needs none of it.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from bnfold.onnx.proto.names import find_attribute, float_attribute, int_attribute, ints_attribute

Array = NDArray[np.generic]
Compute = Callable[[onnx.NodeProto, Sequence[Array]], Array | None]

EPSILON = float(np.float32(1e-5))
"""That of a BatchNormalization without one: attributes are float32, and this is what the specification's stands for."""
_FLOATS = frozenset(map(np.dtype, (np.float16, np.float32, np.float64)))
_NUMPY_BROADCASTS_SINCE = 7
_SOFTMAX_HAS_ONE_AXIS_SINCE = 13
_NUMBERS = _FLOATS | frozenset(map(np.dtype, (np.int32, np.int64)))


def evaluate(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    """Computes the first output of a node.

    Args:
        node: The node; its domain is taken for the default one.
        inputs: One for each name that it reads, None for an empty one.
        opset: The version of the default domain.

    Raises:
        ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError: That makes no
            sense.
    """
    given = [array for array in inputs if array is not None]
    if node.op_type == "Softmax" and opset < _SOFTMAX_HAS_ONE_AXIS_SINCE:
        return _softmax_of_rows(node, *given)
    plain = _PLAIN.get(node.op_type) if opset >= _NUMPY_BROADCASTS_SINCE else None
    result = plain(node, given) if plain is not None and len(given) == len(inputs) else None
    return _by_reference(node, inputs, opset) if result is None else result


def _softmax_of_rows(node: onnx.NodeProto, source: Array) -> Array:
    """What Softmax was at first: of rows that have all axes from one on; the reference knows the present one alone."""
    axis = int_attribute(node, "axis", 1)
    rows = source.reshape(prod(source.shape[: axis + source.ndim if axis < 0 else axis]), -1)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True)).reshape(source.shape)


def _axes(node: onnx.NodeProto, inputs: Sequence[Array]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in inputs[1].reshape(-1)) if len(inputs) > 1 else ints_attribute(node, "axes")


def _squeeze(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    """An empty list of axes are all of size 1, as runtimes read it."""
    return np.squeeze(inputs[0], axis=_axes(node, inputs) or None)


def _unsqueeze(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    """The axes are those of the result, in whatever order."""
    return np.expand_dims(inputs[0], _axes(node, inputs))


def _slice(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    """As Python's slices, but that going back from before the first element begins at that."""
    source, *given = inputs
    if not given:
        given = [np.array(ints_attribute(node, name), np.int64) for name in ("starts", "ends", "axes")]
        given = given if given[2].size else given[:2]
    starts, ends, *rest = (array.reshape(-1).tolist() for array in given)
    axes = rest[0] if rest else [*range(len(starts))]
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    cuts = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(max(start, -source.shape[axis]) if step < 0 else start, end, step)
    return np.array(source[tuple(cuts)])


def _expand(_node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    source, sizes = inputs
    shape = np.broadcast_shapes(source.shape, tuple(int(size) for size in sizes.astype(np.int64)))
    return np.array(np.broadcast_to(source, shape))


def _transpose(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    return np.transpose(inputs[0], ints_attribute(node, "perm") or None)


def _cast(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    target = helper.tensor_dtype_to_np_dtype(int_attribute(node, "to", 0))
    between_floats = inputs[0].dtype in _NUMBERS and target in _FLOATS
    return inputs[0].astype(target) if between_floats or inputs[0].dtype == target else None


def _reshape(_node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    if len(inputs) < 2 or not inputs[1].size or not (inputs[1].astype(np.int64) != 0).all():
        return None
    return inputs[0].reshape(tuple(int(size) for size in inputs[1].astype(np.int64)))


def _concat(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    if find_attribute(node, "axis") is None or not all(array.ndim for array in inputs):
        return None
    return np.concatenate(inputs, axis=int_attribute(node, "axis", 0))


def _elementwise(operation: Callable[[Array, Array], Array]) -> Compute:
    def compute(_node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
        if len(inputs) != 2 or inputs[0].dtype != inputs[1].dtype or inputs[0].dtype not in _FLOATS:
            return None
        return np.asarray(operation(*inputs))

    return compute


def _matmul(_node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    """Added up in float64, so that it is as near to what the file means as a runtime comes, in whatever order."""
    first, second = inputs
    if first.dtype != second.dtype or first.dtype not in _FLOATS:
        return None
    return np.asarray(np.matmul(first.astype(np.float64), second.astype(np.float64))).astype(first.dtype)


def normalises(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the first output of a BatchNormalization is what is computed here: each channel is treated alike.

    Before `training_mode` came with opset 14, further outputs meant what it says.
    """
    alone = not any(node.output[1:]) or bool(int_attribute(node, "training_mode", 0))
    return opset >= _NUMPY_BROADCASTS_SINCE and alone and bool(int_attribute(node, "spatial", 1))


def _batch_norm(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array | None:
    """With given statistics, or with its own where training_mode is 1; in float64, as products are."""
    source, *parameters = inputs
    if source.ndim < 2 or any(array.dtype not in _FLOATS for array in inputs):
        return None
    shape = (-1,) + (1,) * (source.ndim - 2)
    wide = source.astype(np.float64)
    scale, bias, mean, variance = (array.astype(np.float64).reshape(shape) for array in parameters)
    if int_attribute(node, "training_mode", 0):
        others = (0, *range(2, source.ndim))
        mean, variance = wide.mean(axis=others).reshape(shape), wide.var(axis=others).reshape(shape)
    spread = np.sqrt(variance + float_attribute(node, "epsilon", EPSILON))
    return np.asarray((wide - mean) / spread * scale + bias).astype(source.dtype)


_PLAIN: Mapping[str, Compute] = {
    "Add": _elementwise(np.add),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(np.divide),
    "Expand": _expand,
    "MatMul": _matmul,
    "Mul": _elementwise(np.multiply),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators that are one call of numpy, in every opset since 7 in which they exist; None for what is not as plain."""


def _by_reference(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> Array:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    standard = onnx.NodeProto()
    standard.CopyFrom(node)
    standard.domain = ""
    named = [onnx.ValueInfoProto(name=name) for name in feeds]
    graph = helper.make_graph([standard], "expression", named, [onnx.ValueInfoProto(name=node.output[0])])
    # Of these the reference has no older version; what they do to constants has not changed since.
    opset = max(opset, 19) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else opset
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(next(iter(results)))
