"""verify on PyTorch models: what it accepts, what it leaves untouched, and what it cannot tell."""

import copy
import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_networks as networks
from torch import nn

import bnfold
from bnfold.errors import DeviceError, UnsupportedModelError, UsageError, VerificationError
from bnfold.report import Exact, Verdict
from bnfold.verification.torch.run import devices
from bnfold.verification.torch.run.flatten import flatten


def cpu(original, folded, **options):
    return bnfold.verify(original, folded, **{"device": "cpu", "samples": 2, **options})


@pytest.fixture(scope="module")
def given():
    return networks.network("residual")


@pytest.fixture(scope="module")
def folded(given):
    return networks.folded(given)


def to_onnx(module, inputs, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, dynamo=True, verbose=False).save(path)


def export(given, module=None):
    return torch.export.export(given.module if module is None else module, given.inputs)


# --- what can be compared with what ---


def test_programs_and_modules_in_any_pair(given, folded, tmp_path):
    programs = export(given), export(given, folded)
    path = tmp_path / "folded.pt2"
    torch.export.save(programs[1], path)
    for pair in ((given.module, programs[1]), (programs[0], folded), (programs[0], path), (str(path), programs[0])):
        report = cpu(*pair, example_inputs=given.inputs)
        assert all(output.verdict is Verdict.PASS for output in report.outputs)
    report = cpu(programs[0], folded)
    assert report.verdict is Verdict.PASS, "a program knows what it can be called with"
    assert len(report.sites) == len(given.pairs)
    assert [info.name for info in report.config.inputs] == ["image"]


def test_an_onnx_file_is_compared_with_the_module_that_it_was_made_of(given, folded, tmp_path):
    path = tmp_path / "folded.onnx"
    to_onnx(folded, given.inputs, path)
    report = cpu(given.module, path, example_inputs=given.inputs)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert [output.name for output in report.outputs] == ["logits", "features"]
    assert report.device.provider == "torch and CPUExecutionProvider"
    assert "so the outputs decide" in report.sites_note
    assert all(output.float64_ratio is None and output.noise_ratio > 0 for output in report.outputs)
    wrong = networks.folded(given, networks.gammas_swapped)
    to_onnx(wrong, given.inputs, path)
    assert cpu(given.module, path, example_inputs=given.inputs).verdict is Verdict.FAIL


def test_an_onnx_original_has_no_pytorch_fold(folded, tmp_path):
    with pytest.raises(UsageError, match="the original is an ONNX model"):
        bnfold.verify(tmp_path / "some.onnx", folded)
    with pytest.raises(UsageError, match="example_inputs are for PyTorch"):
        bnfold.verify(tmp_path / "some.onnx", tmp_path / "other.onnx", example_inputs=(1,))


def test_onnx_files_are_verified_without_torch():
    script = "import sys, bnfold; bnfold.verify; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_torchscript_is_refused(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(given.module.blocks, (torch.randn(1, 16, 8, 8),))
    with pytest.raises(UnsupportedModelError):
        cpu(scripted, given.module, example_inputs=given.inputs)


# --- devices ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_cuda_asked_for_and_missing(given, folded):
    with pytest.raises(DeviceError, match="CUDA cannot be used: the installed torch") as raised:
        cpu(given.module, folded, example_inputs=given.inputs, device="cuda")
    assert raised.value.exit_code == 4
    report = cpu(given.module, folded, example_inputs=given.inputs, device="auto")
    assert report.verdict is Verdict.PASS
    assert report.device.used == "cpu"
    assert report.device.fell_back.startswith("CUDA cannot be used: ")


