"""Who reads what in one graph."""

from dataclasses import dataclass

import onnx

from bnfold.onnx.proto.names import GraphLike, reads_from_outside, subgraphs


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """The readers of the values of a graph.

    Attributes:
        of: For each value the positions of the nodes that read it, None for a node of a nested graph.
        outputs: The outputs of the graph.
    """

    of: dict[str, list[int | None]]
    outputs: frozenset[str]


def readers_of(graph: GraphLike) -> Readers:
    """Finds them for a graph or a function."""
    of: dict[str, list[int | None]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            of.setdefault(name, []).append(index)
        for _, inner in subgraphs(node):
            for name in reads_from_outside(inner):
                of.setdefault(name, []).append(None)
    outputs = graph.output if isinstance(graph, onnx.FunctionProto) else [value.name for value in graph.output]
    return Readers(of, frozenset(outputs))
