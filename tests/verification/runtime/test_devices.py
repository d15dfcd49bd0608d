"""Requested means used: no silent fallback, and one sentence on what is missing."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, parser
from small_networks import folded, original, random_layers

from bnfold.errors import DeviceError, ModelLoadError, UsageError, VerificationError
from bnfold.report import Verdict
from bnfold.verification import verify
from bnfold.verification.runtime import devices, sessions
from bnfold.verification.runtime.devices import Device, cpu_device
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure, Session


def cuda_works():
    try:
        sessions.check_device_works(devices.cuda_device())
    except DeviceError:
        return False
    return True


CUDA_DEVICE = "bnfold.verification.onnx.verifier.cuda_device"

without_gpu = pytest.mark.skipif(cuda_works(), reason="CUDA works here")


@pytest.fixture
def pair():
    layers = random_layers(2)
    return original(layers), folded(layers)


@without_gpu
def test_cuda_without_a_gpu_is_one_sentence(pair, capfd):
    with pytest.raises(DeviceError) as error:
        verify(*pair, device="cuda")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert error.value.exit_code == 4
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("CUDA cannot be used: ")
    assert "libcu" in message or "CPU-only build" in message or "no GPU" in message
    assert "--device cpu" in error.value.hint


@without_gpu
def test_auto_without_a_gpu_takes_the_cpu_and_says_why(pair, capfd):
    report = verify(*pair, device="auto")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert report.verdict is Verdict.PASS
    assert (report.device.requested, report.device.used) == ("auto", "cpu")
    assert report.device.fell_back.startswith("CUDA cannot be used")


def test_cpu_says_what_ran_where(pair):
    device = verify(*pair, device="cpu").device
    assert (device.requested, device.used, device.provider) == ("cpu", "cpu", "CPUExecutionProvider")
    assert device.fell_back is None
    assert device.tf32 is False
    assert device.name
    assert device.nodes_per_provider == {"CPUExecutionProvider": len(pair[0].graph.node)}


def test_a_cpu_only_build_is_named(pair, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="is a CPU-only build"):
        verify(*pair, device="cuda")


def test_missing_libraries_are_named(pair, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def cannot_open(library, mode=0):
        if "providers_cuda" in library:
            raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")
        if "libcuda.so" in library:
            raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
        return object()

    monkeypatch.setattr(devices.ctypes, "CDLL", cannot_open)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    with pytest.raises(DeviceError) as error:
        verify(*pair, device="cuda")
    assert "libcublasLt.so.13 and libcuda.so.1 (the NVIDIA driver)" in str(error.value)


def test_a_device_that_cannot_convolve_is_refused(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeFailure(FailureKind.DEVICE, "CUDNN failure 4: libcudnn.so.9 not found")

    monkeypatch.setattr(sessions.Session, "run", refuse)
    with pytest.raises(DeviceError, match="cannot run a convolution: CUDNN failure"):
        sessions.check_device_works(cpu_device())


def test_a_session_elsewhere_is_refused(monkeypatch):
    """What onnxruntime does where CUDA cannot be loaded: a session on the CPU, without an error."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, **_: real(model, options, providers=[devices.CPU_PROVIDER]),
    )
    with pytest.raises(DeviceError, match="CPUExecutionProvider where CUDAExecutionProvider was asked for"):
        Session(original(random_layers(1)).SerializeToString(), Device("cuda", devices.CUDA_PROVIDER, "a GPU"))


def test_a_heavy_node_elsewhere_is_refused(monkeypatch):
    real = onnxruntime.InferenceSession

    class Split(real):
        def __init__(self, model, options, **_):
            super().__init__(model, options, providers=[devices.CPU_PROVIDER])

        def get_providers(self):
            return [devices.CUDA_PROVIDER, devices.CPU_PROVIDER]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Split)
    cuda = Device("cuda", devices.CUDA_PROVIDER, "a GPU")
    with pytest.raises(DeviceError, match="put Conv '' on CPUExecutionProvider"):
        Session(original(random_layers(1)).SerializeToString(), cuda)
    light = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }')
    session = Session(light.SerializeToString(), cuda)
    assert session.nodes_per_provider == {devices.CPU_PROVIDER: 1}
    assert session.nodes_elsewhere == ("Relu '' on CPUExecutionProvider",)