def test_a_build_with_cuda_but_no_driver_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(devices, "cannot_open", lambda name: name)
    with pytest.raises(DeviceError, match=r"does not find libcuda.so.1 \(the NVIDIA driver\)"):
        devices.torch_device(devices.DeviceRequest.CUDA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tensorrt"}, "do not run on tensorrt"),
        ({"device": "gpu"}, "unknown device"),
        ({"device": "cpu", "tf32": True}, "tf32 was asked for on cpu"),
    ],
)
def test_devices_that_make_no_sense(given, folded, options, message):
    with pytest.raises(UsageError, match=message):
        cpu(given.module, folded, example_inputs=given.inputs, **options)


def test_the_device_is_reported_with_what_ran_on_it(given, folded):
    device = cpu(given.module, folded, example_inputs=given.inputs).device
    assert (device.used, device.provider, device.tf32) == ("cpu", "torch", False)
    assert device.nodes_per_provider["cpu"] > 15
    assert device.nodes_elsewhere == ()


def test_a_convolution_elsewhere_is_an_error(given, folded):
    """The meta device stands in for a second one."""

    class Elsewhere(nn.Module):
        def forward(self, x):
            torch.nn.functional.conv2d(x.to("meta"), torch.ones(1, 3, 3, 3, device="meta"))
            return x

    with pytest.raises(DeviceError, match="aten::convolution on meta where cpu was asked for"):
        cpu(Elsewhere(), Elsewhere(), example_inputs=given.inputs)


# --- nothing is changed ---


def test_models_settings_and_random_states_are_as_before(given, folded):
    original = copy.deepcopy(given.module)
    original.blocks[1].train()  # a part in training mode changes its buffers when it runs
    other = copy.deepcopy(folded)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    modes = [module.training for module in original.modules()]
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    try:
        random = torch.random.get_rng_state()
        inputs = tuple(value.clone() for value in given.inputs)
        with torch.autocast("cpu", torch.bfloat16):
            report = cpu(original, other, inputs=inputs)
        assert torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False)
        assert torch.get_default_dtype() is torch.float32
        assert torch.equal(torch.random.get_rng_state(), random)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False
    assert all(torch.equal(first, second) for first, second in zip(inputs, given.inputs, strict=True))
    assert report.outputs[0].dtype == "float32", "the autocast of the caller is not the model's"
    assert modes == [module.training for module in original.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


def test_plain_attributes_that_a_model_keeps_for_itself_stay(given):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.calls = 0
            self.table = torch.zeros(3)

        def forward(self, x):
            self.calls += 1
            self.table += 1
            return self.linear(x)

    module = Counting().eval()
    cpu(module, copy.deepcopy(module), example_inputs=(torch.randn(2, 3),))
    assert module.calls == 0
    assert not module.table.any()


def test_each_run_finds_what_the_first_found(given):
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.seen, self.state = [], SimpleNamespace(first=None)

        def forward(self, x):
            self.seen.append(x)
            self.state.first = x if self.state.first is None else self.state.first
            return self.linear(x) + 10 * self.seen[0] + 10 * self.state.first

    module = Remembering().eval()
    report = cpu(module, copy.deepcopy(module), example_inputs=(torch.randn(2, 3),))
    assert report.verdict is Verdict.PASS, report.summary_line()


def test_what_changed_inside_of_a_transform_is_judged_by_the_outputs():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.body[1].running_mean += 0.5

        def forward(self, x):
            return torch.vmap(self.body)(x).relu()

    module = Mapped().eval()
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(3, 2, 3, 6, 6),), strict=False)
    result = bnfold.fold(program)
    assert result.plan.batch_norms_folded == 1
    report = cpu(program, result.model)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert "inside of a transform of torch.func" in report.sites_note
    name = next(name for name in result.model.state_dict if name.endswith("bias"))
    result.model.state_dict[name].data.add_(0.01)
    assert cpu(program, result.model).verdict is Verdict.FAIL


def test_old_weight_norm_is_copied_without_its_history():
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))).eval()
    report = cpu(module, module, example_inputs=(torch.randn(2, 4),))
    assert report.verdict is Verdict.PASS, report.summary_line()


