"""New weights that are stored as integers, written in the form that the old ones had."""

from collections.abc import Sequence

import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.quantised import QuantisedTensor
from bnfold.onnx.file.tensors import TensorStore
from bnfold.onnx.proto.names import FreshNames


def quantised_nodes(
    weight: QuantisedTensor, result: str, after: Sequence[onnx.NodeProto], names: FreshNames, store: TensorStore
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Writes a quantised weight.

    Args:
        weight: The weight.
        result: The name of the value that its reader reads.
        after: The nodes that stood between the dequantised numbers and their reader; they are written anew.
        names: Where new names come from.
        store: Where the integers are kept until they are written.

    Returns:
        The nodes that compute `result`, and their constants.
    """
    kind = "simulated" if weight.simulated else "quantized"
    stored = names.fresh(f"{result}_{kind}")
    dtype = weight.scale.dtype if weight.simulated else weight.integers.dtype
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
    op_types = ["QuantizeLinear"] * weight.simulated + ["DequantizeLinear"]
    steps = [helper.make_node(op_type, ["", *parameters], [""]) for op_type in op_types]
    for step in steps:
        step.attribute.extend(helper.make_attribute(key, number) for key, number in attributes.items())
    nodes: list[onnx.NodeProto] = []
    for step in (*steps, *after):
        node = onnx.NodeProto()
        node.CopyFrom(step)
        node.name = names.fresh(f"{result}_{step.op_type}")
        node.input[0] = stored
        is_last = len(nodes) + 1 == len(steps) + len(after)
        stored = node.output[0] = result if is_last else names.fresh(f"{result}_{step.op_type}_output")
        nodes.append(node)
    return nodes, tensors
