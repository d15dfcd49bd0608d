"""`bnfold doctor`: what works is tried, what is missing is named with its remedy."""

import ctypes
import json
import sys

import pytest
from bnfold.cli.main import app
from typer.testing import CliRunner

from bnfold.errors import DeviceError
from bnfold.verification.runtime import doctor
from bnfold.verification.runtime.devices import CPU_PROVIDER, Device


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(app, ["doctor", *arguments])

    return call


def without_cuda(monkeypatch):
    def refuse():
        raise DeviceError("CUDA cannot be used: no driver", hint="Install the NVIDIA driver.")

    monkeypatch.setattr(doctor, "cuda_device", refuse)
    monkeypatch.setattr(doctor, "tensorrt_device", refuse)
    monkeypatch.setattr(doctor, "cannot_open", lambda library, mode=0: library)


def test_the_processor_always_works(run):
    result = run("--device", "cpu")
    assert result.exit_code == 0
    assert "onnxruntime on the CPU" in result.stdout
    assert "--device can be: cpu" in result.stdout


def test_what_is_missing_comes_with_its_remedy(run, monkeypatch):
    without_cuda(monkeypatch)
    result = run("--json", "--device", "cuda")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert document["schema"] == "bnfold.doctor/1"
    assert document["devices"] == ["cpu"]
    assert {"bnfold", "python", "numpy", "onnx"} <= set(document["versions"])
    checks = {check["subject"]: check for check in document["checks"]}
    assert checks["onnxruntime on the CPU"]["good"]
    assert not checks["onnxruntime on CUDA"]["good"]
    assert not checks["NVIDIA driver"]["good"]
    assert all(check["remedy"] for check in checks.values() if not check["good"])
    assert run("--device", "auto").exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="library names of Linux")
def test_every_library_is_looked_for(monkeypatch):
    without_cuda(monkeypatch)
    monkeypatch.setattr(doctor, "_cuda_major", lambda: "13")
    checks = {check.subject: check for check in doctor.examine().checks}
    assert checks["cuDNN"].found == "libcudnn.so.9 is missing"
    assert checks["cuBLAS"].found == "libcublas.so.13 is missing"
    assert checks["cuBLAS"].remedy == "pip install 'bnfold[gpu]'"
    monkeypatch.setattr(
        doctor, "cannot_open", lambda library, mode=0: None if "cudnn" in library else "libcudart.so.13"
    )
    monkeypatch.setattr(doctor, "_driver", lambda: doctor.Check("NVIDIA driver", good=True, found="13.0"))
    checks = {check.subject: check for check in doctor.examine().checks}
    assert checks["cuDNN"].good
    assert checks["cuFFT"].found == "libcufft.so.12 is there, but libcudart.so.13 is missing"


def test_a_driver_without_a_gpu_is_told(monkeypatch):
    class Driver:
        @staticmethod
        def cuInit(flags):  # noqa: N802 - the driver's name
            return 100

    monkeypatch.setattr(doctor, "cannot_open", lambda library, mode=0: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: Driver)
    assert "shows no GPU" in doctor._driver().found


def test_a_device_that_computes_nonsense_is_not_usable(run, monkeypatch):
    def refuse(device):
        raise DeviceError(f"{device.provider} computes a wrong convolution")

    monkeypatch.setattr(doctor, "check_device_works", refuse)
    monkeypatch.setattr(doctor, "cuda_device", lambda: Device("cuda", CPU_PROVIDER, "a GPU"))
    monkeypatch.setattr(doctor, "tensorrt_device", lambda: Device("tensorrt", CPU_PROVIDER, "a GPU"))
    result = run()
    assert result.exit_code == 4
    assert "--device can be: nothing" in result.stdout


def test_a_missing_onnxruntime_is_one_line(run, monkeypatch):
    monkeypatch.setattr(doctor, "_has_onnxruntime", lambda: False)
    result = run("--json")
    assert result.exit_code == 4
    found = {check["subject"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["onnxruntime"]["remedy"] == "pip install onnxruntime-gpu"


def test_an_unknown_device_is_a_usage_error(run):
    result = run("--device", "tpu")
    assert result.exit_code != 0
    assert "unknown device 'tpu'" in str(result.exception)
