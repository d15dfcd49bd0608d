"""Real architectures, each exported in every usual way: first the files against PyTorch, then bnfold on the files."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import exporters
import numpy as np
import onnx
import onnxruntime as ort
import oracle
import pytest
import torch
import zoo
from zoo import ZOO, Variant, ZooModel

import bnfold

EXACT = 1e-10
EPS32 = float(np.finfo(np.float32).eps)

# Two float32 runs of one network differ by a factor of their rounding errors that depends on the order of the
# operations: correct folds were seen between 0.2 and 1.5.
NOISE_FACTOR = 4.0

QUICK = ("emu3_temporal_block", "fastspeech2_convolution", "superglue_keypoints")

# How many BatchNorms of each network may stay, the same for every exporter; 0 if not named.
LEFT = {
    "textnet": 4,  # identity branches
    "efficientloftr": 4,  # identity branches
    "pp_lcnet_v3": 6,  # identity branches
    "bit": 9,  # training mode, on weights
    "emu3_temporal_block": 1,  # on the input, before a SiLU
    "clap_audio": 1,  # on the input's mel bins
    "hubert": 1,  # a shift before a zero-padded convolution
    "patchtsmixer": 4,  # before a gate, on a value that goes on
    "sam3_lite_text": 4,  # RepMixer
}


@dataclass
class Network:
    """A network of the zoo, its files and its float64 outputs, each made once."""

    model: ZooModel
    folder: Path

    @cached_property
    def built(self) -> zoo.Built:
        return self.model.build()

    @cached_property
    def files(self) -> dict[Variant, Path]:
        return zoo.export_all(self.model, self.built, self.folder)

    @cached_property
    def reference(self) -> list[np.ndarray]:
        return zoo.reference_outputs(self.built)

    @cached_property
    def float32_error(self) -> list[float]:
        """How far PyTorch's own float32 run is from float64, per output."""
        module, inputs = self.built
        with torch.no_grad():
            return [
                oracle.relative_error(y.double().numpy(), expected)
                for y, expected in zip(module(*inputs), self.reference, strict=True)
            ]


@dataclass
class Case:
    """One file of a network, and its fold."""

    network: Network
    variant: Variant
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.network.files[self.variant]

    @cached_property
    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @cached_property
    def double(self) -> onnx.ModelProto:
        return oracle.to_double(self.proto)

    @cached_property
    def exact_outputs(self) -> dict[str, np.ndarray]:
        return oracle.evaluate(self.double, self.feeds)

    @cached_property
    def folded(self) -> bnfold.FoldResult[onnx.ModelProto]:
        return bnfold.fold(self.path)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        # An exporter drops inputs that the outputs do not depend on.
        arrays = {f"input_{i}": x.numpy() for i, x in enumerate(self.network.built[1])}
        return {value.name: arrays[value.name] for value in self.proto.graph.input}


CASES = [
    pytest.param(
        (model, variant),
        id=f"{model.name}-{variant}",
        marks=[] if model.name in QUICK else [pytest.mark.slow],
    )
    for model in ZOO
    for variant in Variant
    if variant not in model.failures
]


@pytest.fixture(scope="module")
def networks(exported: Path) -> dict[str, Network]:
    return {model.name: Network(model, exported) for model in ZOO}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, networks: dict[str, Network]) -> Iterator[Case]:
    # A parameter of a fixture, not of each test, so that pytest runs all tests on one file before the next.
    model, variant = request.param
    return Case(networks[model.name], variant)


def test_oracle_equals_pytorch(case: Case) -> None:
    model = case.network.model
    outputs = list(case.exact_outputs.values())
    errors = [oracle.relative_error(y, e) for y, e in zip(outputs, case.network.reference, strict=True)]
    if case.variant in exporters.MERGED or case.variant in model.rounded:
        # The file holds weights that the exporter has computed and rounded to float32.
        bounds = [NOISE_FACTOR * max(error, EPS32) for error in case.network.float32_error]
    else:
        bounds = [EXACT] * len(errors)
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True)), (errors, bounds)


def test_every_batch_norm_is_accounted_for(case: Case) -> None:
    plan = case.folded.plan
    names = [node.name for node in zoo.batch_norms(case.proto)]
    # An entry may name other affines that were composed into its BatchNorm, so only these names count.
    folded = [name for entry in plan.folds for name in entry.nodes if name in names]
    left = [name for entry in plan.left for name in entry.nodes if name in names]
    merged = [name for entry in plan.merges for name in entry.nodes if name in names]
    assert sorted(folded + merged + left) == sorted(names)
    assert (plan.batch_norms_folded, plan.batch_norms_left) == (len(folded + merged), len(left))
    assert len(left) <= LEFT.get(case.network.model.name, 0)
    assert all(entry.code and entry.reason for entry in plan.left)
    # A model without anything to fold comes back as it was.
    assert not case.folded.changed or plan.folds or plan.merges or plan.left


