"""Skeletons in the words in which onnx's inference gives the shapes that runtimes compute.

Operators of other domains whose results have the type and shape of a standard one are written as that. Some standard
ones are read in two ways: before opset 11 nobody had to understand a negative axis of Squeeze and Unsqueeze, and
onnxruntime does; an empty list of axes is to it all axes of size 1.
"""

from collections.abc import Mapping
from math import prod

import onnx
from onnx import helper

from bnfold.onnx.proto.names import (
    GraphLike,
    find_attribute,
    int_attribute,
    ints_attribute,
    is_standard,
    nested,
    opset_version,
    string_attribute,
)

_ELEMENTWISE_ELSEWHERE = frozenset(
    {
        *(("com.microsoft", name) for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
        *(("ai.onnx.ml", name) for name in ("Binarizer", "Imputer")),
    }
)
_SCALERS = frozenset({("ai.onnx.ml", "Scaler"), ("ai.onnx.ml", "Normalizer")})
"""Elementwise too, and their result is float32 whatever they read."""
_FUSED_MAPS = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Operators of the domain `com.microsoft` that are one of the standard, and then an activation."""

_OWN = "bnfold"
"""The domain of what stands in a skeleton for operators that onnx's inference misreads."""
_KNOWS_NEGATIVE_AXES = 11
_AXES_ARE_INPUTS = 13


def read_as_run(proto: onnx.ModelProto) -> None:
    """Puts operators that onnx's inference knows in the place of some that it does not, or reads in another way.

    Args:
        proto: A skeleton for shape inference, normalised; what it computes changes.
    """
    local = {(function.domain, function.name) for function in proto.functions}
    for scope in (proto, *proto.functions):
        main = scope.graph if isinstance(scope, onnx.ModelProto) else scope
        nodes = [node for graph in nested(main) for node in graph.node if (node.domain, node.op_type) not in local]
        opset, empty = opset_version(scope.opset_import), _empty_constants(main)
        for node in nodes:
            _read_node(proto, node, opset, empty)
        if any(node.domain == _OWN for node in nodes):
            scope.opset_import.append(helper.make_opsetid(_OWN, 1))


def _read_node(proto: onnx.ModelProto, node: onnx.NodeProto, opset: int, empty: frozenset[str]) -> None:
    key = (node.domain, node.op_type)
    if key in _ELEMENTWISE_ELSEWHERE:
        _become(node, "Identity", 1, {})
    elif key in _SCALERS:
        _become(node, "Cast", 1, {"to": onnx.TensorProto.FLOAT})
    elif node.domain == "com.microsoft" and node.op_type in _FUSED_MAPS:
        kept = [given for given in node.attribute if not given.name.startswith("activation")]
        _become(node, _FUSED_MAPS[node.op_type], 3, {})
        node.attribute.extend(kept)
    elif is_standard(node, "Cast") and int_attribute(node, "to", 0) == onnx.TensorProto.BOOL:
        # It would be followed as if the numbers stayed what they are.
        _become(node, "Equal", 1, {})
        node.input.append(node.input[0])
    elif _has_odd_axes(node, opset, empty):
        _read_axes(proto, node)
    elif _is_read_in_two_ways(node):
        node.domain = _OWN


def own_functions(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """The functions of a skeleton that stand for single operators."""
    return [(function.domain, function.name) for function in proto.functions if function.domain == _OWN]


def _is_read_in_two_ways(node: onnx.NodeProto) -> bool:
    """Whether the standard and onnxruntime give the result of a node different shapes; nothing is known of it then."""
    if is_standard(node, "SplitToSequence"):
        return not int_attribute(node, "keepdims", 1) and len(node.input) > 1 and bool(node.input[1])
    keeps_aspect = string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    return is_standard(node, "Resize") and keeps_aspect and any(axis < 0 for axis in ints_attribute(node, "axes"))


def misreads_ranks(proto: onnx.ModelProto) -> bool:
    """Whether onnx's inference, which onnxruntime has in it too, finds a wrong rank behind a Squeeze or Unsqueeze.

    The model runs all the same, but no convolution is taken where that rank is too small.
    """
    for scope in (proto, *proto.functions):
        main = scope.graph if isinstance(scope, onnx.ModelProto) else scope
        opset, empty = opset_version(scope.opset_import), _empty_constants(main)
        if any(_has_odd_axes(node, opset, empty) for graph in nested(main) for node in graph.node):
            return True
    return False


def _has_odd_axes(node: onnx.NodeProto, opset: int, empty: frozenset[str]) -> bool:
    if not is_standard(node, "Squeeze", "Unsqueeze"):
        return False
    given = find_attribute(node, "axes")
    if given is not None and given.ints:
        return opset < _KNOWS_NEGATIVE_AXES and min(given.ints) < 0
    return node.op_type == "Squeeze" and (given is not None or (len(node.input) > 1 and node.input[1] in empty))


def _read_axes(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Writes a Squeeze without axes as such, and calls a function of an opset that knows negative axes."""
    axes = ints_attribute(node, "axes")
    del node.attribute[:]
    if not axes:
        del node.input[1:]
        return
    name = f"{node.op_type}({[*axes]})"
    if (_OWN, name) not in own_functions(proto):
        body = [
            helper.make_node("Constant", [], ["axes"], value_ints=axes),
            helper.make_node(node.op_type, ["data", "axes"], ["result"]),
        ]
        imports = [helper.make_opsetid("", _AXES_ARE_INPUTS)]
        proto.functions.append(helper.make_function(_OWN, name, ["data"], ["result"], body, imports))
    node.op_type, node.domain = name, _OWN


def _empty_constants(main: GraphLike) -> frozenset[str]:
    """The names of constants without elements."""
    found: set[str] = set()
    for graph in nested(main):
        if isinstance(graph, onnx.GraphProto):
            found.update(tensor.name for tensor in graph.initializer if not prod(tensor.dims))
        for node in graph.node:
            for given in node.attribute if is_standard(node, "Constant") else ():
                if not {"value": prod(given.t.dims), "value_ints": len(given.ints)}.get(given.name, 1):
                    found.update(node.output)
    return frozenset(found)


def _become(node: onnx.NodeProto, op_type: str, inputs: int, attributes: Mapping[str, int]) -> None:
    node.op_type, node.domain = op_type, ""
    del node.input[inputs:], node.output[1:], node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
