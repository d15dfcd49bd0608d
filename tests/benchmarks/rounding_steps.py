"""The rounding steps of a quantised file and of its fold, each fed with what the original gives.

A QuantizeLinear gives integers, and what lies near the middle between two of them goes either way. So that one such
element does not change all that come behind it, a file is cut at its QuantizeLinears: each reads what the file makes of
the integers that the original gives before it. What it rounds is also computed in float64 by the definition, and how
large its rounding error may be by the same file with absolute values throughout.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference.op_run import OpRun
from oracle import evaluate, to_double

ROUNDOFF = 2.0**-24
_KEEPS_ORDER = ("Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "HardSwish", "Dropout")
"""Functions with slopes of about 1 at most: an error of what they read is one of what they give."""

Arrays = dict[str, np.ndarray]


class DequantizeLinear(OpRun):
    """As in every operator set that has a scale for each index of an axis; onnx's own begins with 19."""

    op_domain = ""

    def _run(self, integers, scale, zero=None, axis=1, **_):
        along = [1] * integers.ndim
        if scale.size > 1:
            along[axis] = scale.size
        shift = 0.0 if zero is None else zero.astype(scale.dtype).reshape(along if zero.size > 1 else ())
        return (scale.reshape(along if scale.size > 1 else ()) * (integers.astype(scale.dtype) - shift),)


@dataclass(slots=True)
class Steps:
    """What the rounding steps of a file give beside those of another.

    Attributes:
        count: How many elements they have.
        differing: How many of these are not the same integer.
        largest: The largest difference of two, in integers.
        distance: Of those that differ, how far the unrounded value is from the middle between two integers at most, in
            units of the rounding bound of its region.
        off_before: How many are not what float64 rounds to, in the first file.
        off_after: The same of the second.
    """

    count: int = 0
    differing: int = 0
    largest: int = 0
    distance: float = 0.0
    off_before: int = 0
    off_after: int = 0


def compare(original: onnx.ModelProto, folded: onnx.ModelProto, samples: Iterable[Arrays]) -> Steps:
    """Compares the steps of two files for some inputs, without optimisations of the runtime."""
    steps = [*steps_of(original)]
    names = [node.output[0] for node in steps]
    if {*names} != {node.output[0] for node in steps_of(folded)}:
        raise ValueError("the files have other steps")
    constants = _constant_steps(original)
    unrounded = _cut(original, [*names, *constants], rounded=False)
    bounded, cut = _absolute(unrounded), _cut(folded, names)
    total = Steps()
    for feeds in samples:
        given = run(_exposed(original, [*names, *constants]), feeds)
        found = run(cut, {**feeds, **given})
        exact = _in_float64(unrounded, {**feeds, **given})
        magnitudes = {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in feeds.items()}
        bounds = _in_float64(bounded, {**magnitudes, **given})
        for node in steps:
            name, value = node.output[0], node.input[0]
            scale, zero = (float(_constant(original, read).reshape(-1)[0]) for read in node.input[1:3])
            limits = np.iinfo(given[name].dtype)
            wide = exact[value] / scale
            right = np.clip(np.rint(wide) + zero, limits.min, limits.max)
            one, other = (array.astype(np.int64) for array in (given[name], found[f"{name}/own"]))
            apart = one != other
            from_middle = np.abs(wide - np.floor(wide) - 0.5)[apart] * scale
            total.count += one.size
            total.differing += int(apart.sum())
            total.largest = max(total.largest, int(np.abs(one - other).max()))
            total.distance = max([total.distance, *(from_middle / (ROUNDOFF * bounds[value][apart])).tolist()])
            total.off_before += int((one != right).sum())
            total.off_after += int((other != right).sum())
    return total


def _in_float64(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    return evaluate(to_double(model), _for(model, feeds), operators=(DequantizeLinear,))


def steps_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The QuantizeLinears that depend on inputs, in order."""
    varying = _varying(model)
    yield from (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.output[0] in varying)


def run(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """The outputs of a model, without optimisations of the runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, _for(model, feeds)), strict=True)) if names else {}


def _for(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: feeds[value.name] for value in model.graph.input if value.name not in stored}


def _varying(model: onnx.ModelProto) -> set[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    varying = {value.name for value in model.graph.input} - stored
    for node in model.graph.node:
        if varying.intersection(node.input):
            varying.update(node.output)
    return varying


def _constant_steps(model: onnx.ModelProto) -> list[str]:
    varying = _varying(model)
    quantised = (node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    return [name for name in quantised if name not in varying]


def _constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = next(node for node in model.graph.node if name in node.output)
    if node.op_type == "Identity":
        return _constant(model, node.input[0])
    return numpy_helper.to_array(node.attribute[0].t)


def _exposed(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A file that gives some of its integers."""
    copy = _copy(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _cut(model: onnx.ModelProto, names: Iterable[str], *, rounded: bool = True) -> onnx.ModelProto:
    """A file that reads some of its integers, and gives what it makes of them; or what it would round."""
    copy, wanted, varying = _copy(model), {*names}, _varying(model)
    graph = copy.graph
    del graph.output[:]
    kept = []
    for node in graph.node:
        name = node.output[0] if node.op_type == "QuantizeLinear" else ""
        if name not in wanted:
            kept.append(node)
            continue
        kind = helper.np_dtype_to_tensor_dtype(_constant(model, node.input[2]).dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, None))
        if rounded:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.output[0] = f"{name}/own"
            kept.append(own)
        if name in varying:
            result = helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
            if rounded:
                result = onnx.ValueInfoProto(name=f"{name}/own")
            if result.name not in {value.name for value in graph.output}:
                graph.output.append(result)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
    return _pruned(copy)


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without what its outputs do not need."""
    needed, kept = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    inputs = [value for value in model.graph.input if value.name in needed]
    inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def _absolute(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same sums with the absolute values of all that they add up."""
    copy = _copy(model)
    graph, nodes = copy.graph, list[onnx.NodeProto]()
    read = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in read:
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    for node in graph.node:
        if node.op_type in _KEEPS_ORDER:
            nodes.append(helper.make_node("Identity", node.input[:1], node.output[:1]))
            continue
        same = onnx.NodeProto.FromString(node.SerializeToString())
        if node.op_type == "Sub":
            same.op_type = "Add"
        if node.op_type == "BatchNormalization":
            mean = f"{node.output[0]}/mean"
            nodes.append(helper.make_node("Abs", [node.input[3]], [f"{mean}/abs"]))
            nodes.append(helper.make_node("Neg", [f"{mean}/abs"], [mean]))
            same.input[3] = mean
        if node.op_type == "DequantizeLinear":
            same.output[0] = f"{node.output[0]}/signed"
            nodes.append(same)
            same = helper.make_node("Abs", [same.output[0]], [node.output[0]])
        nodes.append(same)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 8)  # of which constants need not be inputs
    del copy.graph.value_info[:]
    return copy
