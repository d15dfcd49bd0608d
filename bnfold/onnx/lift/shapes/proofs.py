"""What the readers of a value prove of it: rank and sizes flow backward too.

A Conv with a weight of rank 4 reads a value of rank 4 with as many channels as the weight is for, whatever computes it;
an elementwise operator reads what it gives. onnx's own inference goes forward only, and does not know operators of
other domains. A node that is given anything of another shape does not run, and nothing behind it.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import onnx

from bnfold.onnx.lift.types import (
    Shape,
    ValueTypes,
    declare,
    dtype_in,
    element_type,
    shape_in,
    types_by_graph,
    value_types,
)
from bnfold.onnx.proto.names import int_attribute, is_standard, nested, subgraphs

_SAME_SHAPE = frozenset(
    "Abs BatchNormalization Cast CastLike Ceil Celu Clip Dropout Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid"
    " HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish Neg"
    " PRelu QuantizeLinear DequantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Softmax Softplus Softsign"
    " Sqrt Swish Tanh ThresholdedRelu".split()
)
"""Operators whose first output has the shape of the first input."""
_OTHER_TYPE = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})
_SAME_CHANNELS = frozenset("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split())
"""Operators that keep the rank and the first two sizes."""
_SAME_RANK = frozenset("Pad Resize Slice Tile Transpose Upsample".split())
_ARITHMETIC = frozenset("Add Sub Mul Div".split())

Proof = tuple[str, Shape, str]
"""A value, what its shape is like, and its element type, or "" if that is not proved."""


def note_proofs(main: onnx.GraphProto, inferred: onnx.GraphProto) -> bool:
    """Declares in a skeleton what readers prove and inference does not know.

    Args:
        main: The main graph of the skeleton, its nodes in the order in which they run.
        inferred: The same after inference.

    Returns:
        Whether there was anything.
    """
    noted = False
    for graph, types in zip(nested(main), types_by_graph(inferred), strict=True):
        own = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        places = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
        for node in reversed(graph.node):
            for name, shape, dtype in _proofs(node, types):
                merged = _merged(types.get(name, (None, "")), shape, dtype) if name in own else None
                if merged is not None and merged[1]:
                    types[name] = merged
                    place = places[name] = places.get(name) or graph.value_info.add(name=name)
                    place.type.tensor_type.elem_type = element_type(merged[1])
                    declare(place, merged[0])
                    noted = True
    return noted


def contradicts_readers(main: onnx.GraphProto, inferred: onnx.GraphProto, declared: Sequence[Container[str]]) -> bool:
    """Whether a shape that a file declares is not what the readers of the value prove of it.

    Args:
        main: The main graph of the skeleton.
        inferred: The same after inference.
        declared: For each graph, in the order of `nested`: the names of what it declares.
    """
    for graph, types, names in zip(nested(main), types_by_graph(inferred), declared, strict=True):
        for name, proved, _ in (proof for node in graph.node for proof in _proofs(node, types)):
            shape = shape_in(types, name) if name in names else None
            if shape is not None and (len(shape) != len(proved) or any(map(_differ, shape, proved))):
                return True
    return False


def contradicts_turns(main: onnx.GraphProto, declared: Sequence[Container[str]]) -> bool:
    """Whether what the body of a Loop declares of a value that goes round may not be so in every turn.

    Args:
        main: The main graph after inference.
        declared: For each graph, in the order of `nested`: the names of what it declares.
    """
    names = iter(declared)
    next(names)
    for node, outer, body, held in _loops(main, {}, names):
        known = value_types(body)
        for first, given, last in zip(node.input[2:], body.input[2:], body.output[1:], strict=False):
            shape = shape_in(known, given.name) if given.name in held else None
            for other in (shape_in(outer, first), shape_in(known, last.name)) if shape is not None else ():
                if other is None or len(other) != len(shape or ()) or any(map(_is_other, shape or (), other)):
                    return True
    return False


def _loops(
    graph: onnx.GraphProto, outer: ValueTypes, declared: Iterator[Container[str]]
) -> Iterator[tuple[onnx.NodeProto, ValueTypes, onnx.GraphProto, Container[str]]]:
    """The Loops of a graph and of those inside it: the types around each, its body, and what that declares."""
    types = {**outer, **value_types(graph)}
    for node in graph.node:
        for _, inner in subgraphs(node):
            names = next(declared)
            if is_standard(node, "Loop"):
                yield node, types, inner, names
            yield from _loops(inner, types, declared)


def _is_other(size: int | str | None, other: int | str | None) -> bool:
    return isinstance(size, int) and size != other


def _differ(size: int | str | None, other: int | str | None) -> bool:
    return isinstance(size, int) and isinstance(other, int) and size != other


def _merged(known: tuple[Shape | None, str], shape: Shape, dtype: str) -> tuple[Shape, str] | None:
    """What is known together with what is proved; None if that is no more than what is known."""
    old, old_dtype = known
    if old is None:
        return shape, old_dtype or dtype
    if len(old) != len(shape):
        return None
    sizes = tuple(
        size if isinstance(size, int) and not isinstance(before, int) else before
        for before, size in zip(old, shape, strict=True)
    )
    return None if sizes == old else (sizes, old_dtype or dtype)


def _proofs(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    """What a node that runs proves of what it reads."""
    rule = _RULES.get(node.op_type) if is_standard(node, node.op_type) else None
    if rule is not None and node.input and node.output:
        yield from rule(node, types)


def _convolution(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    weight, dtype = types.get(node.input[1], (None, ""))
    if weight is None or len(weight) < 3:
        return
    channels = weight[0] if node.op_type == "ConvTranspose" else weight[1]
    if isinstance(channels, int) and node.op_type == "Conv":
        channels *= int_attribute(node, "group", 1)
    yield node.input[0], (None, channels, *(None for _ in weight[2:])), dtype


def _gemm(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    weight, dtype = types.get(node.input[1], (None, ""))
    rows = None if weight is None or len(weight) != 2 else weight[1 if int_attribute(node, "transB", 0) else 0]
    yield node.input[0], ((rows, None) if int_attribute(node, "transA", 0) else (None, rows)), dtype


def _same_shape(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    shape = shape_in(types, node.output[0])
    channels = None
    if node.op_type == "BatchNormalization":
        parameters = shape_in(types, node.input[1])
        channels = parameters[0] if parameters is not None and len(parameters) == 1 else None
    if shape is None:
        return
    if isinstance(channels, int) and len(shape) > 1:
        shape = (shape[0], channels, *shape[2:])
    dtype = "" if node.op_type in _OTHER_TYPE else dtype_in(types, node.output[0])
    yield node.input[0], shape, dtype


def _same_channels(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    shape = shape_in(types, node.output[0])
    if shape is not None:
        yield node.input[0], (*shape[:2], *(None for _ in shape[2:])), dtype_in(types, node.output[0])


def _same_rank(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    shape = shape_in(types, node.output[0])
    if shape is not None:
        yield node.input[0], (None,) * len(shape), dtype_in(types, node.output[0])


def _concat(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    shape = shape_in(types, node.output[0])
    if shape is None:
        shape = next((found for name in node.input if (found := shape_in(types, name)) is not None), None)
    for name in node.input if shape is not None else ():
        yield name, (None,) * len(shape or ()), dtype_in(types, node.output[0])


def _arithmetic(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    """An operand has the rank of the result if the other one has less."""
    shape = shape_in(types, node.output[0])
    first, second = node.input
    for name, other in ((first, second), (second, first)):
        operand = shape_in(types, other)
        if shape is not None and operand is not None and len(operand) < len(shape):
            yield name, (None,) * len(shape), dtype_in(types, node.output[0])


def _depth(node: onnx.NodeProto, types: ValueTypes) -> Iterator[Proof]:
    yield node.input[0], (None,) * 4, dtype_in(types, node.output[0])


_RULES: Mapping[str, Callable[[onnx.NodeProto, ValueTypes], Iterator[Proof]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    "Gemm": _gemm,
    **dict.fromkeys(_SAME_SHAPE, _same_shape),
    **dict.fromkeys(_SAME_CHANNELS, _same_channels),
    **dict.fromkeys(_SAME_RANK, _same_rank),
    "Concat": _concat,
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth),
}
