"""Running one region on small integers: both sides in one session of onnxruntime, its optimisations off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.rounding import Array
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.types import ValueTypes
from bnfold.onnx.proto.names import opset_version
from bnfold.onnx.proto.walk import all_nodes
from bnfold.report.records import Verdict
from bnfold.verification.exact.judging import judge
from bnfold.verification.exact.onnx.cutting import reads_of
from bnfold.verification.exact.onnx.feeding import feed, is_exact, outgrows
from bnfold.verification.exact.onnx.regions import Region
from bnfold.verification.exact.onnx.wide_sums import widen_sums
from bnfold.verification.judging.structured_outputs import is_part_of
from bnfold.verification.runtime.devices import cpu_device
from bnfold.verification.runtime.initializers import drop_unused_initializers, embed_attributes
from bnfold.verification.runtime.sessions import RuntimeFailure, Session
from bnfold.verification.runtime.source import injected_values

_FLOAT = onnx.TensorProto.FLOAT
_OTHER_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE})
_TYPE_ATTRIBUTES = ("to", "dtype")


class Runner:
    """A region that is ready to run.

    Args:
        region: The region.
        original: Gives opsets, and the tensors of both models.
        types: What is known about the original's values.

    Raises:
        LookupError: The element type of an entry is not known; the message is its name.
        RuntimeFailure: onnxruntime refuses it.
    """

    def __init__(self, region: Region, original: OnnxModel, types: ValueTypes) -> None:
        self._region, self._model = region, original
        held = region.cut.tensors if region.cut else []
        self._stored = {helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in held}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        for name, value in region.entries.items():
            shape, dtype = types.get(value, (None, ""))
            if not dtype:
                raise LookupError(value)
            data_type = _runnable(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
            self._dtypes[name] = helper.tensor_dtype_to_np_dtype(data_type)
            dims = None if shape is None else [None] * len(shape)
            self._inputs.append(helper.make_tensor_value_info(name, data_type, dims))
        ends = [name for end in region.ends for name in (end.expected, end.found)]
        self._session = self._loaded(region.cut.nodes if region.cut else [], ends)

    def _loaded(self, nodes: Sequence[onnx.NodeProto], ends: Iterable[str]) -> Session:
        assert self._region.cut is not None  # a region with a reason is not run
        outputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(ends)]
        graph = helper.make_graph(nodes, "region", self._inputs, outputs, self._region.cut.tensors)
        original = self._model.proto
        proto = helper.make_model(graph, ir_version=max(4, original.ir_version), opset_imports=original.opset_import)
        drop_unused_initializers(proto.graph)
        model = OnnxModel(proto, self._model.store)
        embed_attributes(model)
        _widen(model)
        widen_sums(proto)
        # a region on such small inputs is done before other threads are there
        return Session(proto.SerializeToString(), replace(cpu_device(), threads=1), injected_values(model))

    def original_runs(self, types: ValueTypes, seed: int) -> bool:
        """Whether the original's side runs by itself, where both together do not."""
        ends = {end.expected for end in self._region.ends}
        needed, nodes = set(ends), list[onnx.NodeProto]()
        for node in reversed(self._region.cut.nodes if self._region.cut else []):
            if needed.intersection(node.output):
                nodes.insert(0, node)
                needed.update(reads_of(node))
        try:
            self._loaded(nodes, ends).run(feed(self._region, types, self._dtypes, seed))
        except RuntimeFailure:
            return False
        return True

    def compare(self, types: ValueTypes, seed: int) -> tuple[Verdict, str, str]:
        """Runs both sides once.

        Args:
            types: What is known about the original's values, at the sizes wanted.
            seed: Of the integers.

        Returns:
            The worst verdict of all ends, the end's name, and a clause.

        Raises:
            LookupError: The shape of an entry is not known.
            RuntimeFailure: The region does not run at these sizes.
        """
        results = self._session.run(feed(self._region, types, self._dtypes, seed))
        worst = Verdict.PASS, "", ""
        exact = is_exact(self._region, types, opset_version(self._model.proto.opset_import))
        for end in self._region.ends:
            expected, found = _parts(results, end.expected), _parts(results, end.found)
            if expected.keys() != found.keys():
                return Verdict.FAIL, end.value, "has another number of elements, or others"
            for part, array in expected.items():
                grown = outgrows(self._region, array)
                verdict, clause = judge(array, found[part], self._stored, exact=exact and not grown)
                if verdict is Verdict.FAIL:
                    return verdict, end.value, clause
                # What reads no value is no example of what it could be: as near as rounding is it will always be.
                if verdict is not Verdict.PASS and (grown or self._region.entries):
                    worst = verdict, end.value, clause
        return worst


def _parts(results: Mapping[str, object], end: str) -> dict[str, Array]:
    """The tensors that a value holds, itself if it is one, by what follows its name."""
    return {leaf[len(end) :]: np.asarray(held) for leaf, held in results.items() if is_part_of(leaf, end)}


def _runnable(data_type: int) -> int:
    """The type that a value is computed in: onnxruntime has no convolution of the other ones."""
    return _FLOAT if data_type in _OTHER_FLOATS else data_type


def _widen(model: OnnxModel) -> None:
    """Lets a region compute in float32 whatever its own floating-point type is; its numbers fit."""
    proto = model.proto
    held = [*proto.graph.initializer]
    for node in all_nodes(proto.graph.node):
        for given in node.attribute:
            if given.HasField("t"):
                held.append(given.t)
            elif given.name in _TYPE_ATTRIBUTES:
                given.i = _runnable(given.i)
            for graph in (given.g, *given.graphs):
                held += graph.initializer
                for value in (*graph.input, *graph.output, *graph.value_info):
                    if value.type.HasField("tensor_type"):
                        value.type.tensor_type.elem_type = _runnable(value.type.tensor_type.elem_type)
    for tensor in held:
        if tensor.data_type in _OTHER_FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(model.array(tensor).astype(np.float32), tensor.name))
