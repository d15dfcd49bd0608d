"""Sums over images and large windows, and what is computed of them channel by channel, in float64.

float32 does not add up a whole number for each element of a large image exactly, nor what a layer makes of the sums.
onnxruntime has no AveragePool in float64: a sum over a window of k elements of an axis is the difference of two of the
sums from the beginning of the axis,

    c_j = x_0 + … + x_(j−1)          x_i + … + x_(i+k−1) = c_(i+k) − c_i

which of whole numbers is exact, and the window of an image is one of each of its axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.lift.types import Shape, value_types
from bnfold.onnx.proto.names import (
    FreshNames,
    int_attribute,
    ints_attribute,
    is_standard,
    opset_version,
    string_attribute,
)

_SUMS = ("GlobalAveragePool", "ReduceMean", "ReduceSum")
_BEHIND = ("BatchNormalization", "Gemm", "MatMul")
_MEAN_READS_ITS_AXES_SINCE = 18
_CUMSUM_SINCE = 11
_LARGE_WINDOW = 256
_END = np.iinfo(np.int64).max


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
    names = FreshNames(model)
    widened: list[onnx.NodeProto] = []
    wide_names: dict[str, str] = {}
    for node in nodes:
        reads = [name for name in node.input if name][: None if is_standard(node, *_BEHIND) else 1]
        known = [types.get(name, (None, "")) for name in reads]
        is_float = bool(known) and all(dtype == "float32" for _, dtype in known) and len(node.output) == 1
        wide = _wide(node, known[0][0], graph, names, model.opset_import) if is_float else []
        if not wide:
            widened.append(node)
            continue
        for name in reads:
            if name not in wide_names:
                wide_names[name] = names.fresh("wide")
                widened.append(helper.make_node("Cast", [name], [wide_names[name]], to=onnx.TensorProto.DOUBLE))
        wide[0].input[: len(reads)] = [wide_names[name] for name in reads]
        (result,) = node.output
        wide[-1].output[0] = wide_names[result] = names.fresh("sum")
        widened += [*wide, helper.make_node("Cast", [wide_names[result]], [result], to=onnx.TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(widened)


def is_wide(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the window of an average pool is large, and each one added up as one of two other sums."""
    if not is_standard(node, "AveragePool") or math.prod(ints_attribute(node, "kernel_shape")) <= _LARGE_WINDOW:
        return False
    plain = not int_attribute(node, "ceil_mode", 0) and string_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    whole = not any(ints_attribute(node, "pads")) or int_attribute(node, "count_include_pad", 0)
    return opset >= _CUMSUM_SINCE and plain and bool(whole) and {1, *ints_attribute(node, "dilations")} == {1}


def _wide(
    node: onnx.NodeProto,
    shape: Shape | None,
    graph: onnx.GraphProto,
    names: FreshNames,
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[onnx.NodeProto]:
    """The sum as operations that onnxruntime has in float64; none if it is none, or adds up small windows."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if is_standard(node, "ReduceMean", "ReduceSum", *_BEHIND):
        return [copy]
    if is_wide(node, opset_version(opsets)):
        return _windows(node, graph, names)
    if shape is None or not (is_standard(node, "GlobalAveragePool") or _covers(node, shape)):
        return []
    axes = [*range(2, len(shape))]
    if opset_version(opsets) < _MEAN_READS_ITS_AXES_SINCE:
        return [helper.make_node("ReduceMean", [node.input[0]], [node.output[0]], axes=axes, keepdims=1)]
    read = _stored(np.array(axes), graph, names)
    return [helper.make_node("ReduceMean", [node.input[0], read], [node.output[0]], keepdims=1)]


def _windows(node: onnx.NodeProto, graph: onnx.GraphProto, names: FreshNames) -> list[onnx.NodeProto]:
    """An average pool without its own kernel, by the formula above."""
    kernel = ints_attribute(node, "kernel_shape")
    strides = [*ints_attribute(node, "strides")] or [1] * len(kernel)
    pads = [*ints_attribute(node, "pads")] or [0] * (2 * len(kernel))
    nodes: list[onnx.NodeProto] = []

    def emit(op_type: str, value: str, *others: str) -> str:
        nodes.append(helper.make_node(op_type, [value, *others], [names.fresh(op_type)]))
        return str(nodes[-1].output[0])

    def stored(array: np.ndarray) -> str:
        return _stored(array, graph, names)

    before, behind = pads[: len(kernel)], pads[len(kernel) :]
    value = emit("Pad", node.input[0], stored(np.array([0, 0, *(size + 1 for size in before), 0, 0, *behind])))
    for axis, (size, stride) in enumerate(zip(kernel, strides, strict=True), start=2):
        sums = emit("CumSum", value, stored(np.array(axis)))
        ends = [
            emit("Slice", sums, *(stored(np.array([bound])) for bound in (first, last, axis, stride)))
            for first, last in ((size, _END), (0, -size))
        ]
        value = emit("Sub", *ends)
    emit("Div", value, stored(np.array(float(math.prod(kernel)))))
    return nodes


def _stored(array: np.ndarray, graph: onnx.GraphProto, names: FreshNames) -> str:
    name = names.fresh("constant")
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _covers(node: onnx.NodeProto, shape: Shape) -> bool:
    """Whether the window of an average pool is the whole image."""
    whole = is_standard(node, "AveragePool") and [*ints_attribute(node, "kernel_shape")] == [*shape[2:]]
    return whole and not any(ints_attribute(node, "pads")) and string_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
