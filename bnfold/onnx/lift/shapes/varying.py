"""Values whose rank is another one from run to run, whatever a file declares of them.

A Squeeze without axes takes away an axis that happens to have size 1, the branches of an If need not agree, and what
goes round in a Loop may grow axes. What is declared is true of one run, and so is what is declared behind it.
"""

import onnx

from bnfold.onnx.lift.types import ValueTypes, shape_in, types_by_graph
from bnfold.onnx.proto.names import find_attribute, is_standard, nested

_BY_WHAT_IS_INSIDE = ("If", "Loop", "OptionalGetElement", "Scan", "SequenceAt")
"""Operators whose results may have any rank, as far as their inputs tell."""


def values_of_varying_rank(inferred: onnx.GraphProto) -> frozenset[str]:
    """The values whose rank inference does not know although it knows all that there is to know.

    Args:
        inferred: The main graph of a skeleton after inference, its nodes in the order in which they run.
    """
    found: set[str] = set()
    for graph, types in zip(nested(inferred), types_by_graph(inferred), strict=True):
        for node in graph.node:
            unknown = {name for name in node.output if name and shape_in(types, name) is None}
            if not found.isdisjoint(node.input) or _decides_at_run_time(node, types):
                found |= unknown
    return frozenset(found)


def _decides_at_run_time(node: onnx.NodeProto, types: ValueTypes) -> bool:
    if is_standard(node, "Squeeze"):
        has_axes = any(node.input[1:]) or find_attribute(node, "axes") is not None
        return not has_axes and shape_in(types, node.input[0]) is not None
    return is_standard(node, *_BY_WHAT_IS_INSIDE)
