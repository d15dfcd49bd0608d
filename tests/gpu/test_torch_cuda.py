"""PyTorch networks on a GPU, correct and wrong. `pytest -m gpu`."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_networks as networks

import bnfold
from bnfold.report import Verdict

CHECK = Path(__file__).parent / "check.py"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", networks.DTYPES)
@pytest.mark.parametrize("name", networks.NAMES)
def test_correct_folds_pass_on_the_gpu(name, dtype):
    given = networks.network(name, networks.DTYPES[dtype])
    report = bnfold.verify(given.module, networks.folded(given), example_inputs=given.inputs, device="cuda")
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert {site.verdict for site in report.sites} == {Verdict.PASS}
    assert (report.device.used, report.device.provider, report.device.tf32) == ("cuda", "torch", False)
    assert report.device.nodes_per_provider.keys() == {"cuda"}
    assert report.config.oracle == "float64"
    assert next(given.module.parameters()).device.type == "cpu", "the caller's module stays where it is"


@pytest.mark.gpu
@pytest.mark.parametrize("fault", networks.FAULTS)
@pytest.mark.parametrize("name", networks.NAMES)
def test_planted_faults_are_named_on_the_gpu(name, fault):
    given = networks.network(name)
    at = len(given.pairs) // 2
    wrong = networks.folded(given, networks.FAULTS[fault], at)
    report = bnfold.verify(given.module, wrong, example_inputs=given.inputs, device="cuda", samples=1)
    assert report.verdict is Verdict.FAIL
    failed = [site for site in report.sites if site.verdict is Verdict.FAIL]
    assert failed
    assert all(any(given.pairs[at][0] in node for node in site.nodes) for site in failed)


@pytest.mark.gpu
def test_a_program_exported_on_the_cpu_runs_on_the_gpu():
    given = networks.network("residual")
    programs = [torch.export.export(module, given.inputs) for module in (given.module, networks.folded(given))]
    report = bnfold.verify(*programs, device="cuda")
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert report.device.nodes_per_provider.keys() == {"cuda"}


@pytest.mark.gpu
def test_models_on_the_gpu_are_verified_on_the_cpu_if_that_is_asked_for():
    given = networks.network("residual")
    module, folded = given.module.cuda(), networks.folded(given).cuda()
    report = bnfold.verify(module, folded, example_inputs=given.inputs, device="cpu")
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert report.device.used == "cpu"
    assert next(module.parameters()).device.type == "cuda"


@pytest.mark.gpu
def test_tf32_is_seen_where_it_is_on():
    """A run as deployed rounds products to 10 bits on an Ampere GPU or newer; the verdict's run must not."""
    given = networks.network("residual")
    folded = networks.folded(given)
    report = bnfold.verify(given.module, folded, example_inputs=given.inputs, device="cuda", tf32=True)
    assert report.outputs[0].rel_l2 < 1e-4
    assert report.as_deployed[0].rel_l2 > report.outputs[0].rel_l2


@pytest.mark.gpu
def test_random_states_of_the_gpu_are_as_before():
    given = networks.network("perceptron")
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    bnfold.verify(given.module, copy.deepcopy(given.module), example_inputs=given.inputs, device="cuda", samples=1)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_the_check_of_pytorch_refuses_without_a_gpu():
    command = [sys.executable, CHECK, "--quick", "--runtime", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.startswith("error: CUDA cannot be used: the installed torch ")
    assert done.stderr.count("\n") == 1


def test_the_rows_of_the_check_on_a_stand_in(monkeypatch):
    """Everything but the GPU: the CPU in its place."""
    sys.path.append(str(CHECK.parent))
    import check_torch

    monkeypatch.setattr(check_torch, "RUNS", 4)
    given = networks.network("perceptron")
    for dtype in ("float32", "bfloat16"):
        cells = check_torch.row(("perceptron", given.module, given.inputs), dtype, "cpu")
        assert len(cells) == len(check_torch.HEADER)
        assert cells[:3] == ["perceptron", dtype, "pass"], cells
