"""What the measurement needs from a runtime: where it runs, and both models ready to be called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from bnfold.errors import UsageError
from bnfold.latency.timing import Call
from bnfold.report.records import InputInfo

_REPLACEABLE = "Only models that can stand for each other are compared."


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how both models ran.

    Attributes:
        runtime: "onnxruntime" or "torch".
        version: Its version.
        requested: "auto", "cpu", "cuda" or "tensorrt".
        used: "cpu", "cuda" or "tensorrt".
        name: Name of the processor or of the GPU.
        provider: onnxruntime's execution provider; None for torch.
        fell_back: Why "auto" did not take the GPU; None where it did or where it was not asked.
        tf32: Whether TF32 may shorten float32 products.
        threads: Threads within an operator; None for what onnxruntime chooses.
        cpus: Logical processors that this process may use.
        optimizations: "all" of onnxruntime's graph optimisations, or "eager" for torch.
    """

    runtime: str
    version: str
    requested: str
    used: str
    name: str
    provider: str | None
    fell_back: str | None
    tf32: bool
    threads: int | None
    cpus: int
    optimizations: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a model gave under one name.

    Attributes:
        name: Name of the output, or its place in what a torch.nn.Module returns.
        kind: Its type in words.
        shape: Its shape; None for what is no tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both models with the same inputs, on the device.

    Attributes:
        inputs: The inputs.
        original: Runs the original once.
        folded: Runs the folded model once.
    """

    inputs: tuple[InputInfo, ...]
    original: Call
    folded: Call


class Pair(Protocol):
    """Two models loaded in one runtime.

    Attributes:
        setting: Where they run.
    """

    setting: Setting

    def prepare(self, batch: int | None) -> Prepared:
        """Feed both models, each run at least once.

        Args:
            batch: Size of the batch dimension; None leaves it as the inputs have it.

        Raises:
            UsageError: There is no batch dimension, the inputs contradict the model, or the outputs differ in
                name, type or shape.
            BnfoldError: A model does not run.
        """

    def running(self) -> AbstractContextManager[None]:
        """What has to hold while the calls of `prepare` are made."""


def usable_cpus() -> int:
    """Logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_same_names(what: str, original: Sequence[str], folded: Sequence[str]) -> None:
    """Raise UsageError unless both models have `what` of the same names, in the same order."""
    if list(original) != list(folded):
        raise UsageError(
            f"the two models have different {what}: {', '.join(original) or 'none'}; {', '.join(folded) or 'none'}",
            hint=_REPLACEABLE,
        )


def check_same_outputs(original: Sequence[Output], folded: Sequence[Output]) -> None:
    """Raise UsageError unless both models gave outputs of the same names, types and shapes, in the same order."""
    check_same_names("outputs", [output.name for output in original], [output.name for output in folded])
    for one, other in zip(original, folded, strict=True):
        if (one.kind, one.shape) != (other.kind, other.shape):
            raise UsageError(
                f"output {one.name!r} is a {_text(one)} in the original and a {_text(other)} in the folded model",
                hint=_REPLACEABLE,
            )


def _text(output: Output) -> str:
    return output.kind if output.shape is None else f"{output.kind} of shape {output.shape}"
