"""Nodes and constants that are added to a graph, in the forms that its opset knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.proto.names import all_graphs, defined_names, opset_version

FLOAT = onnx.TensorProto.FLOAT

_AXES_ARE_AN_INPUT_SINCE = {"ReduceMax": 18, "ReduceSumSquare": 18}
_MAX_BROADCASTS_SINCE = 8
_MUL_BROADCASTS_SINCE = 7
_SLICE_READS_ITS_BOUNDS_SINCE = 10
_END = np.iinfo(np.int64).max


class Emitter:
    """Collects nodes that compute something beside a graph.

    Args:
        models: Every name in these counts as taken.
    """

    def __init__(self, models: Sequence[onnx.ModelProto]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._opset = opset_version(models[0].opset_import)
        self._count = 0
        self._prefix = "site"
        while any(name.startswith(self._prefix) for model in models for name in _names(model)):
            self._prefix += "_"

    def fresh(self, base: str) -> str:
        """A name that no model and nothing emitted has; `base` is there for people only."""
        self._count += 1
        return f"{self._prefix}{self._count}_{base}"

    def constant(self, array: np.ndarray) -> str:
        """A stored tensor."""
        name = self.fresh("constant")
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, inputs: Iterable[str], **attributes: int | Sequence[int]) -> str:
        """A node with one output; the name of that."""
        name = self.fresh(op_type)
        node = helper.make_node(op_type, list(inputs), [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def scaled(self, value: str, factor: float) -> str:
        """A float32 value times a number."""
        broadcast = {} if self._opset >= _MUL_BROADCASTS_SINCE else {"broadcast": 1}
        return self.node("Mul", [value, self.constant(np.array(factor, np.float32))], **broadcast)

    def largest(self, values: Sequence[str], floor: float) -> str:
        """The elementwise maximum of float32 values of one shape and a number; their sum before opset 8."""
        parts = [*values, self.constant(np.array(floor, np.float32))]
        if self._opset >= _MAX_BROADCASTS_SINCE:
            return self.node("Max", parts)
        total = parts[0]
        for part in parts[1:]:
            total = self.node("Add", [total, part])
        return total

    def sliced(self, value: str, start: int, end: int | None, axis: int) -> str:
        """The elements from `start` to `end` along an axis."""
        bounds = {"starts": start, "ends": _END if end is None else end, "axes": axis}
        if self._opset < _SLICE_READS_ITS_BOUNDS_SINCE:
            return self.node("Slice", [value], **{name: [bound] for name, bound in bounds.items()})
        return self.node("Slice", [value, *(self.constant(np.array([bound])) for bound in bounds.values())])

    def like(self, node: onnx.NodeProto, inputs: Sequence[str], *, outputs: int | None = None) -> list[str]:
        """The operation of `node` on other values.

        Args:
            node: Gives the operator and its attributes.
            inputs: What it reads.
            outputs: How many of its outputs are wanted; all if None.
        """
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = self.fresh(node.name or node.op_type)
        count = len(node.output) if outputs is None else outputs
        names = [self.fresh(name) if name else "" for name in node.output[:count]]
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(names)
        self.nodes.append(copy)
        return names

    def reduced(self, op_type: str, value: str, axes: Sequence[int] | None) -> str:
        """ReduceMax or ReduceSumSquare over some axes, or over all of them if None; reduced axes are gone."""
        if axes is None:
            return self.node(op_type, [value], keepdims=0)
        if self._opset >= _AXES_ARE_AN_INPUT_SINCE[op_type]:
            return self.node(op_type, [value, self.constant(np.array(axes, np.int64))], keepdims=0)
        return self.node(op_type, [value], axes=list(axes), keepdims=0)


def _names(model: onnx.ModelProto) -> Iterator[str]:
    for graph in all_graphs(model):
        yield from defined_names(graph)
        yield from (node.name for node in graph.node)
