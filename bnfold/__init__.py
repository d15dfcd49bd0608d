"""Fold inference-mode BatchNorm into the neighbouring weights of a trained network, and prove that outputs match."""

from typing import TYPE_CHECKING

from bnfold.errors import (
    BnfoldError,
    DeviceError,
    ModelLoadError,
    OutputError,
    UnsafeModelError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)
from bnfold.version import __version__

if TYPE_CHECKING:
    from bnfold.api import fold, inspect
    from bnfold.files.many import fold_files
    from bnfold.files.records import FileOutcome
    from bnfold.latency import Timing, benchmark
    from bnfold.loading import load_folded
    from bnfold.planning.plan import Fold, Left, Plan
    from bnfold.report import Report, Verdict
    from bnfold.result import FoldResult
    from bnfold.verification import InputSpec, verify

__all__ = [
    "BnfoldError",
    "DeviceError",
    "FileOutcome",
    "Fold",
    "FoldResult",
    "InputSpec",
    "Left",
    "ModelLoadError",
    "OutputError",
    "Plan",
    "Report",
    "Timing",
    "UnsafeModelError",
    "UnsupportedModelError",
    "UsageError",
    "Verdict",
    "VerificationError",
    "__version__",
    "benchmark",
    "fold",
    "fold_files",
    "inspect",
    "load_folded",
    "verify",
]

_HOMES = {
    "FileOutcome": "bnfold.files.records",
    "Fold": "bnfold.planning.plan",
    "FoldResult": "bnfold.result",
    "InputSpec": "bnfold.verification",
    "Left": "bnfold.planning.plan",
    "Plan": "bnfold.planning.plan",
    "Report": "bnfold.report",
    "Timing": "bnfold.latency",
    "Verdict": "bnfold.report",
    "benchmark": "bnfold.latency",
    "fold": "bnfold.api",
    "fold_files": "bnfold.files.many",
    "inspect": "bnfold.api",
    "load_folded": "bnfold.loading",
    "verify": "bnfold.verification",
}

_SUBMODULES = ("onnx",)
"""What is public below: not in `__all__`, for `from bnfold import *` must not replace the caller's own `onnx`."""


def __getattr__(name: str) -> object:
    """Imports what is asked for when it is asked for, so that `bnfold --help` need not wait for onnx."""
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"bnfold.{name}")
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
