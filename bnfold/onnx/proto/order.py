"""The order in which the nodes of a graph can run.

The standard asks for nodes in that order; runtimes sort them, and converters append nodes in front of which others
stand.
"""

from collections.abc import Iterator

import onnx

from bnfold.errors import ModelLoadError
from bnfold.onnx.proto.names import GraphLike, defined_names, label, subgraphs


def execution_order(graph: GraphLike) -> list[int]:
    """Positions of the nodes of a graph, each after those that it reads from; the order of the file where that is one.

    Args:
        graph: A graph or function.

    Raises:
        ModelLoadError: A value depends on itself.
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed = [[makers[name] for name in outer_reads(node) if name in makers] for node in graph.node]
    if all(before < index for index, wanted in enumerate(needed) for before in wanted):
        return [*range(len(needed))]
    order: list[int] = []
    done, entered = set[int](), set[int]()
    for start in range(len(needed)):
        stack = [start]
        while stack:
            index = stack[-1]
            waiting = [] if index in done else [before for before in needed[index] if before not in done]
            if not waiting:
                stack.pop()
                if index not in done:
                    done.add(index)
                    order.append(index)
                continue
            if index in entered:
                node = graph.node[index]
                message = f"'{next(iter(node.output), '')}', a result of {node.op_type} '{label(node)}', needs itself"
                raise ModelLoadError(message, hint="Nothing can compute such a model; export it again.")
            entered.add(index)
            stack += reversed(waiting)
    return order


def outer_reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads: its inputs, and what the graphs in its attributes take from around them."""
    yield from filter(None, node.input)
    for _, graph in subgraphs(node):
        yield from captured(graph)


def captured(graph: onnx.GraphProto) -> set[str]:
    """The names that a nested graph takes from around it; those that it defines itself are its own."""
    read = {name for node in graph.node for name in outer_reads(node)}
    read.update(value.name for value in graph.output)
    return read.difference(defined_names(graph))
