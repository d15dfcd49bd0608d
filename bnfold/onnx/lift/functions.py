"""Model-local functions whose weights are arguments.

A function that carries its own weights is folded where it stands. One that takes them as arguments (torch's exporters
have written BatchNormalization itself as such a function) holds different weights at each call: nothing in its body is
constant. Such functions are inlined, which every runtime does anyway before it runs them; the others stay.
"""

import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.constants import EXPRESSIONS
from bnfold.onnx.proto.inlining import inlined as without_calls
from bnfold.onnx.proto.inlining import is_operator
from bnfold.onnx.proto.names import GraphLike, all_graphs, is_standard, nested

_WITH_WEIGHTS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


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
        try:
            inlined.proto = without_calls(inlined.proto, wanted, exclude=False)
        except RuntimeError:
            # onnx's inliner does not mix opsets; what is inside such a function stays, with the reason.
            return model
        model = inlined
        wanted = _taking_weights(model.proto)
    return model


def _taking_weights(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    constant = _constants_of_callers(proto)
    found = []
    for function in proto.functions:
        identifier = (function.domain, function.name)
        if is_operator(proto, *identifier):
            continue
        positions = constant.get(identifier, set())
        given = {name for position, name in enumerate(function.input) if position in positions}
        if any(_takes_weights(graph, given) for graph in nested(function)):
            found.append(identifier)
    return found


def _constants_of_callers(proto: onnx.ModelProto) -> dict[tuple[str, str], set[int]]:
    """For each function that is called: the positions of its inputs that some caller gives a constant."""
    positions: dict[tuple[str, str], set[int]] = {}
    held = {tensor.name for tensor in proto.graph.initializer}
    for graph in all_graphs(proto):
        known = held | {
            name for node in graph.node if is_standard(node, "Constant", *EXPRESSIONS) for name in node.output
        }
        known |= {tensor.name for tensor in graph.initializer} if isinstance(graph, onnx.GraphProto) else {*graph.input}
        for node in graph.node:
            given = {position for position, name in enumerate(node.input) if name in known}
            positions.setdefault((node.domain, node.op_type), set()).update(given)
    return positions


def _takes_weights(graph: GraphLike, given: set[str]) -> bool:
    for node in graph.node:
        if not is_standard(node, *_WITH_WEIGHTS):
            continue
        weights = node.input if node.op_type in ("MatMul", "Einsum") else node.input[1:]
        if given.intersection(weights) or any(attribute.ref_attr_name for attribute in node.attribute):
            return True
    return False
