"""On a GPU: real networks, correct and wrong, in the types that CUDA has kernels for. `pytest -m gpu`."""

import subprocess
import sys
from pathlib import Path

import mutations
import onnxruntime
import pytest

import bnfold
from bnfold.errors import DeviceError
from bnfold.report import Verdict
from bnfold.verification.runtime.devices import cuda_device
from bnfold.verification.runtime.sessions import check_device_works

CHECK = Path(__file__).parent / "check.py"


def cuda_works():
    try:
        check_device_works(cuda_device())
    except DeviceError:
        return False
    return True


NETWORKS = {
    "grouped_decoder": mutations.grouped_decoder,
    **{f"light_{name}": lambda name=name: mutations.light_network(name) for name in mutations.LIGHT_NAMES},
    **{name: lambda name=name: mutations.zoo_network(name) for name in ("resnet", "mobilenet_v2", "levit")},
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_correct_folds_pass_on_the_gpu(name, dtype):
    network = NETWORKS[name]()
    if dtype != "float32":
        network = mutations.stored_as(network, mutations.DTYPES[dtype])
    folded = bnfold.fold(network.model).model
    report = bnfold.verify(network.model, folded, inputs=network.feeds, device="cuda")
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), report.summary_line()
    assert {site.verdict for site in report.sites} == {Verdict.PASS}
    assert (report.device.used, report.device.provider) == ("cuda", "CUDAExecutionProvider")
    assert report.device.tf32 is False
    assert report.device.nodes_per_provider["CUDAExecutionProvider"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["grouped_decoder", "light_resnet50"])
def test_planted_faults_are_named_on_the_gpu(name):
    folded = mutations.fold(NETWORKS[name]())
    for fault, planted in mutations.plants(folded):
        report = bnfold.verify(folded.network.model, planted.model, inputs=folded.network.feeds, device="cuda")
        assert report.verdict is Verdict.FAIL, fault
        failed = [site for site in report.sites if site.verdict is Verdict.FAIL]
        assert failed, fault
        assert all(planted.nodes & set(site.nodes) for site in failed), fault


@pytest.mark.gpu
def test_tf32_is_seen_where_it_is_on():
    """A run as deployed rounds products to 10 bits on an Ampere GPU or newer; the verdict's run must not."""
    network = NETWORKS["light_resnet50"]()
    folded = bnfold.fold(network.model).model
    report = bnfold.verify(network.model, folded, inputs=network.feeds, device="cuda", tf32=True)
    assert report.outputs[0].rel_l2 < 1e-4
    assert report.as_deployed[0].rel_l2 > report.outputs[0].rel_l2


@pytest.mark.skipif(cuda_works(), reason="CUDA works here")
def test_the_check_refuses_without_a_gpu():
    done = subprocess.run(
        [sys.executable, CHECK, "--quick", "--runtime", "onnxruntime"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.startswith("error: CUDA cannot be used: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="a CPU-only build")
def test_the_check_runs_on_a_stand_in(monkeypatch, capsys):
    """Everything but the GPU: the CPU in its place."""
    sys.path.append(str(CHECK.parent))
    import check

    from bnfold.verification.onnx import verifier
    from bnfold.verification.runtime.devices import CPU_PROVIDER, Device

    stand_in = Device("cuda", CPU_PROVIDER, "a stand-in")
    monkeypatch.setattr(check, "cuda_device", lambda: stand_in)
    monkeypatch.setattr(verifier, "cuda_device", lambda: stand_in)
    monkeypatch.setattr(check, "networks", lambda *, quick: [mutations.grouped_decoder()])
    monkeypatch.setattr(check, "RUNS", 4)
    monkeypatch.setattr(sys, "argv", ["check.py", "--runtime", "onnxruntime"])
    with pytest.raises(SystemExit) as left:
        check.main()
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# bnfold on a stand-in"
    assert [line.split(" | ")[:3] for line in lines[-2:]] == [
        ["| grouped_decoder", "float32", "pass"],
        ["| grouped_decoder", "float16", "pass"],
    ]
