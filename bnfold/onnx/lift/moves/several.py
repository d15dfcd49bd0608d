"""Operators that affines move past to some of several inputs: sums at places that an index names, and choices."""

from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from bnfold.graph import Chosen, Op, Scattered
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.moves.node_view import Lifted
from bnfold.onnx.lift.types import ValueTypes, shape_in
from bnfold.onnx.proto.names import find_attribute, int_attribute, is_standard, string_attribute


@dataclass(frozen=True, slots=True)
class Several:
    """The row of such an operator.

    Attributes:
        row: The row, and what it needs to know.
        reads: The inputs that affines move to, in the order of the row.
    """

    row: Lifted
    reads: tuple[str, ...]


def lift_several(node: onnx.NodeProto, constants: Constants, types: ValueTypes) -> Several | None:
    """Says which row a node has that is a choice or a sum at places; None for any other.

    Args:
        node: The node.
        constants: The constants of its graph.
        types: What is known about its values.
    """
    if any(given.ref_attr_name for given in node.attribute):
        return None
    return _choice(node, constants) or _scatter(node, constants, types)


def _choice(node: onnx.NodeProto, constants: Constants) -> Several | None:
    """Max and Min of values, and Where, whose condition no affine changes."""
    if is_standard(node, "Max", "Min") and len(node.input) > 1:
        data, ordered = (*node.input,), True
    elif is_standard(node, "Where") and len(node.input) == 3:
        data, ordered = (*node.input[1:],), False
    else:
        return None
    return None if any(map(constants.is_constant, data)) else Several((Op.CHOICE, Chosen(ordered)), data)


def _scatter(node: onnx.NodeProto, constants: Constants, types: ValueTypes) -> Several | None:
    """A ScatterElements or ScatterND that adds: affines move to the base, unless it is zero, and to the updates."""
    if not is_standard(node, "ScatterElements", "ScatterND") or len(node.input) != 3 or not node.output:
        return None
    if string_attribute(node, "reduction", "none") != "add":
        return None
    base, indices, updates = node.input
    data, places = types.get(node.output[0], types.get(base, (None, "")))[0], shape_in(types, indices)
    if not data or not places or constants.is_constant(updates):
        return None
    if node.op_type == "ScatterElements":
        scattered = Scattered(frozenset({int_attribute(node, "axis", 0) % len(data)}))
    else:
        depth = places[-1]
        if not isinstance(depth, int) or not 0 < depth <= len(data):
            return None
        scattered = Scattered(frozenset(range(depth)), leading=len(places) - 1)
    if _is_zero(base, constants):
        return Several((Op.SCATTER, scattered), (updates,))
    return None if constants.is_constant(base) else Several((Op.SCATTER, scattered), (base, updates))


def _is_zero(name: str, constants: Constants) -> bool:
    """Whether a value is zero everywhere, whatever its shape is."""
    found, node = constants.find(name), constants.producer(name)
    if found is not None:
        return not found.overridable and not found.read().any()
    if node is not None and is_standard(node, "ConstantOfShape"):
        value = find_attribute(node, "value")
        return value is None or not numpy_helper.to_array(value.t).any()
    return node is not None and is_standard(node, "Expand") and _is_zero(node.input[0], constants)
