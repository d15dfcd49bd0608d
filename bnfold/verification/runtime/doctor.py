"""What a verification could run on here, found out by trying; and what to install for each thing that is missing."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from bnfold.errors import DeviceError
from bnfold.verification.runtime.devices import (
    DRIVER,
    Device,
    cannot_open,
    cpu_device,
    cuda_device,
    preload_cuda_libraries,
    tensorrt_device,
)
from bnfold.verification.runtime.sessions import RuntimeFailure, check_device_works
from bnfold.version import __version__

_PACKAGES = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxruntime-gpu", "torch")
_INSTALL_LIBRARIES = "pip install 'bnfold[gpu]'"
_INSTALL_DRIVER = "install the NVIDIA driver of this machine's GPU"
_CUFFT = {"12": "11", "13": "12"}
"""Major version of cuFFT by that of CUDA; the others have the version of CUDA, or have had one for years."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        subject: What.
        good: Whether it works.
        found: What was found, or why it does not work: a clause.
        remedy: What to do about it; empty if it works.
    """

    subject: str
    good: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `bnfold doctor` tells.

    Attributes:
        versions: Of bnfold, Python, the platform and the packages that are installed.
        checks: What was tried, in order.
        devices: What `--device` can be asked for here.
    """

    versions: dict[str, str]
    checks: tuple[Check, ...]
    devices: tuple[str, ...]


def examine() -> Diagnosis:
    """Try everything; raises nothing for what does not work."""
    if _has_onnxruntime():
        preload_cuda_libraries()
        providers = [
            _provider("onnxruntime on the CPU", cpu_device, "cpu", "pip install onnxruntime"),
            _provider("onnxruntime on CUDA", cuda_device, "cuda", ""),
            _provider("onnxruntime on TensorRT", tensorrt_device, "tensorrt", ""),
        ]
    else:
        missing = Check("onnxruntime", good=False, found="is not installed", remedy="pip install onnxruntime-gpu")
        providers = [(missing, "")]
    checks = [_driver(), *_cuda_libraries(), *(check for check, _ in providers), _torch()]
    return Diagnosis(_versions(), tuple(checks), tuple(device for check, device in providers if check.good))


def _versions() -> dict[str, str]:
    versions = {"bnfold": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _has_onnxruntime() -> bool:
    return find_spec("onnxruntime") is not None


def _provider(subject: str, device: Callable[[], Device], kind: str, remedy: str) -> tuple[Check, str]:
    """Whether a session on the device starts and computes a convolution."""
    try:
        found = device()
        check_device_works(found)
    except DeviceError as error:
        return Check(subject, good=False, found=str(error), remedy=error.hint or remedy), kind
    except RuntimeFailure as error:
        return Check(subject, good=False, found=str(error), remedy=remedy), kind
    return Check(subject, good=True, found=found.name), kind


def _driver() -> Check:
    subject = "NVIDIA driver"
    name = DRIVER.get(sys.platform)
    if name is None:
        return Check(subject, good=False, found=f"there is none for {sys.platform}", remedy="use --device cpu")
    if cannot_open(name) is not None:
        return Check(subject, good=False, found=f"{name} is missing", remedy=_INSTALL_DRIVER)
    driver, version = ctypes.CDLL(name), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        remedy = "check `nvidia-smi`, and that this process may see the GPU"
        return Check(subject, good=False, found=f"{name} is there, but shows no GPU", remedy=remedy)
    return Check(subject, good=True, found=f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}")


def _cuda_libraries() -> list[Check]:
    """One check for each library that onnxruntime's CUDA provider opens."""
    major = _cuda_major()
    if sys.platform != "linux" or not major:
        return []
    libraries = {
        "CUDA runtime": f"libcudart.so.{major}",
        "cuBLAS": f"libcublas.so.{major}",
        "cuBLASLt": f"libcublasLt.so.{major}",
        "cuRAND": "libcurand.so.10",
        "cuFFT": f"libcufft.so.{_CUFFT.get(major, major)}",
        "cuDNN": "libcudnn.so.9",
    }
    checks = []
    for subject, name in libraries.items():
        missing = cannot_open(name)
        if missing is None:
            checks.append(Check(subject, good=True, found=name))
        else:
            found = f"{name} is missing" if missing == name else f"{name} is there, but {missing} is missing"
            checks.append(Check(subject, good=False, found=found, remedy=_INSTALL_LIBRARIES))
    return checks


def _cuda_major() -> str:
    """The major version of CUDA that the installed onnxruntime is built for; "" for a CPU-only build."""
    if not _has_onnxruntime():
        return ""
    with contextlib.suppress(ImportError):
        from onnxruntime.capi import build_and_package_info

        return str(getattr(build_and_package_info, "cuda_version", "") or "").partition(".")[0]
    return ""


def _torch() -> Check:
    subject = "torch on CUDA"
    if find_spec("torch") is None:
        return Check(subject, good=False, found="torch is not installed", remedy="pip install 'bnfold[torch]'")
    import torch

    built_for: str | None = torch.version.cuda
    if built_for is None:
        remedy = "install a CUDA build of torch, see https://pytorch.org/get-started/locally"
        return Check(subject, good=False, found=f"torch {torch.__version__} is a CPU-only build", remedy=remedy)
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} is built for CUDA {built_for}, but sees no GPU"
        return Check(subject, good=False, found=found, remedy=_INSTALL_DRIVER)
    return Check(subject, good=True, found=f"{torch.cuda.get_device_name(0)}, CUDA {built_for}")
