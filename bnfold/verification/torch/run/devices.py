"""Which device PyTorch may use, and the settings that a verdict is taken under."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from bnfold.errors import DeviceError, UsageError
from bnfold.verification.runtime.devices import DRIVER, Device, DeviceRequest, cannot_open, cpu_device

PROVIDER = "torch"

_PRODUCTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""The parts of torch.backends that have a precision of their own for float32 products."""


def torch_device(request: DeviceRequest) -> tuple[Device, str | None]:
    """The device that is asked for, and why "auto" does not take the GPU (None where it does, or was not asked).

    Raises:
        DeviceError: CUDA was asked for and cannot be used; the message names what is missing.
        UsageError: TensorRT was asked for, which runs no PyTorch models.
    """
    if request is DeviceRequest.TENSORRT:
        raise UsageError(
            "PyTorch models do not run on tensorrt", hint="Use --device cuda, or verify the ONNX file made of them."
        )
    if request is DeviceRequest.CPU:
        return _on_cpu(), None
    try:
        return _on_cuda(), None
    except DeviceError as error:
        if request is DeviceRequest.CUDA:
            raise
        return _on_cpu(), str(error)


def _on_cpu() -> Device:
    return Device("cpu", PROVIDER, cpu_device().name)


def _on_cuda() -> Device:
    """The GPU, after a convolution ran on it.

    Raises:
        DeviceError: It cannot be used.
    """
    missing = _missing()
    if missing:
        raise DeviceError(f"CUDA cannot be used: {missing}", hint="Use --device cpu, or install what is missing.")
    try:
        with torch.no_grad(), settings(tf32=False):
            ones = torch.ones(1, 1, 4, 4, device="cuda")
            result = torch.nn.functional.conv2d(ones, ones[..., :3, :3]).cpu()
        name = torch.cuda.get_device_name()
    except RuntimeError as error:  # all of torch's own errors are
        raise DeviceError(
            f"CUDA cannot be used: torch {torch.__version__} cannot run a convolution: {first_line(error)}",
            hint="Check that the NVIDIA driver fits the installed torch, or use --device cpu.",
        ) from error
    if not torch.equal(result, torch.full((1, 1, 2, 2), 9.0)):
        raise DeviceError(f"torch {torch.__version__} on {name} computes a wrong convolution")
    return Device("cuda", PROVIDER, name)


def _missing() -> str:
    """What CUDA lacks, as a clause; "" if it seems to be there."""
    installed = f"the installed torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{installed} is a build without CUDA"
    driver = DRIVER.get(sys.platform)
    if driver is None or cannot_open(driver) is not None:
        return f"{installed} does not find {driver or 'a driver for ' + sys.platform} (the NVIDIA driver)"
    if not torch.cuda.is_available():
        count = ctypes.c_int()
        library = ctypes.CDLL(driver)
        if library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value:
            return f"{installed} cannot use the NVIDIA driver, which is too old for CUDA {torch.version.cuda}"
        return "the NVIDIA driver shows no GPU"
    return ""


@contextmanager
def settings(*, tf32: bool) -> Iterator[None]:
    """Settings for runs that are compared; all of them, and the states of random generators, are put back.

    No gradients, no autocast around the model, nothing compiled, deterministic convolution algorithms, float32 products
    in float32 (or TF32 where the device has it).

    Args:
        tf32: Whether float32 products may be shortened on a GPU.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_precision(tf32=tf32))
        stack.enter_context(_attributes(torch.backends.cudnn, deterministic=True, benchmark=False))
        yield


@contextmanager
def _precision(*, tf32: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for path in _PRODUCTS:
            part: object = torch.backends
            for name in path.split("."):
                part = getattr(part, name, None)
            if part is not None and hasattr(part, "fp32_precision"):
                precision = "ieee" if path.startswith("mkldnn") or not tf32 else "tf32"
                stack.enter_context(_attributes(part, fp32_precision=precision))
        yield


@contextmanager
def _attributes(holder: object, **values: object) -> Iterator[None]:
    before = {name: getattr(holder, name) for name in values}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(holder, name, value)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Has torch compute on the processor with so many threads while the block lasts; None is its own choice."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
