"""Twins: the nodes that a fold changed, put beside the original and reading the original's values."""

from __future__ import annotations

import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.names import label, subgraphs
from bnfold.verification.judging.sites import NoBoundError
from bnfold.verification.onnx.sites.bounds import Operand, magnitudes_of
from bnfold.verification.onnx.sites.edges import Edges
from bnfold.verification.onnx.sites.emitter import Emitter
from bnfold.verification.onnx.sites.pairing import Pairing


class UnreachedError(Exception):
    """Why a region is not measured: a clause."""


class Twins:
    """The changed nodes of the folded graph in the graph that is being built.

    Args:
        emitter: Takes their nodes and tensors.
        edges: The original's values.
        folded: The folded model, without functions.
        pairing: What changed.
    """

    def __init__(self, emitter: Emitter, edges: Edges, folded: OnnxModel, pairing: Pairing) -> None:
        self._emitter, self._edges = emitter, edges
        self._changed, self._partners = pairing.changed, pairing.partners
        self._stored = {tensor.name: tensor for tensor in folded.proto.graph.initializer}
        self._makers = {name: index for index, node in enumerate(pairing.changed) for name in node.output if name}
        self._twins: dict[str, str] = {}
        self._magnitudes: dict[str, str | NoBoundError] = {}
        self._emitted: set[int] = set()

    def name(self, value: str) -> str:
        """What the twin of a folded value is called."""
        return self._twins[value]

    def stored_types(self, slice_: list[int]) -> list[int]:
        """Element types of the tensors that changed nodes read, the last node first."""
        read = [name for index in reversed(slice_) for name in self._changed[index].input]
        return [self._stored[name].data_type for name in read if name in self._stored]

    def slice_to(self, name: str) -> list[int]:
        """Numbers of the changed nodes from values of the original to `name`."""
        found: set[int] = set()
        open_ = [self._makers[name]]
        while open_:
            index = open_.pop()
            if index in found:
                continue
            found.add(index)
            open_ += [
                self._makers[read]
                for read in self._changed[index].input
                if read in self._makers and read not in self._partners
            ]
        return sorted(found)

    def emit(self, index: int) -> None:
        """Put the twin of a changed node into the graph, if it is not there; the twins that it reads must be.

        Raises:
            UnreachedError: It cannot stand there.
        """
        if index in self._emitted:
            return
        node = self._changed[index]
        if any(True for _ in subgraphs(node)):
            raise UnreachedError(f"it is inside a subgraph of {node.op_type} {label(node)!r}")
        read = [self._operand(name) if name else None for name in node.input]
        results = self._emitter.like(node, ["" if operand is None else operand.value for operand in read])
        self._emitted.add(index)
        for name, twin in zip(node.output, results, strict=True):
            self._twins[name] = twin
        if all(operand is None or operand.is_constant for operand in read):
            return  # a constant expression: its magnitude is that of its value
        outputs = [name for name in node.output if name]
        try:
            found: list[str | NoBoundError] = [*magnitudes_of(self._emitter, node, read, results)]
        except NoBoundError as error:
            found = [error] * len(outputs)
        self._magnitudes |= dict(zip(outputs, found, strict=False))

    def _operand(self, name: str) -> Operand:
        """What a changed node reads, as it is called in the model."""
        partner = self._partners.get(name)
        if partner is not None:
            return self._edges.operand(partner)
        if name in self._stored:
            return self._stored_operand(self._stored[name])
        if name not in self._twins:
            raise UnreachedError(f"it reads {name!r}, which nothing gives")
        return Operand(self._twins[name], lambda: self.magnitude(name), name not in self._magnitudes)

    def magnitude(self, name: str) -> str:
        """The magnitude of the twin of a folded value.

        Raises:
            NoBoundError: None is known.
        """
        found = self._magnitudes.get(name)
        if found is None:  # a constant
            return self._edges.magnitude(self._twins[name], 0, is_constant=True)
        if isinstance(found, NoBoundError):
            raise found
        return found

    def _stored_operand(self, tensor: onnx.TensorProto) -> Operand:
        twin = self._twins.get(tensor.name)
        if twin is None:
            twin = self._twins[tensor.name] = self._emitter.fresh(tensor.name)
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = twin
            self._emitter.tensors.append(copy)
        return Operand(
            twin,
            lambda: self._edges.magnitude(twin, tensor.data_type, is_constant=True),
            is_constant=True,
            shape=tuple(tensor.dims),
            data_type=tensor.data_type,
        )
