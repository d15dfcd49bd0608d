"""Which device a session may use, found out before a session is created.

onnxruntime answers a missing CUDA library with a line on standard error and a session on the CPU. So the
libraries are opened here first, and what is missing becomes one sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bnfold.errors import DeviceError, UsageError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

DRIVER = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_CUDA_LIBRARY = {"linux": "libonnxruntime_providers_cuda.so", "win32": "onnxruntime_providers_cuda.dll"}
_TENSORRT_LIBRARY = {
    "linux": "libonnxruntime_providers_tensorrt.so",
    "win32": "onnxruntime_providers_tensorrt.dll",
}
_SHARED_LIBRARY = {"linux": "libonnxruntime_providers_shared.so", "win32": "onnxruntime_providers_shared.dll"}
_MISSING = re.compile(r"(\S+): cannot open shared object file")


class DeviceRequest(StrEnum):
    """What a caller may ask for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


@dataclass(frozen=True, slots=True)
class Device:
    """A device that sessions run on.

    Attributes:
        kind: "cpu", "cuda" or "tensorrt".
        provider: The execution provider that must head every session.
        name: Name of the processor or GPU.
        threads: How many of them a run may have; None for the runtime's own choice.
    """

    kind: str
    provider: str
    name: str
    threads: int | None = None


def parse_device(text: str, *, tf32: bool = False) -> DeviceRequest:
    """The request that `text` names.

    Args:
        text: Name of a device.
        tf32: Whether it has to have TF32.

    Raises:
        UsageError: It names none, or one that never has TF32.
    """
    try:
        request = DeviceRequest(text)
    except ValueError:
        known = ", ".join(DeviceRequest)
        raise UsageError(f"unknown device {text!r}", hint=f"Use one of {known}.") from None
    if tf32 and request not in (DeviceRequest.CUDA, DeviceRequest.AUTO):
        raise UsageError(f"tf32 was asked for on {text}, which has none", hint="Use --device cuda.")
    return request


def cpu_device() -> Device:
    """The processor of this machine."""
    return Device("cpu", CPU_PROVIDER, _processor_name())


def cuda_device() -> Device:
    """The first GPU, after its driver and onnxruntime's CUDA libraries could be opened.

    Raises:
        DeviceError: Something is missing; the message names it.
    """
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"CUDA cannot be used: the installed onnxruntime {onnxruntime.__version__} is a CPU-only build",
            hint="Install onnxruntime-gpu in place of onnxruntime, or use --device cpu.",
        )
    missing = missing_cuda_libraries()
    if missing:
        preload_cuda_libraries()
        missing = missing_cuda_libraries()
    if missing:
        raise DeviceError(
            f"CUDA cannot be used: onnxruntime {onnxruntime.__version__} does not find " + " and ".join(missing),
            hint="Install the NVIDIA driver, and the CUDA libraries with `pip install 'bnfold[gpu]'`; "
            "or use --device cpu.",
        )
    return Device("cuda", CUDA_PROVIDER, _gpu_name())


def tensorrt_device() -> Device:
    """The first GPU, after CUDA and onnxruntime's TensorRT libraries could be opened.

    Raises:
        DeviceError: Something is missing; the message names it.
    """
    import onnxruntime

    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"TensorRT cannot be used: the installed onnxruntime {onnxruntime.__version__} is built without it",
            hint="Install onnxruntime-gpu in place of onnxruntime, or use --device cuda.",
        )
    preload_cuda_libraries()
    missing = missing_libraries(_TENSORRT_LIBRARY)
    if missing:
        raise DeviceError(
            f"TensorRT cannot be used: onnxruntime {onnxruntime.__version__} does not find " + " and ".join(missing),
            hint="Install the NVIDIA driver, the CUDA libraries with `pip install 'bnfold[gpu]'` and TensorRT 10; "
            "or use --device cuda or cpu.",
        )
    return Device("tensorrt", TENSORRT_PROVIDER, cuda_device().name)


def missing_cuda_libraries() -> list[str]:
    """What onnxruntime's CUDA provider needs and this process cannot open; empty if it can be opened."""
    return missing_libraries(_CUDA_LIBRARY)


def missing_libraries(provider_library: Mapping[str, str]) -> list[str]:
    """What a provider of onnxruntime needs and this process cannot open.

    Args:
        provider_library: File name of the provider, by `sys.platform`.
    """
    import onnxruntime

    if sys.platform not in DRIVER:
        return [f"a CUDA provider for {sys.platform}"]
    folder = Path(onnxruntime.__file__).parent / "capi"
    missing = []
    # The CUDA provider takes symbols from the shared one, so that comes first and is opened globally.
    for name, mode in ((_SHARED_LIBRARY[sys.platform], ctypes.RTLD_GLOBAL), (provider_library[sys.platform], 0)):
        reason = cannot_open(str(folder / name), mode)
        if reason is not None:
            missing.append(reason)
            break
    driver = DRIVER[sys.platform]
    if driver not in missing and cannot_open(driver) is not None:
        missing.append(driver)
    return [f"{name} (the NVIDIA driver)" if name == driver else name for name in missing]


def cannot_open(library: str, mode: int = 0) -> str | None:
    """The library that is missing when `library` is opened, possibly one that it needs itself; None if it opens."""
    try:
        ctypes.CDLL(library, mode=mode or ctypes.DEFAULT_MODE)
    except OSError as error:
        found = _MISSING.search(str(error))
        return found.group(1) if found else f"a library that {Path(library).name} needs"
    return None


def preload_cuda_libraries() -> None:
    """Open the CUDA libraries of the nvidia wheels; what onnxruntime prints meanwhile stays here."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _gpu_name() -> str:
    """Name of the first GPU, from the driver.

    Raises:
        DeviceError: The driver shows none.
    """
    try:
        driver = ctypes.CDLL(DRIVER[sys.platform])
    except (KeyError, OSError):
        raise DeviceError(
            "CUDA cannot be used: the NVIDIA driver cannot be opened", hint="Install the NVIDIA driver."
        ) from None
    handle, text = ctypes.c_int(), ctypes.create_string_buffer(256)
    for status in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(handle), 0),
        driver.cuDeviceGetName(text, len(text), handle),
    ):
        if status != 0:
            raise DeviceError(
                f"CUDA cannot be used: the NVIDIA driver shows no GPU (CUDA error {status})",
                hint="Check `nvidia-smi`, or use --device cpu.",
            )
    return text.value.decode(errors="replace")


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
