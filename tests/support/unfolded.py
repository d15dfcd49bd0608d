"""What a file still computes that a fold could have taken away, whatever the tool that wrote it calls it."""

from math import prod

import onnx
from onnx_fold import graphs


def unfolded(model: onnx.ModelProto) -> int:
    """How many nodes are a batch norm in some spelling.

    BatchNormalization, arithmetic with a constant of several numbers but for the bias of a matrix product, and the
    depthwise 1x1 convolutions that are written for batch norms that stay.
    """
    return sum(_is_affine(graph, node) for graph in graphs(model) for node in graph.node)


def _is_affine(graph: onnx.GraphProto | onnx.FunctionProto, node: onnx.NodeProto) -> bool:
    if node.op_type == "BatchNormalization":
        return True
    shapes = _constant_shapes(graph)
    if node.op_type in ("Conv", "FusedConv"):
        groups = next((given.i for given in node.attribute if given.name == "group"), 1)
        return groups > 1 and prod(shapes.get(node.input[1], (0, 0))[1:]) == 1
    constants = [name for name in node.input if name in shapes]
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(constants) != 1 or prod(shapes[constants[0]]) < 2:
        return False
    makers = {name: other for other in graph.node for name in other.output}
    source = makers.get(next(name for name in node.input if name not in shapes))
    return not (source is not None and source.op_type == "MatMul" and any(name in shapes for name in source.input))


def _constant_shapes(graph: onnx.GraphProto | onnx.FunctionProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in getattr(graph, "initializer", ())}
    for node in graph.node:
        for given in node.attribute if node.op_type == "Constant" else ():
            shapes[node.output[0]] = tuple(given.t.dims) if given.name == "value" else (1,)
    return shapes
