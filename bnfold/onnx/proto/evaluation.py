"""What one node of the standard computes of constants.

onnx's reference implementation says so, but its import takes longer than the fold of a small network. What exporters
write most, and what numpy computes just so, needs none of it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from bnfold.onnx.proto.names import find_attribute, int_attribute, ints_attribute

Array = NDArray[np.generic]
Compute = Callable[[onnx.NodeProto, Sequence[Array]], Array | None]

_FLOATS = frozenset(map(np.dtype, (np.float16, np.float32, np.float64)))
_NUMPY_BROADCASTS_SINCE = 7
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
    plain = _PLAIN.get(node.op_type) if opset >= _NUMPY_BROADCASTS_SINCE else None
    result = plain(node, given) if plain is not None and len(given) == len(inputs) else None
    return _by_reference(node, inputs, opset) if result is None else result


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


_PLAIN: Mapping[str, Compute] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(np.divide),
    "Expand": _expand,
    "MatMul": _matmul,
    "Mul": _elementwise(np.multiply),
    "Reshape": _reshape,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
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
