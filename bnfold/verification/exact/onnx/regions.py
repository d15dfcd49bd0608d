"""The regions that a fold changed, each cut out of both models as one small model with the same inputs.

    entries ──┬── nodes of the original ──── expected
              └── changed nodes ──────────── found

A region begins at values that both models have and ends at such values; changed nodes that share a value are in one
region. Both sides are functions of the entries, so that if they are the same function in every region, the whole models
are. What is known before a model sees data (constants, shapes, integers made of them) is computed inside the region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.types import ValueTypes
from bnfold.onnx.proto.names import label
from bnfold.verification.exact.judging import NotCutError
from bnfold.verification.exact.onnx.cutting import Cut, reads_of
from bnfold.verification.onnx.outputs.deciding import made_of_shapes
from bnfold.verification.onnx.outputs.randomness import find_random_node
from bnfold.verification.onnx.sites.edges import Edges, roundoff
from bnfold.verification.onnx.sites.emitter import Emitter
from bnfold.verification.onnx.sites.model import inlined
from bnfold.verification.onnx.sites.pairing import Pairing, pair


@dataclass(frozen=True, slots=True)
class End:
    """A value that both sides of a region give.

    Attributes:
        value: Its name in the original.
        expected: What the original's side gives, as it is called in the region.
        found: What the folded side gives.
    """

    value: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Region:
    """One region.

    Attributes:
        nodes: What reports call the changed nodes in it.
        ends: Its ends.
        entries: Name in the region → name in the original, of what has to be fed.
        cut: Its nodes and constants.
        reason: Why it could not be cut out; "" if it could.
        broken: Whether it cannot run at all, in any model.
    """

    nodes: tuple[str, ...]
    ends: tuple[End, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    cut: Cut | None = None
    reason: str = ""
    broken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """What has to be compared.

    Attributes:
        original: The original without functions.
        types: What is known about its values.
        pairing: How the models lie over each other.
        regions: The regions.
    """

    original: OnnxModel
    types: ValueTypes
    pairing: Pairing
    regions: list[Region]


def regions_of(original: OnnxModel, folded: OnnxModel) -> Regions:
    """Cuts every region out.

    Args:
        original: The original; it is not changed.
        folded: The folded model, with the same store of tensors.
    """
    first, second = inlined(original), inlined(folded)
    pairing = pair(first, second, by_name=True)
    cutter = _Cutter(first, second, pairing)
    return Regions(first, cutter.types, pairing, [*cutter.regions()])


class _Cutter:
    def __init__(self, original: OnnxModel, folded: OnnxModel, pairing: Pairing) -> None:
        self._changed, self._partners = pairing.changed, pairing.partners
        self._original = original.proto
        self._emitter = Emitter([original.proto, folded.proto])
        self._edges = Edges(self._emitter, original)
        self.types = self._edges.types
        graph = original.proto.graph
        self._nodes = [*graph.node]
        self._makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._own = {t.name: t for t in folded.proto.graph.initializer if t.name in pairing.own_tensors}
        self._shared = set(pairing.partners.values())
        self._known = made_of_shapes(graph)
        self._changed_makers = {name: i for i, node in enumerate(pairing.changed) for name in node.output if name}

    def regions(self) -> Iterator[Region]:
        for members in self._components():
            nodes = tuple(label(self._changed[index]) for index in members)
            ends = [name for index in members for name in self._changed[index].output if name in self._partners]
            if not ends:
                continue
            try:
                yield self._cut(nodes, members, ends)
            except NotCutError as error:
                yield Region(nodes, reason=str(error), broken=error.broken)

    def _components(self) -> list[list[int]]:
        """Numbers of changed nodes, those that hang together through values of the folded model alone in one list."""
        root = [*range(len(self._changed))]

        def find(index: int) -> int:
            while root[index] != index:
                root[index] = root[root[index]]
                index = root[index]
            return index

        for index in range(len(self._changed)):
            for maker in self._inner_makers(index):
                root[find(index)] = find(maker)
        members: dict[int, list[int]] = {}
        for index in range(len(self._changed)):
            members.setdefault(find(index), []).append(index)
        return [*members.values()]

    def _inner_makers(self, index: int) -> list[int]:
        """The changed nodes that a changed node reads through values that the original does not have."""
        reads = reads_of(self._changed[index])
        return [self._changed_makers[n] for n in reads if n in self._changed_makers and n not in self._partners]

    def _cut(self, nodes: tuple[str, ...], members: Sequence[int], ends: Sequence[str]) -> Region:
        cut = Cut(self._emitter, self._nodes, self._makers, self._stored, self._is_known)
        for name in ends:
            cut.derive(self._partners[name], self._entries_of(name), self._shared)
        found: dict[str, str] = {}
        for index in members:
            node = self._changed[index]
            outputs = cut.emit(node, {name: self._folded_value(cut, name, found) for name in reads_of(node)})
            found |= {name: new for name, new in zip(node.output, outputs, strict=True) if name}
        result = []
        for name in ends:
            value = self._partners[name]
            expected = cut.original_value(value, self._entries_of(name), self._shared)
            result.append(End(value, expected, found[name]))
        random = find_random_node(self._original, (*(self._changed[at] for at in members), *cut.originals.values()))
        if random:
            raise NotCutError(f"it is not run, as {random} draws random numbers")
        entries = {new: old for old, new in cut.entries.items()}
        return Region(nodes, tuple(result), entries, cut)

    def _folded_value(self, cut: Cut, name: str, found: Mapping[str, str]) -> str:
        if name in self._own:
            return cut.stored(self._own[name])
        partner = self._partners.get(name)
        if partner is not None:
            return cut.given(partner)
        if name not in found:
            raise NotCutError(f"it reads {name!r}, which nothing gives", broken=True)
        return found[name]

    def _entries_of(self, end: str) -> set[str]:
        """The original's values that the changed nodes up to an end read."""
        entries: set[str] = set()
        seen: set[int] = set()
        open_ = [self._changed_makers[end]]
        while open_:
            index = open_.pop()
            if index in seen:
                continue
            seen.add(index)
            reads = reads_of(self._changed[index])
            entries.update(self._partners[name] for name in reads if name in self._partners)
            open_ += self._inner_makers(index)
        return entries

    def _is_known(self, name: str) -> bool:
        """Whether a computed value is computed in the region as well: it is no activation."""
        data_type = self._edges.data_type(name)
        return name in self._known or bool(data_type and not roundoff(data_type))
