"""How large the rounding error of the original itself may be where a region ends; see `bounds`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.names import is_standard
from bnfold.verification.judging.sites import NoBoundError
from bnfold.verification.onnx.sites.bounds import Operand, is_map, magnitudes_of
from bnfold.verification.onnx.sites.edges import Edges
from bnfold.verification.onnx.sites.emitter import Emitter
from bnfold.verification.onnx.sites.pairing import Pairing


class Origin:
    """The nodes of the original that changed ones stand for.

    Args:
        emitter: Takes the nodes that compute magnitudes.
        edges: The original's values.
        original: The original, without functions.
        pairing: Which values the folded graph has too.
    """

    def __init__(self, emitter: Emitter, edges: Edges, original: OnnxModel, pairing: Pairing) -> None:
        self._emitter, self._edges = emitter, edges
        self._nodes = original.proto.graph.node
        self._positions = {name: index for index, node in enumerate(self._nodes) for name in node.output if name}
        self._shared = set(pairing.partners.values())

    def end_magnitude(self, end: str) -> Iterator[str]:
        """The magnitude by which the original itself comes to `end`; nothing where that adds nothing to the twin's."""
        known: dict[str, str] = {}
        slice_ = self._slice_to(end)
        # Several maps may cancel each other where the one map that they became does not show it.
        alone = sum(is_map(self._nodes[index]) for index in slice_) == 1
        for index in slice_:
            node = self._nodes[index]
            outside = all(name not in known for name in node.input)
            if is_map(node) and outside and alone:
                # The twin's own magnitude covers the products; what comes after them starts from the value.
                if end in node.output:
                    return
                continue
            read = [self._operand(name, known) if name else None for name in node.input]
            try:
                found = magnitudes_of(self._emitter, node, read, list(node.output))
            except NoBoundError:
                continue
            known |= dict(zip([name for name in node.output if name], found, strict=False))
        if end in known:
            yield known[end]

    def _operand(self, name: str, known: Mapping[str, str]) -> Operand:
        if name in known:
            return Operand(name, lambda: known[name])
        return self._edges.operand(name)

    def _slice_to(self, end: str) -> list[int]:
        """Numbers of the original's nodes from values that the folded graph has too, to `end`."""
        found: set[int] = set()
        open_ = [self._positions[end]] if end in self._positions else []
        while open_:
            index = open_.pop()
            if index in found or is_standard(self._nodes[index], "Constant"):
                continue
            found.add(index)
            open_ += [
                self._positions[name]
                for name in self._nodes[index].input
                if name in self._positions and name not in self._shared
            ]
        return sorted(found)
