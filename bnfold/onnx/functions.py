"""Model-local functions whose weights are arguments.

A function that carries its own weights is folded where it stands. One that takes them as arguments (torch's exporters
have written BatchNormalization itself as such a function) holds different weights at each call: nothing in its body is
constant. Such functions are inlined, which every runtime does anyway before it runs them; the others stay.
"""

import onnx
from onnx import inliner

from bnfold.onnx.load import OnnxModel
from bnfold.onnx.names import all_graphs, is_standard, nested

_WITH_WEIGHTS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")


def inline_weight_arguments(model: OnnxModel) -> OnnxModel:
    """Inlines the functions whose BatchNorms or linear maps take weights or attributes from the caller.

    Args:
        model: A model; it is not changed.

    Returns:
        The model itself if there is nothing to inline, else a copy. The result of a model without BN is itself.
    """
    if not any(is_standard(node, "BatchNormalization") for graph in all_graphs(model.proto) for node in graph.node):
        return model
    wanted = _taking_weights(model.proto)
    while wanted:
        inlined = model.copy()
        inlined.proto = inliner.inline_selected_functions(inlined.proto, wanted)
        model = inlined
        wanted = _taking_weights(model.proto)
    return model


def _taking_weights(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(function.domain, function.name) for function in proto.functions if _takes_weights(function)]


def _takes_weights(function: onnx.FunctionProto) -> bool:
    given = set(function.input)
    for graph in nested(function):
        for node in graph.node:
            if not is_standard(node, *_WITH_WEIGHTS):
                continue
            if any(attribute.ref_attr_name for attribute in node.attribute) or given.intersection(node.input[1:]):
                return True
    return False
