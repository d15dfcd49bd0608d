"""What the standard says of its operators: how many inputs and outputs they have, and which attributes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import defs

from bnfold.onnx.proto.names import DEFAULT_DOMAINS

_NUMBERS: Mapping[str, int] = dict(onnx.AttributeProto.AttributeType.items())


@dataclass(frozen=True, slots=True)
class Schema:
    """The form of an operator of the default domain.

    Attributes:
        inputs: The least and the largest number of inputs.
        outputs: The same of outputs.
        attributes: The AttributeProto.AttributeType of each attribute.
        required: The attributes that have no default.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: Mapping[str, int]
    required: tuple[str, ...]


@cache
def schema_of(op_type: str, opset: int) -> Schema | None:
    """The operator of that name in an opset of the default domain; None if there is none."""
    try:
        found = defs.get_schema(op_type, opset, "")
    except (defs.SchemaError, TypeError):  # a number may be larger than that of any opset
        return None
    if found.deprecated:
        return None
    return Schema(
        (found.min_input, found.max_input),
        (found.min_output, found.max_output),
        {name: _NUMBERS[str(given.type).rpartition(".")[2]] for name, given in found.attributes.items()},
        tuple(name for name, given in found.attributes.items() if given.required),
    )


def foreign_attribute(node: onnx.NodeProto, opset: int) -> str | None:
    """An attribute that the operator of a node does not have in an opset; None if it has them all, or is not known."""
    schema = schema_of(node.op_type, opset) if node.domain in DEFAULT_DOMAINS else None
    if schema is None:
        return None
    return next((given.name for given in node.attribute if given.name not in schema.attributes), None)
