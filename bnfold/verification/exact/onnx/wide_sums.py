"""Sums over images in float64: float32 does not add up a whole number for each element of a large one exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.lift.types import Shape, value_types
from bnfold.onnx.proto.names import FreshNames, ints_attribute, is_standard, opset_version, string_attribute

_SUMS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
_MEAN_READS_ITS_AXES_SINCE = 18


def widen_sums(model: onnx.ModelProto) -> None:
    """Lets a region add up images in float64, in place.

    Args:
        model: The region, in float32, with the shapes of what it reads.
    """
    graph = model.graph
    nodes = [*graph.node]
    if not any(is_standard(node, "AveragePool", *_SUMS) for node in nodes):
        return
    types = value_types(onnx.shape_inference.infer_shapes(model).graph)
    names = FreshNames(model)
    widened: list[onnx.NodeProto] = []
    for node in nodes:
        shape, dtype = types.get(node.input[0] if node.input else "", (None, ""))
        wide = _wide(node, shape, graph, names, model.opset_import) if dtype == "float32" else None
        if wide is None:
            widened.append(node)
            continue
        before, after = names.fresh("wide"), names.fresh("sum")
        widened.append(helper.make_node("Cast", [node.input[0]], [before], to=onnx.TensorProto.DOUBLE))
        widened.append(helper.make_node("Cast", [after], [node.output[0]], to=onnx.TensorProto.FLOAT))
        wide.input[0], wide.output[0] = before, after
        widened.insert(-1, wide)
    del graph.node[:]
    graph.node.extend(widened)


def _wide(
    node: onnx.NodeProto,
    shape: Shape | None,
    graph: onnx.GraphProto,
    names: FreshNames,
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> onnx.NodeProto | None:
    """The sum as an operation that onnxruntime has in float64; None if it is none, or adds up windows."""
    if is_standard(node, "ReduceMean", "ReduceSum"):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        return copy
    if shape is None or not (is_standard(node, "GlobalAveragePool") or _covers(node, shape)):
        return None
    axes = [*range(2, len(shape))]
    if opset_version(opsets) < _MEAN_READS_ITS_AXES_SINCE:
        return helper.make_node("ReduceMean", [node.input[0]], [node.output[0]], axes=axes, keepdims=1)
    name = names.fresh("axes")
    graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
    return helper.make_node("ReduceMean", [node.input[0], name], [node.output[0]], keepdims=1)


def _covers(node: onnx.NodeProto, shape: Shape) -> bool:
    """Whether the window of an average pool is the whole image."""
    whole = is_standard(node, "AveragePool") and [*ints_attribute(node, "kernel_shape")] == [*shape[2:]]
    return whole and not any(ints_attribute(node, "pads")) and string_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
