"""Linear maps in the forms that onnxruntime writes into the models that it has optimised.

FusedConv is activation(Conv(x, W, b) + z), with an activation and a z that may be absent: what happens before its Conv
can be folded into it, and what passes the activation. The others have weights in an order of the machine that they were
written on, or flags of their own; the model that they were made from is the one to fold.
"""

import onnx

from bnfold.onnx.proto.names import label
from bnfold.reasons import Stop, StopCode

_DOMAIN = "com.microsoft"
_MAPS = {
    _DOMAIN: frozenset(
        "FusedConv FusedGemm FusedMatMul FusedMatMulActivation NhwcConv NhwcFusedConv TransposeMatMul".split()
    ),
    "com.microsoft.nchwc": frozenset({"Conv"}),
}


def is_runtime_map(node: onnx.NodeProto) -> bool:
    """Whether a node is a linear map that onnxruntime wrote."""
    return node.op_type in _MAPS.get(node.domain, ())


def fused_convolution(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The Conv in a FusedConv; None for any other node."""
    if node.domain != _DOMAIN or node.op_type != "FusedConv":
        return None
    conv = onnx.NodeProto(op_type="Conv", name=node.name, input=node.input[:3], output=node.output)
    conv.attribute.extend(given for given in node.attribute if not given.name.startswith("activation"))
    return conv


def runtime_map_stop(node: onnx.NodeProto) -> Stop:
    """Why such a map stays as it is."""
    form = f"{node.op_type} '{label(node)}' is a form of a map that onnxruntime writes for itself"
    return Stop(StopCode.NO_RULE, f"{form}; fold the model that it was made from")
