"""Small ONNX files."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_bn(path, *, bns=1, relu_before=False, weight_channels=3):
    """A model of Conv → BN (or Relu → BN, which stays), saved."""
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.standard_normal((4, weight_channels, 3, 3)).astype(np.float32), "w")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv")]
    value = "c"
    if relu_before:
        nodes.append(helper.make_node("Relu", ["c"], ["r"], name="relu"))
        value = "r"
    for index in range(bns):
        names = [f"{part}{index}" for part in ("gamma", "beta", "mean", "var")]
        tensors += [numpy_helper.from_array(rng.uniform(0.5, 1.5, 4).astype(np.float32), name) for name in names]
        output = "y" if index == bns - 1 else f"b{index}"
        nodes.append(helper.make_node("BatchNormalization", [value, *names], [output], name=f"bn{index}"))
        value = output
    if bns == 0:
        nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
