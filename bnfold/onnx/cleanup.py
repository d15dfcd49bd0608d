"""Removes the constants that an edit has left without a reader, and nothing else."""

from collections import Counter
from collections.abc import Iterable, MutableSequence, Sequence
from typing import TypeVar

import onnx

from bnfold.onnx.constants import EXPRESSIONS
from bnfold.onnx.names import GraphLike, is_standard, nested

Item = TypeVar("Item")


def remove_unused(model: onnx.ModelProto, root: GraphLike, released: Iterable[str]) -> None:
    """Removes constants that nothing reads any more.

    Args:
        model: The model.
        root: Its main graph or one of its functions, whose nested graphs are looked at too.
        released: The names of the constants that lost a reader. Others stay, even if nothing ever read them.
    """
    graphs = list(nested(root))
    uses = Counter(name for graph in graphs for node in graph.node for name in node.input)
    uses.update(name for graph in graphs for name in _output_names(graph))
    producers = {
        name: (position, index)
        for position, graph in enumerate(graphs)
        for index, node in enumerate(graph.node)
        if is_standard(node, "Constant", *EXPRESSIONS)
        for name in node.output
    }
    unused: set[str] = set()
    dead: set[tuple[int, int]] = set()
    waiting = list(released)
    while waiting:
        name = waiting.pop()
        if not name or uses[name]:
            continue
        unused.add(name)
        place = producers.get(name)
        if place is None or place in dead:
            continue
        node = graphs[place[0]].node[place[1]]
        if any(uses[output] for output in node.output):
            continue
        dead.add(place)
        uses.subtract(node.input)
        waiting.extend(node.input)
    for position, index in sorted(dead, reverse=True):
        del graphs[position].node[index]
    for graph in graphs:
        forget(graph, unused, keep_inputs=model.ir_version >= 4)


def forget(graph: GraphLike, names: set[str], *, keep_inputs: bool) -> None:
    """Removes what a graph declares about values that are gone.

    Args:
        graph: The graph or function.
        names: Names that nothing in it reads or computes any more.
        keep_inputs: Whether an initializer that is also an input of the graph stays: from IR version 4 on it is part
            of the model's interface, before that every initializer had to be listed so.
    """
    _delete(graph.value_info, [item.name in names for item in graph.value_info])
    if not isinstance(graph, onnx.GraphProto):
        return
    inputs = {value.name for value in graph.input}
    held = {tensor.name for tensor in graph.initializer}
    gone = (names & held) - (inputs if keep_inputs else set())
    _delete(graph.initializer, [tensor.name in gone for tensor in graph.initializer])
    _delete(graph.input, [value.name in gone for value in graph.input])
    annotations = graph.quantization_annotation
    _delete(annotations, [item.tensor_name in names for item in annotations])


def _delete(field: MutableSequence[Item], gone: Sequence[bool]) -> None:
    for index in reversed(range(len(field))):
        if gone[index]:
            del field[index]


def _output_names(graph: GraphLike) -> list[str]:
    if isinstance(graph, onnx.FunctionProto):
        return list(graph.output)
    return [value.name for value in graph.output]
