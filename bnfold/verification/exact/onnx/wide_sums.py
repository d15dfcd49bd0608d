"""Sums over images, and what is computed of them channel by channel, in float64.

float32 does not add up a whole number for each element of a large image exactly, nor what a layer makes of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.lift.types import Shape, value_types
from bnfold.onnx.proto.names import FreshNames, ints_attribute, is_standard, opset_version, string_attribute

_SUMS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
_BEHIND = ("BatchNormalization", "Gemm", "MatMul")
_MEAN_READS_ITS_AXES_SINCE = 18


def widen_sums(model: onnx.ModelProto) -> None:
    """Lets a region add up images, and compute what most often follows, in float64, in place.

    Args:
        model: The region, in float32, with the shapes of what it reads.
    """
    graph = model.graph
    nodes = [*graph.node]
    if not any(is_standard(node, "AveragePool", *_SUMS) for node in nodes):
        return
    types = value_types(onnx.shape_inference.infer_shapes(model).graph)
    for tensor in graph.initializer:
        types[tensor.name] = (tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type).name)
    names = FreshNames(model)
    widened: list[onnx.NodeProto] = []
    wide_names: dict[str, str] = {}
    for node in nodes:
        reads = [name for name in node.input if name][: None if is_standard(node, *_BEHIND) else 1]
        known = [types.get(name, (None, "")) for name in reads]
        is_float = bool(known) and all(dtype == "float32" for _, dtype in known) and len(node.output) == 1
        wide = _wide(node, known[0][0], graph, names, model.opset_import) if is_float else None
        if wide is None:
            widened.append(node)
            continue
        for name in reads:
            if name not in wide_names:
                wide_names[name] = names.fresh("wide")
                widened.append(helper.make_node("Cast", [name], [wide_names[name]], to=onnx.TensorProto.DOUBLE))
        wide.input[: len(reads)] = [wide_names[name] for name in reads]
        (result,) = node.output
        wide.output[0] = wide_names[result] = names.fresh("sum")
        widened += [wide, helper.make_node("Cast", [wide.output[0]], [result], to=onnx.TensorProto.FLOAT)]
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
    if is_standard(node, "ReduceMean", "ReduceSum", *_BEHIND):
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
