"""What an ONNX file of a convolutional network costs, counted from its shapes."""

from dataclasses import dataclass
from math import prod

import onnx


@dataclass(frozen=True)
class Size:
    """What a file holds.

    Attributes:
        batch_norms: Number of BNs.
        nodes: Number of nodes.
        parameters: Floating-point numbers that are stored, statistics of BNs included.
        multiply_adds: See `multiply_adds_of`.
    """

    batch_norms: int
    nodes: int
    parameters: int
    multiply_adds: int

    @staticmethod
    def of(model: onnx.ModelProto) -> "Size":
        """Count."""
        stored = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
        return Size(
            len([node for node in model.graph.node if node.op_type == "BatchNormalization"]),
            len(model.graph.node),
            sum(prod(tensor.dims) for tensor in stored),
            multiply_adds_of(model),
        )


def multiply_adds_of(model: onnx.ModelProto) -> int:
    """Multiply-adds, from the shapes that onnx infers: of convolutions and matrix products, one a value of each BN.

    An average pool counts its whole window for each output. Other element-wise operators count nothing.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    declared = (*inferred.value_info, *inferred.output, *inferred.input)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in declared}
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    total = 0
    for node in inferred.node:
        outputs = prod(shapes[node.output[0]])
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Conv":
            total += outputs * prod(shapes[node.input[1]][1:])
        elif node.op_type == "Gemm":
            transposed = "transA" in attributes and attributes["transA"].i
            total += outputs * shapes[node.input[0]][0 if transposed else 1]
        elif node.op_type == "MatMul":
            total += outputs * shapes[node.input[0]][-1]
        elif node.op_type == "AveragePool":
            total += outputs * prod(attributes["kernel_shape"].ints)
        elif node.op_type == "BatchNormalization":
            total += outputs
    return total
