"""New weights that are stored as integers, written in the form that the old ones had."""

import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.quantised import QuantisedTensor
from bnfold.onnx.file.tensors import TensorStore
from bnfold.onnx.proto.names import FreshNames


def quantised_nodes(
    weight: QuantisedTensor, result: str, names: FreshNames, store: TensorStore
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Writes a quantised weight.

    Args:
        weight: The weight.
        result: The name of the value that is dequantised, in the layout that its reader wants.
        names: Where new names come from.
        store: Where the integers are kept until they are written.

    Returns:
        The nodes that compute `result`, and their constants.
    """
    kind = "simulated" if weight.simulated else "quantized"
    stored = names.fresh(f"{result}_{kind}")
    dtype = weight.dtype if weight.simulated else weight.integers.dtype
    read = weight.dequantised if weight.simulated else weight.integers.read
    data_type = helper.np_dtype_to_tensor_dtype(dtype)
    tensors = [store.defer(stored, weight.integers.shape, data_type, read)]
    parameters = [names.fresh(f"{result}_scale")]
    tensors.append(numpy_helper.from_array(weight.scale.read(), parameters[0]))
    if weight.zero_point is not None:
        parameters.append(names.fresh(f"{result}_zero_point"))
        tensors.append(numpy_helper.from_array(weight.zero_point.read(), parameters[1]))
    attributes = {"axis": weight.axis} if weight.along_an_axis else {}
    if weight.block:
        attributes["block_size"] = weight.block
    turned = weight.permutation != tuple(range(len(weight.permutation)))
    steps = [("QuantizeLinear", parameters)] if weight.simulated else []
    steps += [("DequantizeLinear", parameters), *([("Transpose", [])] if turned else [])]
    nodes: list[onnx.NodeProto] = []
    for op_type, others in steps:
        output = result if len(nodes) + 1 == len(steps) else names.fresh(f"{result}_{op_type}_output")
        node = helper.make_node(op_type, [stored, *others], [output], name=names.fresh(f"{result}_{op_type}"))
        given = {"perm": weight.permutation} if op_type == "Transpose" else attributes
        node.attribute.extend(helper.make_attribute(key, number) for key, number in given.items())
        nodes.append(node)
        stored = output
    return nodes, tensors
