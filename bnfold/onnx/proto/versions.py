"""Whether a node means the same in two opsets.

Most new versions of an operator only take more types, or have an attribute that is not given here. Which ones mean
something else, onnx's version converter knows: it leaves the others as they are.
"""

from functools import cache

import onnx
from onnx import defs, helper, version_converter

from bnfold.onnx.proto.names import DEFAULT_DOMAINS
from bnfold.onnx.proto.schemas import Schema, schema_of

_PLAIN = frozenset(getattr(onnx.AttributeProto, name) for name in "FLOAT INT STRING TENSOR FLOATS INTS STRINGS".split())

_CHANGED_UNSAID = frozenset("AveragePool MaxPool LpPool Hardmax OneHot".split())
"""What onnx leaves as it is although it changed: the last window of a rounded-up size, axes, negative indices."""


def means_the_same(node: onnx.NodeProto, one: int, other: int) -> bool:
    """Whether a node means the same in two versions of its domain, as far as that is known.

    Of an operator that has changed in between, that is not known of a node with graphs, with attributes that a
    function has from its caller, or with an input or output left out, nor in domains other than the default one.
    """
    if _since(node, one) == _since(node, other):
        return True
    if node.domain not in DEFAULT_DOMAINS or node.op_type in _CHANGED_UNSAID:
        return False
    if any(item.ref_attr_name for item in node.attribute) or not all((*node.input, *node.output)):
        return False
    earlier, later = sorted((one, other))
    if not (_fits(node, schema_of(node.op_type, earlier)) and _fits(node, schema_of(node.op_type, later))):
        return False
    attributes = sorted(node.attribute, key=lambda item: item.name)
    alone = onnx.NodeProto(op_type=node.op_type, attribute=attributes)
    alone.input.extend(f"input_{number}" for number in range(len(node.input)))
    alone.output.extend(f"output_{number}" for number in range(len(node.output)))
    return _stays(alone.SerializeToString(deterministic=True), earlier, later)


def _since(node: onnx.NodeProto, version: int) -> int:
    """Since which version of its domain an operator is what it is in a version; 0 if it is not known there."""
    known = defs.has(node.op_type, version, node.domain)
    return defs.get_schema(node.op_type, version, node.domain).since_version if known else 0


def _fits(node: onnx.NodeProto, schema: Schema | None) -> bool:
    """Whether a node has the form of an operator."""
    given = {item.name: item.type for item in node.attribute}
    return (
        schema is not None
        and schema.inputs[0] <= len(node.input) <= schema.inputs[1]
        and schema.outputs[0] <= len(node.output) <= schema.outputs[1]
        and given.keys() >= {*schema.required}
        and all(kind in _PLAIN and schema.attributes.get(name) == kind for name, kind in given.items())
    )


@cache
def _stays(node: bytes, earlier: int, later: int) -> bool:
    """Whether onnx leaves a serialised node as it is from one opset to a later one."""
    before = onnx.NodeProto.FromString(node)
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
        for names in (before.input, before.output)
    )
    graph = helper.make_graph([before], "node", inputs, outputs)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", earlier)])
    try:
        converted = version_converter.convert_version(model, later).graph
    except (RuntimeError, version_converter.ConvertError):
        return False
    after = [
        onnx.NodeProto(input=n.input, output=n.output, op_type=n.op_type, attribute=n.attribute) for n in converted.node
    ]
    for found in after:
        found.attribute.sort(key=lambda item: item.name)
    return not converted.initializer and [found.SerializeToString(deterministic=True) for found in after] == [node]