def test_one_model_in_training_mode_is_a_mistake(given, folded):
    training = copy.deepcopy(given.module).train()
    with pytest.raises(UsageError, match="the original model is in training mode"):
        cpu(training, folded, example_inputs=given.inputs)


def test_the_module_of_a_program_is_not_in_training_mode(given, folded):
    """It says that it is, and refuses `eval`."""
    made = export(given, folded).module()
    assert made.training
    assert cpu(given.module, made, example_inputs=given.inputs).verdict is Verdict.PASS


# --- inputs ---


def test_without_example_inputs_nothing_can_be_called(given, folded):
    with pytest.raises(UsageError, match="nothing tells what the original model can be called with"):
        cpu(given.module, folded)


def test_inputs_in_every_form(given, folded):
    image = given.inputs[0]
    for inputs in ((image,), {"image": image}, [(image,), (2 * image,)], [{"image": image.numpy()}]):
        report = cpu(given.module, folded, inputs=inputs)
        assert report.verdict is Verdict.PASS, report.summary_line()
        assert report.config.inputs[0].source == "given"
        assert report.config.samples == (2 if isinstance(inputs, list) and len(inputs) == 2 else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": []}, "empty sequence"),
        ({"inputs": [{"picture": np.zeros(3)}]}, "'picture', which is not an input"),
        (
            {"inputs": [{"image": np.zeros((2, 3, 24, 24))}]},
            r"given as torch.float64, but the model takes torch.float32",
        ),
        ({"samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"value_ranges": {"mask": (0, 1)}}, "'mask', which is not an input"),
        ({"shapes": {"image": bnfold.InputSpec((3, 24, 24))}}, "4 dimensions, but a shape of 3"),
        ({"rtol": -1.0}, "rtol is -1.0"),
    ],
)
def test_inputs_that_make_no_sense(given, folded, options, message):
    with pytest.raises(UsageError, match=message):
        cpu(given.module, folded, example_inputs=given.inputs, **options)


def test_made_up_inputs_keep_structure_and_kinds():
    class Structured(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear = nn.Embedding(10, 4), nn.Linear(4, 4)

        def forward(self, batch, scale=1.0, *, mask):
            assert batch["ids"].dtype is torch.int64
            return self.linear(self.embed(batch["ids"]) * mask[..., None] * batch["gain"] * scale)

    ids, mask = torch.arange(6).reshape(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    example = (({"ids": ids, "gain": torch.ones(1)}, 2.0), {"mask": mask})
    module = Structured().eval()
    report = cpu(module, copy.deepcopy(module), example_inputs=example, shapes={"batch.gain": bnfold.InputSpec((1,))})
    assert report.verdict is Verdict.PASS
    assert [(one.name, one.dtype) for one in report.config.inputs] == [
        ("batch.gain", "float32"),
        ("batch.ids", "int64"),
        ("mask", "bool"),
    ] or [one.name for one in report.config.inputs] == ["batch.ids", "batch.gain", "mask"]


def test_a_seed_gives_the_same_report_again(given, folded):
    first, second = (cpu(given.module, folded, example_inputs=given.inputs, seed=3) for _ in range(2))
    assert first.outputs == second.outputs
    assert cpu(given.module, folded, example_inputs=given.inputs, seed=4).outputs != first.outputs


def test_an_original_that_does_not_run(given, folded):
    with pytest.raises(VerificationError, match="the original model does not run"):
        cpu(given.module, folded, example_inputs=(torch.randn(2, 5, 8, 8),))


# --- outputs ---


class Returns(nn.Module):
    """A linear layer whose result goes through a function."""

    def __init__(self, returned):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.returned = nn.Linear(6, 6), returned

    def forward(self, x):
        return self.returned(self.linear(x))


def compare(first, second=None, **options):
    one, other = Returns(first).eval(), Returns(second or first).eval()
    return cpu(one, other, example_inputs=(torch.randn(4, 6),), **options)


@dataclass
class Boxes:
    """What no tree of PyTorch knows."""

    scores: torch.Tensor
    label: str = "box"


def test_outputs_of_any_structure_are_flattened():
    tensor = torch.ones(2)
    found = flatten({"a": (tensor, [tensor, None]), "b": Boxes(tensor), "a.0": 3})
    assert list(found) == ["a.0", "a.1.0", "b.scores", "b.label", "a.0'"]
    assert flatten(tensor).keys() == {"output"}
    bf16 = flatten(tensor.to(torch.bfloat16))["output"]
    assert (bf16.dtype.name, bf16.astype(float).tolist()) == ("bfloat16", [1.0, 1.0])
    assert flatten(torch.ones(2, dtype=torch.complex64))["output"].shape == (2, 2)


def test_outputs_that_are_missing_added_or_other_ones_fail():
    pair = lambda x: {"a": x, "b": x + 1}  # noqa: E731
    assert compare(pair).verdict is Verdict.PASS
    assert "'b' is missing" in compare(pair, lambda x: {"a": x}).reason
    assert "'c' is not an output" in compare(pair, lambda x: {"a": x, "b": x + 1, "c": x}).reason
    assert "has shape" in compare(lambda x: x, lambda x: x[:2]).reason
    assert "is float16 instead of float32" in compare(lambda x: x, lambda x: x.half()).reason
    assert "has another value" in compare(Boxes, lambda x: Boxes(x, "ball")).reason
    for folded in (lambda x: {"a": x}, lambda x: {"a": x, "b": x + 1, "c": x}):
        assert compare(pair, folded).verdict is Verdict.FAIL


def test_a_folded_model_that_does_not_run_fails():
    def broken(x):
        raise RuntimeError("it broke")

    report = compare(lambda x: x, broken)
    assert report.verdict is Verdict.FAIL
    assert "does not run where the original does: it broke" in report.reason


def test_nan_and_inf_must_be_in_the_same_places():
    def holed(x):
        return torch.where(torch.arange(6) == 2, torch.inf, x)

    def moved(x):
        return torch.where(torch.arange(6) == 3, torch.inf, x)

    assert compare(holed).verdict is Verdict.PASS
    report = compare(holed, moved)
    assert report.verdict is Verdict.FAIL
    assert "NaN or Inf in other places" in report.reason


def test_random_numbers_make_it_inconclusive():
    report = compare(lambda x: nn.functional.dropout(x, 0.5, training=True))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "draws random numbers" in report.reason
    assert compare(lambda x: x + 0 * torch.rand(6)).verdict is Verdict.PASS, "what is drawn reaches no output"


def test_integers_that_noise_flips_are_inconclusive():
    tie = lambda x: (torch.argmax(torch.stack([x[:, 0], x[:, 0]], 1) + 1e-9 * x[:, :2], 1), x)  # noqa: E731
    assert compare(tie).verdict is Verdict.PASS

    def flipped(x):
        return (1 - tie(x)[0], x)

    assert compare(tie, flipped).verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    sure = lambda x: (torch.argmax(x, 1), x)  # noqa: E731
    report = compare(sure, lambda x: (torch.argmin(x, 1), x))
    assert report.verdict is Verdict.FAIL
    assert "differs in 4 of 4 elements" in report.reason


def test_noise_as_large_as_the_signal_is_inconclusive():
    report = compare(lambda x: torch.sin(1e8 * x))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "too much to judge by" in report.reason


def test_outputs_that_no_parameter_reaches_may_be_equal():
    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            return {"y": self.norm(self.linear(x)), "x": x}

    module = Passing().eval()
    report = cpu(module, copy.deepcopy(module), example_inputs=(torch.randn(4, 6),))
    assert report.verdict is Verdict.PASS, report.summary_line()
    report = compare(lambda x: torch.clamp(x, 100, 101))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "does not react to the parameters" in report.reason


def test_tolerances_take_the_place_of_the_gates(given):
    wrong = networks.folded(given, networks.epsilon_times_ten)
    assert cpu(given.module, wrong, example_inputs=given.inputs).verdict is Verdict.FAIL
    report = cpu(given.module, wrong, example_inputs=given.inputs, rtol=1e-2, atol=1e-2)
    assert report.verdict is Verdict.PASS
    assert report.config.oracle == "none"
    assert report.config.noise_draws == 0


# --- float64 ---


def test_code_that_asks_for_narrow_types_runs_in_float64_all_the_same():
    def narrow(x):
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ torch.ones(6, 6)
        return y.float() + torch.zeros(6) + torch.arange(6, dtype=torch.float32)

    report = compare(narrow)
    assert report.config.oracle == "float64"
    assert report.verdict is Verdict.PASS
    assert report.outputs[0].float64_ratio == 0
    assert report.outputs[0].noise_rel_l2 > 1e-4, "the bfloat16 of the original is its own rounding noise"


def test_a_model_that_refuses_float64_is_judged_by_its_own_dtype(given, folded):
    def insist(module, args):
        if args[0].dtype is not torch.float32:
            raise TypeError("float32 only")

    one, other = copy.deepcopy(given.module), copy.deepcopy(folded)
    one.register_forward_pre_hook(insist)
    other.register_forward_pre_hook(insist)
    report = cpu(one, other, example_inputs=given.inputs)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert report.config.oracle == "none"
    assert report.config.oracle_note.startswith("the original does not run in float64")
    assert "float32 only" in report.config.oracle_note
    assert 0.05 < report.outputs[0].noise_ratio < 2
    assert report.outputs[0].float64_ratio is None
    wrong = networks.folded(given, networks.gammas_swapped)
    assert cpu(one, wrong, example_inputs=given.inputs).verdict is Verdict.FAIL


def test_branches_of_cond_are_computed_in_float64():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda a: a * torch.ones(6), lambda a: a.float() - 1, (self.linear(x),))

    module = Branching().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.randn(4, 6),))
    for model in (program, module):
        report = cpu(model, model, example_inputs=(torch.randn(4, 6),))
        assert (report.verdict, report.config.oracle) == (Verdict.PASS, "float64"), report.config.oracle_note
        assert report.device.nodes_per_provider["cpu"] > 3
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module(torch.randn(4, 6))  # what PyTorch compiles for torch.cond still works afterwards


