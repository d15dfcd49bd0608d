"""Constants that decide on a shape or a branch instead of entering the arithmetic.

Moving the scale of a Resize by one unit in the last place can change the size of its output; moving an
exponent of 2 makes NaN of negative numbers. No rounding error does that, so those are not moved when rounding
noise is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from bnfold.onnx.proto.names import GraphLike, is_standard, nested, subgraphs

_DECIDING_INPUTS: dict[str, tuple[int, ...]] = {
    "Resize": (1, 2),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Pow": (1,),
    "Mod": (0, 1),
    "Equal": (0, 1),
    "Less": (0, 1),
    "LessOrEqual": (0, 1),
    "Greater": (0, 1),
    "GreaterOrEqual": (0, 1),
    "OneHot": (0, 1, 2),
    "NonMaxSuppression": (2, 3, 4),
}


@dataclass(frozen=True, slots=True)
class Deciding:
    """Names of values of one graph, its subgraphs included.

    Attributes:
        by_operator: Read by an operator's deciding input, directly or through constant expressions.
        by_shapes: Read by arithmetic on shapes.
    """

    by_operator: frozenset[str]
    by_shapes: frozenset[str]

    def decides(self, name: str, rank: int) -> bool:
        """Whether the constant `name` decides; shape arithmetic knows only scalars and vectors."""
        return name in self.by_operator or (name in self.by_shapes and rank <= 1)


def deciding_values(graph: GraphLike) -> Deciding:
    """Find them in a graph or function."""
    nodes = nodes_inside_out(graph)
    constant, shaped = _constant_and_shaped(graph, nodes)
    by_operator: set[str] = set()
    by_shapes: set[str] = set()
    for node in reversed(nodes):
        reads = [name for name in node.input if name]
        by_operator.update(
            node.input[index]
            for index in _DECIDING_INPUTS.get(node.op_type, ())
            if is_standard(node, node.op_type) and index < len(node.input)
        )
        if any(name in constant and name in by_operator for name in node.output):
            by_operator.update(reads)
        if any(name in shaped or (name in constant and name in by_shapes) for name in node.output):
            by_shapes.update(reads)
    return Deciding(frozenset(by_operator), frozenset(by_shapes))


def made_of_shapes(graph: GraphLike) -> set[str]:
    """The computed values that are known before data is: made of constants, and of shapes of activations."""
    constant, shaped = _constant_and_shaped(graph, nodes_inside_out(graph))
    return constant | shaped


def nodes_inside_out(graph: GraphLike) -> list[onnx.NodeProto]:
    """The nodes of a graph in their order, those of a subgraph before the node that holds it."""

    def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            for _, inner in subgraphs(node):
                yield from walk(inner.node)
            yield node

    return list(walk(graph.node))


def _constant_and_shaped(graph: GraphLike, nodes: list[onnx.NodeProto]) -> tuple[set[str], set[str]]:
    """Values made of constants alone, and values made of shapes of activations and constants."""
    constant = {
        tensor.name for inner in nested(graph) if isinstance(inner, onnx.GraphProto) for tensor in inner.initializer
    }
    shaped: set[str] = set()
    for node in nodes:
        # Of its second input, CastLike reads the type alone.
        reads = [name for name in (node.input[:1] if is_standard(node, "CastLike") else node.input) if name]
        if is_standard(node, "Constant") or (reads and all(name in constant for name in reads)):
            constant.update(node.output)
        elif is_standard(node, "Shape", "Size") or (
            reads and all(name in constant or name in shaped for name in reads)
        ):
            shaped.update(node.output)
    return constant, shaped
