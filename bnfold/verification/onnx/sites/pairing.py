"""Which values of two graphs must be equal, and which nodes of the folded graph stand between them.

Nothing is known but the two graphs. A folded value is taken for the original's value of the same name; that is the
contract of files that bnfold writes. Some other tools let a convolution keep the name of its output when the
BatchNorm behind it goes away; there, the nodes that read the value and did not change tell what it stands for. Where
no such node reads it, its name is all there is: it is paired, but not `confirmed`.

Every node that reads equal values and has equal attributes and constants gives an equal result. So if the nodes that
changed give what the original has at each paired value that they yield, fed with the original's own values, then the
folded graph as a whole computes what the original computes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.values import reads_type_only
from bnfold.onnx.proto.names import defined_names, is_standard, nested
from bnfold.verification.onnx.sites.sameness import attributes, same_tensor

_SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True, slots=True)
class Pairing:
    """How a folded graph lies over the original.

    Attributes:
        changed: Nodes of the folded graph that have no equal in the original, in their order.
        partners: Name of a folded value → the original's value that it must equal. Only what `changed` reads or yields
            is sure to be in it.
        own_tensors: Initializers of the folded graph that the original does not have, or has with other values.
        confirmed: Names in `partners` for which an unchanged reader, or an output of the graph, speaks.
        matters: Whether any of `changed` leads to an output of the graph.
    """

    changed: tuple[onnx.NodeProto, ...]
    partners: Mapping[str, str]
    own_tensors: frozenset[str]
    confirmed: frozenset[str]
    matters: bool

    def without(self, names: Iterable[str]) -> Pairing:
        """The same without some pairs, so that regions become longer."""
        partners = {name: partner for name, partner in self.partners.items() if name not in set(names)}
        return replace(self, partners=partners)


def pair(original: OnnxModel, folded: OnnxModel, *, by_name: bool = False) -> Pairing:
    """Lay the main graph of `folded` over that of `original`.

    Args:
        original: The original.
        folded: The folded model.
        by_name: Whether names alone tell what is what, as in a fold by bnfold.
    """
    own_tensors = _own_tensors(original, folded)
    return _Matching(original, folded, own_tensors, by_name=by_name).result()


class _Matching:
    """One walk over the folded graph, in its order."""

    def __init__(self, original: OnnxModel, folded: OnnxModel, own_tensors: frozenset[str], *, by_name: bool) -> None:
        self._by_names_alone = by_name
        self._models = original, folded
        self._folded = folded.proto.graph
        self._own_tensors = own_tensors
        nodes = original.proto.graph.node
        self._values = set(defined_names(original.proto.graph))
        self._by_output = {name: node for node in nodes for name in node.output if name}
        counts = Counter(node.name for node in nodes)
        self._by_name = {node.name: node for node in nodes if node.name and counts[node.name] == 1}
        self._claims = self._collect_claims()
        self._partners: dict[str, str] = {}

    def result(self) -> Pairing:
        inputs = [value.name for value in self._folded.input]
        tensors = [tensor.name for tensor in self._folded.initializer if tensor.name not in self._own_tensors]
        sparse = [tensor.values.name for tensor in self._folded.sparse_initializer]
        self._partners |= {name: name for name in (*inputs, *tensors, *sparse) if name in self._values}
        for name in self._own_tensors:
            self._partners.pop(name, None)
        changed = []
        for node in self._folded.node:
            if self._has_equal(node):
                self._partners |= {name: name for name in node.output if name}
                continue
            changed.append(node)
            for name in filter(None, node.output):
                partner = self._partner(name)
                if partner is not None:
                    self._partners[name] = partner
        confirmed = frozenset(name for name, said in self._claims.items() if said)
        matters = _leads_to_output(self._folded, changed)
        return Pairing(tuple(changed), self._partners, self._own_tensors, confirmed, matters)

    def _has_equal(self, node: onnx.NodeProto) -> bool:
        """Whether the original has this node, reading equal values and giving them the same names."""
        other = self._by_output.get(next(filter(None, node.output), ""))
        if other is None or not self._same_operation(node, other) or list(node.output) != list(other.output):
            return False
        read = [self._partners.get(name) if name else "" for name in node.input]
        captured = {name for attribute in node.attribute for name in _captured(attribute)}
        return read == list(other.input) and all(
            self._partners.get(name, name) == name for name in captured - self._inside(node)
        )

    @staticmethod
    def _inside(node: onnx.NodeProto) -> set[str]:
        graphs = [graph for attribute in node.attribute for graph in _graphs(attribute)]
        return {name for graph in graphs for inner in nested(graph) for name in defined_names(inner)}

    def _same_operation(self, node: onnx.NodeProto, other: onnx.NodeProto) -> bool:
        original, folded = self._models
        return (
            node.op_type == other.op_type
            and node.domain == other.domain
            and attributes(folded, node) == attributes(original, other)
        )

    def _partner(self, name: str) -> str | None:
        """The original's value that the result of a changed node must equal; None if nobody can tell."""
        if name not in self._values:
            return None
        said = self._claims[name]
        if self._by_names_alone or not said or name in said:
            return name
        partner = next(iter(said)) if len(said) == 1 else None
        return partner if partner in self._values else None

    def _collect_claims(self) -> defaultdict[str, set[str]]:
        """For each value that the folded graph computes: what unchanged readers of it read in the original.

        Nodes correspond by their name, or else by the name of their first output.
        """
        claims: defaultdict[str, set[str]] = defaultdict(set)
        computed = {name for node in self._folded.node for name in node.output if name}
        for node in self._folded.node:
            other = self._by_name.get(node.name) or self._by_output.get(next(iter(node.output), ""))
            if (
                other is None
                or not self._same_operation(node, other)
                or list(node.output) != list(other.output)
                or len(node.input) != len(other.input)
                or any(name in self._own_tensors for name in node.input)
            ):
                continue
            differing = sum(ours != theirs for ours, theirs in zip(node.input, other.input, strict=True))
            if differing > 1 and is_standard(node, *_SUMS):
                continue  # a merge may have moved terms from one operand to another
            for place, (ours, theirs) in enumerate(zip(node.input, other.input, strict=True)):
                if ours in computed and theirs in self._by_output and not reads_type_only(node, place):
                    claims[ours].add(theirs)
        for value in self._folded.output:
            claims[value.name].add(value.name)
        return claims


def _leads_to_output(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether an output of a graph depends on any of some nodes of it."""
    wanted = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            wanted.update(name for attribute in node.attribute for name in _captured(attribute))
    wanted.discard("")
    return any(name in wanted for node in nodes for name in node.output)


def _graphs(attribute: onnx.AttributeProto) -> Sequence[onnx.GraphProto]:
    return [attribute.g, *attribute.graphs] if attribute.type == onnx.AttributeProto.GRAPH else [*attribute.graphs]


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    """Every name that the graphs in an attribute read."""
    graphs = [inner for graph in _graphs(attribute) for inner in nested(graph)]
    read = {name for graph in graphs for node in graph.node for name in node.input if name}
    return read | {value.name for graph in graphs if isinstance(graph, onnx.GraphProto) for value in graph.output}


def _own_tensors(original: OnnxModel, folded: OnnxModel) -> frozenset[str]:
    known = {tensor.name: tensor for tensor in original.proto.graph.initializer}
    return frozenset(
        tensor.name
        for tensor in folded.proto.graph.initializer
        if tensor.name not in known or not same_tensor(original, known[tensor.name], folded, tensor)
    )
