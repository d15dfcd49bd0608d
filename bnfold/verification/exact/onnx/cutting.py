"""Cutting one region out of the original, with all that it needs to run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx

from bnfold.onnx.proto.names import defined_names, subgraphs
from bnfold.verification.exact.judging import NotCutError
from bnfold.verification.onnx.sites.emitter import Emitter


class Cut:
    """A region that is being put together.

    Args:
        emitter: Gives fresh names.
        nodes: The original's nodes.
        makers: Value of the original → number of the node that computes it.
        stored: Initializers of the original by name.
        is_known: Whether a computed value is no activation, and so computed here too.
    """

    def __init__(
        self,
        emitter: Emitter,
        nodes: Sequence[onnx.NodeProto],
        makers: Mapping[str, int],
        stored: Mapping[str, onnx.TensorProto],
        is_known: Callable[[str], bool],
    ) -> None:
        self._emitter, self._originals = emitter, nodes
        self._makers, self._stored, self._is_known = makers, stored, is_known
        self._given: dict[str, str] = {}
        self._emitted: dict[tuple[int, tuple[str, ...]], list[str]] = {}
        self._tensors: dict[int, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.entries: dict[str, str] = {}
        self.originals: dict[int, onnx.NodeProto] = {}

    def emit(self, node: onnx.NodeProto, values: Mapping[str, str]) -> list[str]:
        """A node that reads other values; the names of its outputs. The same node on the same values stands there once.

        Args:
            node: The node.
            values: For each value that it reads, in nested graphs too, what that is called here.
        """
        key = (id(node), tuple(values.values()))
        known = self._emitted.get(key)
        if known is None:
            known = self._emitter.like(node, [values.get(name, "") for name in node.input])
            copy = self._emitter.nodes.pop()
            for _, graph in subgraphs(copy):
                _rename(graph, values)
            self._emitted[key] = known
            self.nodes.append(copy)
        return known

    def stored(self, tensor: onnx.TensorProto) -> str:
        """A constant of either model."""
        name = self._tensors.get(id(tensor))
        if name is None:
            name = self._tensors[id(tensor)] = self._emitter.fresh(tensor.name)
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = name
            self.tensors.append(copy)
        return name

    def given(self, name: str) -> str:
        """A value of the original that both sides read: an entry, or what is known without data."""
        if name in self._given:
            return self._given[name]
        if name in self._stored:
            self._given[name] = self.stored(self._stored[name])
        elif name in self._makers and self._is_known(name):
            inside = self._slice(name, lambda read: not (read in self._makers and self._is_known(read)))
            self._emit_slice(inside, self._given)
        else:
            self._given[name] = self.entries[name] = self._emitter.fresh(name)
        return self._given[name]

    def derive(self, end: str, cut: Collection[str], shared: Collection[str]) -> None:
        """Lets values that the folded side begins with be computed from those that the original alone begins with.

        They would be fed with other numbers each: x and Identity(x), of which the original adds both up.

        Args:
            end: What is computed.
            cut: Values where the folded side begins.
            shared: Values of the original that the folded model has too.
        """
        slice_ = self._slice(end, lambda name: self._is_outside(name, cut, shared))
        read = {name for index in slice_ for name in reads_of(self._originals[index])}
        more = {name for name in read if self._is_outside(name, cut, shared) and not self._is_settled(name, cut)}
        for name in sorted(cut, key=lambda name: self._makers.get(name, -1)) if more else ():
            others = more.union(cut) - {name}
            if name in self._given or not more.intersection(self._origins(name, others) or ()):
                continue
            inside = self._slice(name, lambda read: self._is_settled(read, others))  # noqa: B023 - it is called here
            self.originals |= {index: self._originals[index] for index in inside}
            self._emit_slice(inside, self._given)

    def original_value(self, end: str, cut: Collection[str], shared: Collection[str]) -> str:
        """The original's own computation of a value.

        Args:
            end: The value.
            cut: Values where it begins: those that the folded side begins with.
            shared: Values of the original that the folded model has too. One that does not follow from `cut` is one
                more entry.
        """

        def outside(name: str) -> bool:
            return self._is_outside(name, cut, shared)

        values: dict[str, str] = {}
        slice_ = self._slice(end, outside)
        self.originals |= {index: self._originals[index] for index in slice_}
        self._emit_slice(slice_, values, outside)
        return values[end]

    def _is_outside(self, name: str, cut: Collection[str], shared: Collection[str]) -> bool:
        if name not in self._makers or self._is_settled(name, cut):
            return True
        return name in shared and self._origins(name, cut) is None

    def _is_settled(self, name: str, cut: Collection[str]) -> bool:
        """Whether nothing has to be fed for a value besides `cut`."""
        return name in cut or name in self._stored or self._is_known(name)

    def _slice(self, end: str, outside: Callable[[str], bool]) -> list[int]:
        """Numbers of the original's nodes that lead to a value, from values outside."""
        found: set[int] = set()
        if end not in self._makers:
            raise NotCutError(f"{end!r} is computed by nothing in the original")
        open_ = [self._makers[end]]
        while open_:
            index = open_.pop()
            if index not in found:
                found.add(index)
                reads = reads_of(self._originals[index])
                open_ += [self._makers[name] for name in reads if not outside(name)]
        return sorted(found)

    def _emit_slice(
        self, indices: Sequence[int], values: dict[str, str], outside: Callable[[str], bool] | None = None
    ) -> None:
        for index in indices:
            node = self._originals[index]
            inner = [name for name in reads_of(node) if name in values and not (outside and outside(name))]
            read = {name: values[name] if name in inner else self.given(name) for name in reads_of(node)}
            values |= dict(zip(filter(None, node.output), filter(None, self.emit(node, read)), strict=True))

    def _origins(self, name: str, cut: Collection[str]) -> set[str] | None:
        """The values of `cut` that a value is computed from, besides constants; None if it is from anything else."""
        seen: set[str] = set()
        open_ = [name]
        while open_:
            value = open_.pop()
            if value in seen:
                continue
            seen.add(value)
            if self._is_settled(value, cut):
                continue
            if value not in self._makers:
                return None
            open_ += reads_of(self._originals[self._makers[value]])
        return seen.intersection(cut)


def reads_of(node: onnx.NodeProto) -> list[str]:
    """Every value of its own graph that a node reads, those read inside nested graphs last; each once."""
    names = [name for name in node.input if name]
    for _, graph in subgraphs(node):
        names += _outer_names(graph)
    return [*dict.fromkeys(names)]


def _outer_names(graph: onnx.GraphProto) -> list[str]:
    own = set(defined_names(graph))
    names = [name for node in graph.node for name in reads_of(node)]
    names += [value.name for value in graph.output]
    return [name for name in names if name and name not in own]


def _rename(graph: onnx.GraphProto, values: Mapping[str, str]) -> None:
    """Lets a nested graph read values under other names."""
    own = set(defined_names(graph))
    inner = {name: new for name, new in values.items() if name not in own}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in inner:
                node.input[position] = inner[name]
        for _, deeper in subgraphs(node):
            _rename(deeper, inner)
    for value in graph.output:
        value.name = inner.get(value.name, value.name)
