"""The light models of the onnx package, folded: as they are, and with weights that prove more."""

from pathlib import Path

import light_models
import numpy as np
import onnx
import onnxruntime as ort
import oracle
import pytest

import bnfold

EPS32 = float(np.finfo(np.float32).eps)
NAMES = [
    pytest.param(name, marks=() if name == "shufflenet" else pytest.mark.slow) for name in light_models.BATCH_NORMS
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def randomised(name: str) -> onnx.ModelProto:
    return light_models.random_weights(light_models.load(name), seed=7)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_oracle_gives_the_recorded_output(name: str) -> None:
    feeds, expected = light_models.recorded(name)
    (y,) = oracle.evaluate(oracle.to_double(light_models.load(name)), feeds).values()
    assert oracle.relative_error(expected.astype(np.float64), y) < 1e-6


@pytest.mark.parametrize("weights", ["constant", "random"])
def test_fold_counts(name: str, weights: str, randomised: onnx.ModelProto) -> None:
    model = randomised if weights == "random" else light_models.load(name)
    plan = bnfold.inspect(model)
    assert (plan.batch_norms, plan.batch_norms_left) == light_models.BATCH_NORMS[name]
    assert {left.code for left in plan.left} <= {"other_consumers", "no_rule", "nonlinear"}


def test_recorded_output_still_matches(name: str, tmp_path: Path) -> None:
    feeds, expected = light_models.recorded(name)
    result = bnfold.fold(light_models.FOLDER / f"light_{name}.onnx")
    result.save(tmp_path / "folded.onnx")
    onnx.checker.check_model(tmp_path / "folded.onnx", full_check=True)
    # The tolerance of onnx's own tests of these files.
    np.testing.assert_allclose(run(onnx.load(tmp_path / "folded.onnx"), feeds), expected, rtol=1e-3, atol=1e-7)
    (exact,) = oracle.evaluate(oracle.to_double(result.model), feeds).values()
    assert oracle.relative_error(expected.astype(np.float64), exact) < 1e-6


def test_random_weights_are_like_trained_ones(name: str, randomised: onnx.ModelProto) -> None:
    assert randomised.ir_version == 3
    inputs = {value.name for value in randomised.graph.input}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in randomised.graph.initializer}
    assert set(arrays) < inputs
    assert not any(node.op_type == "ConstantOfShape" for node in randomised.graph.node)
    batch_norms = [node for node in randomised.graph.node if node.op_type == "BatchNormalization"]
    gammas = np.concatenate([arrays[node.input[1]] for node in batch_norms])
    assert (gammas < 0).mean() > 0.1
    assert (gammas == 0).mean() > 0.01
    assert all((arrays[node.input[4]] > 0).all() for node in batch_norms)
    values = oracle.evaluate(randomised, light_models.random_image(randomised, seed=8), intermediate=True)
    for node in randomised.graph.node:
        assert 1e-3 < np.abs(values[node.output[0]]).max() < 1e3, node.name


def test_fold_with_random_weights_is_exact(randomised: onnx.ModelProto) -> None:
    feeds = light_models.random_image(randomised, seed=8)
    double = oracle.to_double(randomised)
    (expected,) = oracle.evaluate(double, feeds).values()
    (y,) = oracle.evaluate(bnfold.fold(double).model, feeds).values()
    assert oracle.relative_error(y, expected) < 1e-10


def test_fold_with_random_weights_in_float32(randomised: onnx.ModelProto) -> None:
    feeds = light_models.random_image(randomised, seed=8)
    result = bnfold.fold(randomised)
    onnx.checker.check_model(result.model, full_check=True)
    (exact,) = oracle.evaluate(oracle.to_double(randomised), feeds).values()
    noise = oracle.relative_error(run(randomised, feeds).astype(np.float64), exact)
    error = oracle.relative_error(run(result.model, feeds).astype(np.float64), exact)
    # Two float32 runs differ by a factor of their rounding errors that depends on the order of the operations.
    assert error <= 4 * max(noise, EPS32)


def test_second_fold_changes_nothing(randomised: onnx.ModelProto) -> None:
    once = bnfold.fold(randomised).model
    again = bnfold.fold(once)
    assert not again.plan.folds
    assert not again.changed
    assert again.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
