"""One model that holds the original and, beside it, every node that a fold changed, fed with the original's values.

    original    x ── Conv W ── BatchNormalization ── y ── …
                │                                    │
    twin        └─── Conv W', b' ──────────── y' ──  − ── | · | ── ÷ magnitude ── max per channel

The differences are reduced inside the graph, so that a few numbers leave it for each site, whatever the device. See
`pairing` for what is compared, and `bounds` for what it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx
import onnx.shape_inference
from onnx import helper

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.file.tensors import TensorStore
from bnfold.onnx.proto.inlining import inlined as without_calls
from bnfold.onnx.proto.names import label, opset_version
from bnfold.report.records import Site, Verdict
from bnfold.verification.judging.sites import TINY, NoBoundError, Probe
from bnfold.verification.onnx.sites.bounds import MAPS
from bnfold.verification.onnx.sites.edges import Edges, roundoff
from bnfold.verification.onnx.sites.emitter import FLOAT, Emitter
from bnfold.verification.onnx.sites.folded_twins import Twins, UnreachedError
from bnfold.verification.onnx.sites.origin import Origin
from bnfold.verification.onnx.sites.pairing import Pairing, pair
from bnfold.verification.runtime.initializers import (
    drop_unused_initializers,
    embed_attributes,
    initializers_to_inputs,
)

_MIN_IR_VERSION = 4  # from here on, initializers need not be graph inputs


class NoSitesError(Exception):
    """Why no sites can be measured at all: the end of a sentence."""


@dataclass(slots=True)
class SitesModel:
    """The model, and what its outputs mean.

    Attributes:
        model: The original with all twins; its first outputs are the original's.
        pairing: What it rests on.
        weights: Tensors that are to be fed beside the sample.
        probes: One for each site that is measured.
        unreached: Sites that are not, with the reason.
    """

    model: OnnxModel
    pairing: Pairing
    weights: list[onnx.TensorProto] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    unreached: list[Site] = field(default_factory=list)


def build_sites_model(original: OnnxModel, folded: OnnxModel, unpaired: Iterable[str] = ()) -> SitesModel:
    """Put the model together; neither model is changed.

    Args:
        original: The original.
        folded: The folded model.
        unpaired: Folded values that share no more than a name with the original's.

    Raises:
        NoSitesError: The two cannot stand in one model.
    """
    versions = [opset_version(model.proto.opset_import) for model in (original, folded)]
    if versions[0] != versions[1]:
        raise NoSitesError(f"the opsets differ ({versions[0]} and {versions[1]})")
    first, second = inlined(original), inlined(folded)
    return _Builder(first, second, pair(first, second).without(unpaired)).build()


def inlined(model: OnnxModel) -> OnnxModel:
    """A copy in which the main graph calls no functions."""
    copy = model.copy()
    copy.proto = without_calls(copy.proto)
    return copy


class _Builder:
    def __init__(self, original: OnnxModel, folded: OnnxModel, pairing: Pairing) -> None:
        self._original, self._folded, self._pairing = original, folded, pairing
        self._emitter = Emitter([original.proto, folded.proto])
        nodes = original.proto.graph.node
        self._positions = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        self._constants = {tensor.name for tensor in original.proto.graph.initializer}
        self._edges = Edges(self._emitter, original)
        self._twins = Twins(self._emitter, self._edges, folded, pairing)
        self._origin = Origin(self._emitter, self._edges, original, pairing)

    def build(self) -> SitesModel:
        result = SitesModel(OnnxModel(onnx.ModelProto(), TensorStore()), self._pairing)
        ends = [
            (name, partner)
            for node in self._pairing.changed
            for name in node.output
            if (partner := self._pairing.partners.get(name)) is not None
        ]
        placed: list[tuple[int, onnx.NodeProto]] = []
        for name, partner in sorted(ends, key=lambda end: self._positions.get(end[1], -1)):
            slice_ = self._twins.slice_to(name)
            site = Site(partner, tuple(label(self._pairing.changed[index]) for index in slice_), Verdict.SKIPPED)
            before = len(self._emitter.nodes)
            try:
                result.probes.append(self._probe(site, name, slice_))
            except UnreachedError as error:
                result.unreached.append(_with_reason(site, str(error)))
            placed += self._place(self._emitter.nodes[before:], self._positions.get(partner, -1))
        self._assemble(result, placed)
        return result

    def _probe(self, site: Site, name: str, slice_: list[int]) -> Probe:
        for index in slice_:
            self._twins.emit(index)
        emitter, data_type = self._emitter, self._data_type(site.name, slice_)
        unit = roundoff(data_type)
        twin, value = self._twins.name(name), site.name
        if data_type == onnx.TensorProto.DOUBLE:
            difference = emitter.node("Cast", [emitter.node("Sub", [twin, value])], to=FLOAT)
            value = emitter.node("Cast", [value], to=FLOAT)
        else:
            if data_type != FLOAT:
                twin, value = (emitter.node("Cast", [read], to=FLOAT) for read in (twin, value))
            difference = emitter.node("Sub", [twin, value])
        distance = emitter.node("Abs", [difference])
        axes = self._axes_but_channel(site.name, slice_)
        ratio = distance
        if unit:
            try:
                magnitude = self._twins.magnitude(name)
            except NoBoundError as error:
                raise UnreachedError(f"no rounding bound is known for {error}") from error
            largest = emitter.largest([magnitude, *self._origin.end_magnitude(site.name)], TINY)
            ratio = emitter.node("Div", [distance, largest])
        return Probe(
            site,
            name,
            ratio=emitter.reduced("ReduceMax", ratio, axes),
            max_abs=emitter.reduced("ReduceMax", distance, None),
            difference=emitter.reduced("ReduceSumSquare", difference, None),
            signal=emitter.reduced("ReduceSumSquare", value, None),
            shapes=(emitter.node("Shape", [self._twins.name(name)]), emitter.node("Shape", [site.name])),
            roundoff=unit,
            has_channels=axes is not None,
        )

    def _data_type(self, name: str, slice_: list[int]) -> int:
        """Element type of an end: as inferred, or as the weights on the way to it have it."""
        known = [self._edges.data_type(name), *filter(roundoff, self._twins.stored_types(slice_))]
        data_type = next(filter(None, known), 0)
        if not data_type:
            raise UnreachedError("its element type is not known")
        return data_type

    def _axes_but_channel(self, name: str, slice_: list[int]) -> list[int] | None:
        shape = self._edges.shape(name)
        if shape is None or len(shape) < 2:
            return None
        maps = [node.op_type for index in slice_ if (node := self._pairing.changed[index]).op_type in MAPS]
        channel = len(shape) - 1 if maps and maps[-1] in ("Gemm", "MatMul", "MatMulNBits") else 1
        return [axis for axis in range(len(shape)) if axis != channel]

    def _place(self, emitted: Iterable[onnx.NodeProto], site: int) -> list[tuple[int, onnx.NodeProto]]:
        """Each new node with the number of the original's node that it comes right after."""
        placed = []
        for node in emitted:
            after = max([site, *(self._positions[name] for name in node.input if name in self._positions)])
            self._positions |= dict.fromkeys(filter(None, node.output), after)
            placed.append((after, node))
        return placed

    def _assemble(self, result: SitesModel, placed: list[tuple[int, onnx.NodeProto]]) -> None:
        model = result.model
        model.store.include(self._original.store)
        model.store.include(self._folded.store)
        source = self._original.proto
        nodes = [*enumerate(source.graph.node), *placed]
        nodes.sort(key=lambda item: item[0])  # stable: the original's node first, then what was put behind it
        proto = model.proto
        proto.CopyFrom(source)
        proto.ir_version = max(source.ir_version, _MIN_IR_VERSION)
        proto.ClearField("functions")
        for imported in self._folded.proto.opset_import:
            if imported.domain not in {known.domain for known in source.opset_import}:
                proto.opset_import.append(imported)
        graph = proto.graph
        if source.ir_version < _MIN_IR_VERSION:
            inputs = [value for value in source.graph.input if value.name not in self._constants]
            del graph.input[:]
            graph.input.extend(inputs)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(node for _, node in nodes)
        graph.initializer.extend(self._emitter.tensors)
        for probe in result.probes:
            for name in (probe.ratio, probe.max_abs, probe.difference, probe.signal):
                graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
            for name in probe.shapes:
                graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
        drop_unused_initializers(graph)
        embed_attributes(model)
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL and roundoff(tensor.data_type):
                result.weights.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        initializers_to_inputs(graph, {tensor.name for tensor in result.weights})


def _with_reason(site: Site, reason: str) -> Site:
    return Site(site.name, site.nodes, Verdict.SKIPPED, reason)
