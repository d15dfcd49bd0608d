"""Removes the constants that an edit has left without a reader, and nothing else."""

from collections import Counter, defaultdict
from collections.abc import Iterable, MutableSequence, Sequence
from typing import TypeVar

import onnx

from bnfold.onnx.lift.constants import EXPRESSIONS
from bnfold.onnx.proto.names import GraphLike, defined_names, is_standard, subgraphs

Item = TypeVar("Item")


def remove_unused(model: onnx.ModelProto, root: GraphLike, released: Iterable[tuple[GraphLike, str]]) -> None:
    """Removes constants that nothing reads any more.

    Args:
        model: The model.
        root: Its main graph or one of its functions, whose nested graphs are looked at too.
        released: The constants that lost a reader: the graph of the reader, and the name. Others stay, even if nothing
            ever read them.
    """
    names = _Names(root)
    uses: Counter[_Place] = Counter()
    producers: dict[_Place, int] = {}
    for position, graph in enumerate(names.graphs):
        uses.update(names.place(position, name) for node in graph.node for name in node.input)
        uses.update(names.place(position, name) for name in _output_names(graph))
        for index, node in enumerate(graph.node):
            if is_standard(node, "Constant", *EXPRESSIONS):
                producers.update({(position, name): index for name in node.output})
    unused: dict[int, set[str]] = defaultdict(set)
    dead: dict[int, set[int]] = defaultdict(set)
    waiting = [names.place(names.position(graph), name) for graph, name in released]
    while waiting:
        place = waiting.pop()
        position, name = place
        if not name or name in unused[position] or uses[place]:
            continue
        unused[position].add(name)
        if place not in producers:
            continue
        dead[position].add(producers[place])
        freed = [names.place(position, read) for read in names.graphs[position].node[producers[place]].input]
        uses.subtract(freed)
        waiting += freed
    for position, graph in enumerate(names.graphs):
        _delete(graph.node, [index in dead[position] for index in range(len(graph.node))])
        forget(graph, unused[position], keep_inputs=model.ir_version >= 4)


_Place = tuple[int, str]
"""A value: the position of the graph that defines it, and its name there."""


class _Names:
    """Which graph a name belongs to: branches may use one name for different values."""

    def __init__(self, root: GraphLike) -> None:
        self.graphs: list[GraphLike] = []
        self._parents: list[int] = []
        self._defined: list[set[str]] = []
        self._add(root, -1)
        self._positions = {id(graph): position for position, graph in enumerate(self.graphs)}

    def _add(self, graph: GraphLike, parent: int) -> None:
        position = len(self.graphs)
        self.graphs.append(graph)
        self._parents.append(parent)
        self._defined.append({*defined_names(graph)})
        for node in graph.node:
            for _, inner in subgraphs(node):
                self._add(inner, position)

    def position(self, graph: GraphLike) -> int:
        return self._positions[id(graph)]

    def place(self, position: int, name: str) -> _Place:
        while name not in self._defined[position] and self._parents[position] >= 0:
            position = self._parents[position]
        return position, name


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