PROVED = Exact(Verdict.PASS)


def test_what_is_proved_is_confirmed_in_its_own_dtype(given, folded):
    report = cpu(given.module, folded, example_inputs=given.inputs, exact=PROVED)
    assert (report.verdict, report.config.oracle, report.config.noise_draws) == (Verdict.PASS, "none", 1)
    assert report.config.oracle_note.startswith("the exact gate proves the fold")


def test_what_its_own_dtype_does_not_confirm_is_held_against_float64(given, folded):
    before, changed = dict(given.module.named_parameters()), copy.deepcopy(folded)
    with torch.no_grad():
        for name, tensor in changed.named_parameters():
            if name not in before or not torch.equal(before[name], tensor):
                tensor.mul_(1 + 16 * torch.finfo(torch.float32).eps)
    report = cpu(given.module, changed, example_inputs=given.inputs, exact=PROVED)
    assert {site.verdict for site in report.sites} == {Verdict.PASS}
    assert report.config.oracle == "float64"
    assert not any(output.verdict is Verdict.PASS for output in report.outputs)


def test_the_report_is_json(given, folded):
    report = json.loads(cpu(given.module, folded, example_inputs=given.inputs).to_json())
    assert report["schema"] == "bnfold.report/1"
    assert report["config"]["oracle"] == "float64"
    assert report["outputs"][0]["float64_ratio"] > 0
    assert report["device"]["provider"] == "torch"
    assert {site["verdict"] for site in report["sites"]} == {"pass"}
