"""Quantised outputs: one step where the number before it is near a tie is rounding, more is a fault."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_fold import batch_norm, parse, random

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.judging.comparing import compare_results
from bnfold.verification.onnx.outputs.steps import Step, Stepless

NETWORK = """
agraph (float[1,3,12,12] x) => (float[1,4,10,10] y)
{
  c = Conv (x, w)
  n = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
  r = Relu (n)
  q = QuantizeLinear (r, scale, zero)
  y = DequantizeLinear (q, scale, zero)
}
"""
INTEGERS = NETWORK.replace("float[1,4,10,10] y", "uint8[1,4,10,10] q").replace(
    "  y = DequantizeLinear (q, scale, zero)\n", ""
)
TWO_STEPS = NETWORK.replace("Conv (x, w)", "Conv (d, w)").replace(
    "{\n  c", "{\n  p = QuantizeLinear (x, first, middle)\n  d = DequantizeLinear (p, first, middle)\n  c"
)


def network(text: str, seed: int, scale: float = 1e-4) -> onnx.ModelProto:
    """A fine scale, so that many numbers are near a tie; those above 255 steps are cut off."""
    constants = {"w": random(4, 3, 3, 3, seed=seed) * 0.01, **batch_norm(4, seed=seed)}
    constants |= {"bn_b": constants["bn_b"] * 0.01, "bn_m": constants["bn_m"] * 0.01}
    given = {name: array.astype(np.float32) for name, array in constants.items()}
    steps = {"scale": np.float32(scale), "zero": np.uint8(0), "first": np.float32(0.02), "middle": np.uint8(128)}
    return parse(text, **given, **{name: np.asarray(number) for name, number in steps.items() if name in text})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("text", [NETWORK, INTEGERS, TWO_STEPS], ids=["float", "integers", "two steps"])
def test_a_fold_passes_whatever_the_seed(text: str, seed: int) -> None:
    model = network(text, seed)
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    report = bnfold.verify(model, folded.model, device="cpu", seed=seed)
    assert (report.verdict, report.reason) == ("pass", "")


def test_a_coarse_step_that_nothing_crosses_passes() -> None:
    """No parameter moves a rounded output that is as coarse as this: what comes before the step does move."""
    model = network(NETWORK, 0, scale=1.0)
    report = bnfold.verify(model, bnfold.fold(model).model, device="cpu")
    assert report.verdict == "pass"
    assert report.outputs[0].max_abs == 0


@pytest.mark.parametrize("text", [NETWORK, INTEGERS, TWO_STEPS], ids=["float", "integers", "two steps"])
def test_a_fault_is_found_before_the_step(text: str) -> None:
    model = network(text, 0, scale=1.0)
    broken = bnfold.fold(model).model
    tensor = next(tensor for tensor in broken.graph.initializer if tensor.name == "w_folded")
    array = numpy_helper.to_array(tensor).copy()
    array[1] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    report = bnfold.verify(model, broken, device="cpu")
    assert report.verdict == "fail"
    assert report.outputs[0].verdict == "fail"


def test_other_steps_are_no_steps_to_take_out() -> None:
    model = network(NETWORK, 0)
    other = network(NETWORK, 0, scale=2e-4)
    assert Stepless.of(from_proto(model), from_proto(model)) is not None
    assert Stepless.of(from_proto(model), from_proto(other)) is None
    assert bnfold.verify(model, other, device="cpu").verdict == "fail"


def test_several_steps_off_is_a_fault_even_so() -> None:
    model = from_proto(network(NETWORK, 0))
    stepless = Stepless(model, model, (Step("y", 0.5, 0.5, 0.0, 127.5),))
    passed = OutputMetrics("y", "float32", (3,), Verdict.PASS)
    for off, verdict in ((0.5, Verdict.PASS), (1.0, Verdict.FAIL)):
        result = np.array([1.0, 2.0, 3.0 + off], np.float32)
        compared = compare_results([{"y": np.array([1.0, 2.0, 3.0], np.float32)}], [{"y": result}], None)
        (output,) = stepless.judged([passed], compared)
        assert output.verdict is verdict
    assert output.reason == "output 'y' is 2 steps of its quantisation off"