def test_auto_falls_back_where_the_gpu_has_no_kernel(pair, monkeypatch):
    monkeypatch.setattr(CUDA_DEVICE, lambda: Device("cuda", "CPUExecutionProvider", "x"))
    real = sessions.Session._check_placement

    def placement(session, device):
        if device.kind == "cuda" and session.outputs == ("y",) and session.inputs == ("x",):
            raise DeviceError("onnxruntime put BatchNormalization 'b' on CPUExecutionProvider")
        return real(session, device)

    monkeypatch.setattr(sessions.Session, "_check_placement", placement)
    report = verify(*pair, device="auto")
    assert report.device.used == "cpu"
    assert "BatchNormalization" in report.device.fell_back


def test_an_original_without_a_kernel_is_a_device_error(capfd):
    layers = random_layers(1, dtype="float64")
    with pytest.raises(DeviceError, match=r"the original model cannot run on CPUExecutionProvider: Could not find"):
        verify(original(layers, dtype="float64"), folded(layers, dtype="float64"), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_models(tmp_path, pair, capfd):
    onnx.save(pair[0], tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    (tmp_path / "empty.onnx").write_bytes(b"")
    good = tmp_path / "good.onnx"
    for name in ("bad.onnx", "empty.onnx", "missing.onnx"):
        for first, second in ((tmp_path / name, good), (good, tmp_path / name)):
            with pytest.raises(ModelLoadError) as error:
                verify(first, second, device="cpu")
            assert name in str(error.value)
            assert "\n" not in str(error.value)
    with pytest.raises(ModelLoadError):
        verify(tmp_path, good, device="cpu")
    with pytest.raises(UsageError, match="is a list"):
        verify([1], good, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_an_invalid_original_is_a_verification_error(capfd):
    node = helper.make_node("NoSuchOp", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    with pytest.raises(VerificationError, match="does not run in onnxruntime"):
        verify(model, model, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_graph_optimisations_are_off():
    """Otherwise onnxruntime folds the BatchNorm of the original, and the comparison compares nothing."""
    session = Session(original(random_layers(2)).SerializeToString(), cpu_device())
    nodes = [
        node.op_type for part in session._session.get_provider_graph_assignment_info() for node in part.get_nodes()
    ]
    assert nodes.count("BatchNormalization") == 2
    options = session._session.get_session_options()
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_importing_opens_no_runtime():
    code = (
        "import sys, bnfold.verification, bnfold.report; print({'onnxruntime', 'torch', 'onnx_ir'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_package_is_the_function():
    import bnfold

    layers = random_layers(1)
    for _ in range(2):
        assert bnfold.verify(original(layers), folded(layers), device="cpu").verdict is Verdict.PASS


@without_gpu
def test_tensorrt_without_its_libraries_is_one_sentence(pair, capfd):
    with pytest.raises(DeviceError) as error:
        verify(*pair, device="tensorrt")
    assert capfd.readouterr() == ("", "")
    assert error.value.exit_code == 4
    assert str(error.value).startswith("TensorRT cannot be used: ")
    assert "\n" not in str(error.value)


def test_a_build_without_tensorrt_is_named(pair, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(DeviceError, match=r"TensorRT cannot be used: the installed onnxruntime .* is built without it"):
        verify(*pair, device="tensorrt")


def test_tensorrt_is_compared_with_cuda(pair, monkeypatch):
    """The folded model runs on TensorRT, everything else on CUDA; both stand-ins are the CPU."""
    cuda, tensorrt = (Device(kind, devices.CPU_PROVIDER, kind) for kind in ("cuda", "tensorrt"))
    monkeypatch.setattr(CUDA_DEVICE, lambda: cuda)
    monkeypatch.setattr("bnfold.verification.onnx.verifier.tensorrt_device", lambda: tensorrt)
    used = []
    real = sessions.Session.__init__

    def create(session, model, device, *args, **options):
        used.append((len(args[0]) if args and args[0] else 0, device.kind))
        real(session, model, device, *args, **options)

    monkeypatch.setattr(sessions.Session, "__init__", create)
    report = verify(*pair, device="tensorrt")
    assert report.verdict is Verdict.PASS
    assert (report.device.requested, report.device.used, report.device.name) == ("tensorrt", "tensorrt", "tensorrt")
    assert report.summary_line().startswith("pass: outputs match on TensorRT (")
    kinds = [kind for _, kind in used[2:]]  # after the probes
    assert kinds == ["cuda", "cuda", "tensorrt", "cuda"]  # the original, the sites, the folded model, the noise


def test_tf32_is_reported_beside_the_verdict(pair, monkeypatch):
    monkeypatch.setattr(CUDA_DEVICE, lambda: Device("cuda", devices.CPU_PROVIDER, "x"))
    report = verify(*pair, device="cuda", tf32=True)
    assert report.verdict is Verdict.PASS
    assert report.device.tf32 is False
    (output,) = report.as_deployed
    assert (output.name, output.verdict, output.noise_ratio) == ("y", Verdict.SKIPPED, None)
    assert output.rel_l2 < 1e-5
    assert verify(*pair, device="cuda").as_deployed == ()
    with pytest.raises(UsageError, match="tf32 was asked for on cpu"):
        verify(*pair, device="cpu", tf32=True)


def test_a_run_as_deployed_that_fails_is_not_held_against_the_fold(pair, monkeypatch):
    monkeypatch.setattr(CUDA_DEVICE, lambda: Device("cuda", devices.CPU_PROVIDER, "x"))
    real = sessions.Session.__init__

    def create(session, *args, as_deployed=False, **options):
        if as_deployed:
            raise RuntimeFailure(FailureKind.REJECTED, "no such fusion")
        real(session, *args, **options)

    monkeypatch.setattr(sessions.Session, "__init__", create)
    with pytest.raises(DeviceError, match=r"cannot run as deployed, .* no such fusion"):
        verify(*pair, device="cuda", tf32=True)


def test_what_a_provider_is_told_about_tf32(monkeypatch):
    told = []

    def refuse(model, options, *, providers, provider_options, enable_fallback):
        told.append((providers, provider_options, enable_fallback, options.graph_optimization_level))
        raise RuntimeError("no GPU")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    gpu = Device("cuda", devices.CUDA_PROVIDER, "a GPU")
    for as_deployed in (False, True):
        with pytest.raises(RuntimeFailure):
            Session(b"", gpu, as_deployed=as_deployed)
    levels = onnxruntime.GraphOptimizationLevel
    verdict, deployed = told
    assert verdict == (
        ["CUDAExecutionProvider"],
        [{"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}],
        0,
        levels.ORT_DISABLE_ALL,
    )
    assert deployed[1][0]["use_tf32"] == "1"
    assert deployed[3] == levels.ORT_ENABLE_ALL


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_cuda(dtype):
    layers = random_layers(6, 16, dtype=dtype)
    report = verify(original(layers, dtype=dtype), folded(layers, dtype=dtype), device="cuda")
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert report.device.used == "cuda"
    assert report.device.provider == "CUDAExecutionProvider"
    assert report.device.nodes_per_provider["CUDAExecutionProvider"] == 18
    wrong = verify(original(layers, dtype=dtype), folded(layers, dtype=dtype, twice=2), device="cuda")
    assert wrong.verdict is Verdict.FAIL
    assert np.isfinite(wrong.outputs[0].noise_ratio)
