"""Rounding steps of quantised models, taken out of both models before their outputs are judged.

QuantizeLinear is a staircase: two correct ways to compute its input give the same number, or where that is near a tie,
numbers that are one step apart, which is many times the rounding noise. So the outputs are judged with each
QuantizeLinear → DequantizeLinear of both models replaced by what it is but for the rounding,

    s · (clip(round(x / s) + z, low, high) − z)      →      clip(x, s · (low − z), s · (high − z)),

which is possible only where both models have the same steps; the fold never touches one. Behind a single step, the
outputs themselves may be one step apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.names import FreshNames, find_attribute, is_standard, opset_version
from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.judging.comparing import Compared, metrics_only

_CLIP_READS_ITS_BOUNDS_SINCE = 11
_SOME_LATITUDE = 1.5  # steps: one step, and what rounding makes of it


@dataclass(frozen=True, slots=True)
class Step:
    """A QuantizeLinear with its DequantizeLinear, or without one where its integers are an output.

    Attributes:
        result: The value that comes out of it.
        unit: The distance of two neighbouring numbers that come out.
        scale: The scale.
        low: The smallest number that comes out.
        high: The largest.
    """

    result: str
    unit: float
    scale: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Stepless:
    """Both models without their rounding steps.

    Attributes:
        original: The original.
        folded: The folded model.
        steps: What was taken out of each of them.
    """

    original: OnnxModel
    folded: OnnxModel
    steps: tuple[Step, ...]

    @staticmethod
    def of(original: OnnxModel, folded: OnnxModel) -> Stepless | None:
        """Takes the steps out of copies of two models; None if there are none, or not the same ones in both."""
        first, second = original.copy(), folded.copy()
        steps = _take_out(first)
        return Stepless(first, second, steps) if steps and steps == _take_out(second) else None

    def judged(self, outputs: Sequence[OutputMetrics], compared: Mapping[str, Compared]) -> tuple[OutputMetrics, ...]:
        """The outputs as they are, with the verdicts on them without steps.

        Args:
            outputs: The verdicts.
            compared: The outputs with all steps, of both models.
        """
        verdicts = {output.name: output for output in outputs}
        alone = {step.result: step for step in self.steps} if len(self.steps) == 1 else {}
        return tuple(
            _decided(output, verdicts[output.name], compared[output.name], alone.get(output.name))
            for output in metrics_only(compared)
        )


def _decided(output: OutputMetrics, stepless: OutputMetrics, compared: Compared, step: Step | None) -> OutputMetrics:
    mismatch = next((item.mismatch for item in compared.comparisons if item.mismatch), "")
    if mismatch:
        return replace(output, verdict=Verdict.FAIL, reason=f"output {output.name!r} {mismatch}")
    if step is not None and output.max_abs is not None and output.max_abs > _SOME_LATITUDE * step.unit:
        reason = f"output {output.name!r} is {output.max_abs / step.unit:.0f} steps of its quantisation off"
        return replace(output, verdict=Verdict.FAIL, reason=reason)
    return replace(
        output,
        verdict=stepless.verdict,
        reason=stepless.reason,
        noise_ratio=stepless.noise_ratio,
        noise_rel_l2=stepless.noise_rel_l2,
    )


def _take_out(model: OnnxModel) -> tuple[Step, ...]:
    """Replaces the steps of the main graph, in place."""
    graph = model.proto.graph
    if opset_version(model.proto.opset_import) < _CLIP_READS_ITS_BOUNDS_SINCE:
        return ()
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if is_standard(node, "Constant"):
            value = find_attribute(node, "value")
            stored |= {} if value is None else {node.output[0]: value.t}
    quantised = {node.output[0]: node for node in graph.node if is_standard(node, "QuantizeLinear")}
    integers = {value.name: value for value in graph.output if value.name in quantised}
    names = FreshNames(model.proto)
    steps, replaced = [], {}
    for node in graph.node:
        maker = quantised.get(node.input[0]) if is_standard(node, "DequantizeLinear") else None
        maker = node if integers.keys() & node.output else maker
        if maker is None or maker.input[0] in stored:
            continue
        numbers = [_scalars(model, stored, read) for read in (maker, node)]
        if numbers[0] is None or numbers[0] != numbers[1]:
            continue
        scale, zero, limits = numbers[0]
        data_type = stored[node.input[1]].data_type
        dtype = helper.tensor_dtype_to_np_dtype(data_type)
        bounds = [float(scale * (limit - zero)) for limit in limits]
        steps.append(Step(node.output[0], 1.0 if maker is node else scale, scale, *bounds))
        ends = [numpy_helper.from_array(np.array(bound, dtype), names.fresh("bound")) for bound in bounds]
        graph.initializer.extend(ends)
        clip = helper.make_node("Clip", [maker.input[0], *(end.name for end in ends)], node.output, name=node.name)
        replaced[node.output[0]] = node, clip
        if maker is node:
            integers[node.output[0]].type.tensor_type.elem_type = data_type
    gone = {name for name in integers if name in replaced}
    kept = [node for node in graph.node if not any(name in replaced for name in node.output)]
    if any(gone.intersection(node.input) for node in kept):
        return ()
    for node, clip in replaced.values():
        node.CopyFrom(clip)
    return tuple(steps)


def _scalars(
    model: OnnxModel, stored: Mapping[str, onnx.TensorProto], node: onnx.NodeProto
) -> tuple[float, int, tuple[int, int]] | None:
    """Scale, zero point, and the limits of the integer type of a step for whole tensors; None for any other."""
    names = [*node.input[1:], ""][:2]
    tensors = [stored.get(name) for name in names]
    if tensors[0] is None or (names[1] and tensors[1] is None):
        return None
    arrays = [None if tensor is None else model.array(tensor) for tensor in tensors]
    if any(array is not None and array.size != 1 for array in arrays) or arrays[0] is None:
        return None
    if any(given.name in ("output_dtype", "block_size") and given.i for given in node.attribute):
        return None
    zero = np.zeros(1, np.uint8) if arrays[1] is None else arrays[1]
    if zero.dtype.kind not in "iu" or zero.dtype.itemsize > 2:
        return None
    limits = np.iinfo(zero.dtype)
    return float(arrays[0].reshape(-1)[0]), int(zero.reshape(-1)[0]), (int(limits.min), int(limits.max))
