"""A large model that is run a part at a time, so that the weights of one part are in memory and no more.

    nodes    0 … i │ i … j │ …     in the order of the graph; each part is a session of its own
    weights  0 … i │ i … j │ …     read when a part begins, given back when it ends

A part is fed with what the parts before it gave. The runtime's optimisations are off, so that each node computes what
it computes in the whole model, from the same values: the results are the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from bnfold.input_spec import Array
from bnfold.onnx.proto.names import reads_from_outside, subgraphs
from bnfold.text.progress import each
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.sessions import Session

PART_NBYTES = 1 << 28
"""How much the weights of one part may take; a node that reads more is a part of its own."""

PART_NODES = 4000
"""How many nodes one part may have: onnxruntime takes longer than in proportion to get more ready, unstoppably."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some nodes of a graph.

    Attributes:
        nodes: Their numbers.
        reads: What they read and do not compute.
        handed_on: What they compute and later nodes read.
        gives: What they give of the outputs of the graph.
        done_with: What no later node reads.
    """

    nodes: range
    reads: frozenset[str]
    handed_on: frozenset[str]
    gives: frozenset[str]
    done_with: frozenset[str]


class InParts:
    """A model that is ready to run, as a whole if it is small.

    Args:
        proto: The model, its nodes in order. What `nbytes` names is among its inputs, or an initializer that it
            declares as external data.
        nbytes: The size of each value that is read when it is needed.
        device: Where every heavy node must run.
        in_order: See Session.
    """

    def __init__(
        self, proto: onnx.ModelProto, nbytes: Mapping[str, int], device: Device, *, in_order: bool = False
    ) -> None:
        self._proto, self._nbytes, self._device, self._in_order = proto, nbytes, device, in_order
        self._initializers = {tensor.name for tensor in proto.graph.initializer}
        self._parts = _parts_of(proto.graph, nbytes)
        self._whole: Session | None = None

    def run(self, feeds: Sequence[Mapping[str, Array]], read: Callable[[str], Array]) -> list[dict[str, object]]:
        """The outputs by name, for each feed.

        Args:
            feeds: Values of the other inputs.
            read: Gives a value that `nbytes` names. Of a model in one part, only inputs may have another value in the
                next run.

        Raises:
            DeviceError: A heavy node does not run on the device.
            RuntimeFailure: onnxruntime refuses a part, or it does not run on these inputs.
            VerificationError: It does not end in time.
        """
        if len(self._parts) > 1:
            results = self._run_parts(feeds, read)
            if results is not None:
                return results
            self._parts = self._parts[:1]
        fed = {name: read(name) for name in self._nbytes if name not in self._initializers}
        if self._whole is None:
            self._whole = self._session(self._proto, self._nbytes, read)
        return [self._whole.run({**feed, **fed}) for feed in each(feeds, "sample")]

    def _run_parts(
        self, feeds: Sequence[Mapping[str, Array]], read: Callable[[str], Array]
    ) -> list[dict[str, object]] | None:
        """The outputs; None where one part would hand something to another that is no tensor."""
        known = [dict(feed) for feed in feeds]
        results: list[dict[str, object]] = [{} for _ in feeds]
        for part in each(self._parts, "part"):
            if not self._run_part(part, known, results, read):
                return None
        return results

    def _run_part(
        self,
        part: _Part,
        known: Sequence[dict[str, Array]],
        results: Sequence[dict[str, object]],
        read: Callable[[str], Array],
    ) -> bool:
        """Adds what a part gives to what is known, and to the results; whether that is possible."""
        proto = self._model_of(part, known[0])
        needed = [name for name in self._nbytes if name in part.reads]
        session = self._session(proto, needed, read)
        if part.handed_on.intersection(session.structured):
            return False
        fed = {name: read(name) for name in needed if name not in self._initializers}
        for values, result in zip(known, results, strict=True):
            found = session.run({**{name: values[name] for name in part.reads if name in values}, **fed})
            values |= {name: np.asarray(found[name]) for name in part.handed_on}
            result |= {name: value for name, value in found.items() if name in part.gives or name not in part.handed_on}
            for name in part.done_with:
                values.pop(name, None)
        return True

    def _session(self, proto: onnx.ModelProto, needed: Iterable[str], read: Callable[[str], Array]) -> Session:
        injected = {name: read(name) for name in needed if name in self._initializers}
        return Session(proto.SerializeToString(), self._device, injected, in_order=self._in_order)

    def _model_of(self, part: _Part, values: Mapping[str, Array]) -> onnx.ModelProto:
        """A part as a model; it is fed with some of these values."""
        whole = self._proto
        graph = onnx.GraphProto(
            name=whole.graph.name,
            node=[whole.graph.node[index] for index in part.nodes],
            input=[value for value in whole.graph.input if value.name in part.reads],
            initializer=[tensor for tensor in whole.graph.initializer if tensor.name in part.reads],
            sparse_initializer=[item for item in whole.graph.sparse_initializer if item.values.name in part.reads],
            output=[value for value in whole.graph.output if value.name in part.gives],
        )
        inputs = {value.name for value in graph.input}
        graph.input.extend(_described(name, values[name]) for name in part.reads if name in values.keys() - inputs)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.handed_on - part.gives)
        proto = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import, graph=graph)
        proto.functions.extend(whole.functions)
        return proto


def _parts_of(graph: onnx.GraphProto, nbytes: Mapping[str, int]) -> list[_Part]:
    reads = [frozenset(_reads_of(node)) for node in graph.node]
    outputs = frozenset(value.name for value in graph.output)
    later: set[str] = set()
    parts: list[_Part] = []
    made_by_none = outputs.difference(name for node in graph.node for name in node.output)
    for nodes in reversed([*_split(reads, nbytes)]):
        made = {name for index in nodes for name in graph.node[index].output if name}
        gives = outputs & made if parts else outputs & made | made_by_none
        read = frozenset().union(*(reads[index] for index in nodes), gives) - made
        handed_on = frozenset(made & later)
        if handed_on or gives:
            parts.append(_Part(nodes, read, handed_on, frozenset(gives), read - later))
            later |= read
    return parts[::-1]


def _split(reads: Sequence[frozenset[str]], nbytes: Mapping[str, int]) -> Iterator[range]:
    """Numbers of nodes, as many in a row as are few enough and read little enough."""
    start, held, held_nbytes = 0, set[str](), 0
    for index, names in enumerate(reads):
        needed = (names & nbytes.keys()) - held
        needed_nbytes = sum(nbytes[name] for name in needed)
        if index - start == PART_NODES or (held and held_nbytes + needed_nbytes > PART_NBYTES):
            yield range(start, index)
            start, held = index, set()
            needed = names & nbytes.keys()
            held_nbytes, needed_nbytes = 0, sum(nbytes[name] for name in needed)
        held |= needed
        held_nbytes += needed_nbytes
    yield range(start, len(reads))


def _reads_of(node: onnx.NodeProto) -> Iterator[str]:
    yield from filter(None, node.input)
    for _, graph in subgraphs(node):
        yield from reads_from_outside(graph)


def _described(name: str, value: Array) -> onnx.ValueInfoProto:
    data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, data_type, [None] * value.ndim)
