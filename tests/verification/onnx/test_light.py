"""The light models of the onnx package: IR version 3, and weights from ConstantOfShape nodes."""

import light_models
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.report import Verdict
from bnfold.verification import verify

NAMES = (pytest.param("resnet50", marks=pytest.mark.slow), "shufflenet")


@pytest.mark.parametrize("name", NAMES)
def test_constant_weights_are_moved_too(name):
    """Equal to itself, and nothing else; where the constants saturate the softmax, that is said."""
    path = light_models.FOLDER / f"light_{name}.onnx"
    report = verify(path, path, device="cpu", samples=1)
    (output,) = report.outputs
    assert output.max_abs == 0
    if name == "shufflenet":
        assert report.verdict is Verdict.PASS
        assert output.noise_rel_l2 > 0
    else:
        assert report.verdict is Verdict.INCONCLUSIVE
        assert "does not react to the parameters" in report.reason


@pytest.mark.parametrize("name", NAMES)
def test_with_random_weights_a_correct_fold_passes_and_a_faulty_one_fails(name):
    model = light_models.random_weights(light_models.load(name), seed=0)
    folded = bnfold.fold(model).model
    report = verify(model, folded, device="cpu", samples=2)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert 0.01 < report.outputs[0].noise_ratio < 2
    bias = next(t for t in folded.graph.initializer if len(t.dims) == 1 and t.data_type == 1)
    array = numpy_helper.to_array(bias).copy()
    array[abs(array).argmax()] *= 1.1
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    wrong = verify(model, folded, device="cpu", samples=2)
    assert wrong.verdict is Verdict.FAIL, wrong.summary_line()