def test_fold_is_exact(case: Case) -> None:
    for leftover in ("conv", "mul-add", "keep") if case.folded.plan.left else ("conv",):
        folded = bnfold.fold(case.double, leftover=leftover).model
        outputs = oracle.evaluate(folded, case.feeds)
        assert list(outputs) == list(case.exact_outputs)
        errors = {name: oracle.relative_error(outputs[name], case.exact_outputs[name]) for name in outputs}
        assert max(errors.values()) < EXACT, (leftover, errors)


def test_folded_file_is_valid(case: Case, tmp_path: Path) -> None:
    case.folded.save(tmp_path / "folded.onnx")
    onnx.checker.check_model(tmp_path / "folded.onnx", full_check=True)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert folded.graph.input == case.proto.graph.input
    assert folded.graph.output == case.proto.graph.output
    in_training_mode = sum(left.code == "training_mode" for left in case.folded.plan.left)
    not_constant = sum(left.code == "parameters_not_constant" for left in case.folded.plan.left)
    assert len(zoo.batch_norms(folded)) == in_training_mode + not_constant


def test_folded_float32_is_as_good_as_the_original(case: Case) -> None:
    before = _run(case.path.read_bytes(), case.feeds)
    after = _run(case.folded.model.SerializeToString(), case.feeds)
    for y, y_folded, exact in zip(before, after, case.network.reference, strict=True):
        noise = oracle.relative_error(y.astype(np.float64), exact)
        error = oracle.relative_error(y_folded.astype(np.float64), exact)
        assert error <= NOISE_FACTOR * max(noise, EPS32)


def test_second_fold_changes_nothing(case: Case) -> None:
    once = case.folded.model
    again = bnfold.fold(once)
    assert not again.plan.folds
    assert not again.changed
    assert again.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def _run(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "variant"),
    [pytest.param(model, variant, id=f"{model.name}-{variant}") for model in ZOO for variant in model.failures],
)
def test_exporter_still_fails(model: ZooModel, variant: Variant, networks: dict[str, Network], tmp_path: Path) -> None:
    # An exporter that has learned it belongs into the zoo.
    with pytest.raises(Exception, match=model.failures[variant]):
        exporters.export_variant(networks[model.name].built, tmp_path / "model.onnx", variant)


@pytest.mark.parametrize("exporter", exporters.Exporter)
def test_fold_with_dynamic_batch(exporter: str, networks: dict[str, Network], tmp_path: Path) -> None:
    module, inputs = networks["fastspeech2_convolution"].built
    path = tmp_path / "model.onnx"
    zoo.export((module, inputs), path, exporter=exporter, constant_folding=False, dynamic_batch=True)
    double = oracle.to_double(onnx.load(path))
    assert double.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    result = bnfold.fold(double)
    assert result.plan.folds
    for batch in (1, 5):
        feeds = {"input_0": np.random.default_rng(batch).standard_normal((batch, *inputs[0].shape[1:]))}
        expected, actual = oracle.evaluate(double, feeds), oracle.evaluate(result.model, feeds)
        for name in expected:
            assert oracle.relative_error(actual[name], expected[name]) < EXACT


def test_networks_have_awkward_parameters() -> None:
    # What makes the comparisons mean something: negative and zero gammas, means and variances away from 0 and 1.
    module, _ = next(model for model in ZOO if model.name == "resnet").build()
    batch_norms = [child for child in module.modules() if zoo.is_batch_norm(child)]
    gammas = torch.cat([child.weight for child in batch_norms])
    assert (gammas < 0).sum() > 0.1 * len(gammas)
    assert (gammas == 0).sum() > 0.02 * len(gammas)
    assert all(child.running_mean.abs().max() > 0.05 for child in batch_norms)
    assert all((child.running_var.log().abs() > 0.1).any() for child in batch_norms)


def test_build_is_deterministic() -> None:
    model = next(model for model in ZOO if model.name == "fastspeech2_convolution")
    (first, inputs), (second, again) = model.build(), model.build()
    for x, y in itertools.chain(
        zip(inputs, again, strict=True),
        zip(first.state_dict().values(), second.state_dict().values(), strict=True),
    ):
        assert torch.equal(x, y)
