"""How long two models take on the same inputs and device, and which is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union, cast

from bnfold.errors import UsageError
from bnfold.extras import require
from bnfold.input_spec import Array, Shapes
from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.onnx_runner import OnnxPair
from bnfold.latency.pair import Pair
from bnfold.latency.result import Comparison, Timing
from bnfold.latency.timing import interleave
from bnfold.model_kind import is_torch
from bnfold.text.progress import begin, heard_by
from bnfold.verification.inputs.feeds import FeedRequest
from bnfold.verification.inputs.sampling import Range
from bnfold.verification.runtime.devices import DeviceRequest, parse_device
from bnfold.verification.runtime.source import ModelLike, Source

if TYPE_CHECKING:
    import torch

    from bnfold.verification.torch.run.samples import Given

SECONDS = 3.0
"""Time for each model and batch size where the caller asks for no other."""

AnyModel: TypeAlias = Union[ModelLike, "torch.nn.Module", "torch.export.ExportedProgram"]
Inputs: TypeAlias = Union[Mapping[str, Array], Sequence[Mapping[str, Array]], "Given", None]


def benchmark(
    original: AnyModel,
    folded: AnyModel,
    *,
    inputs: Inputs = None,
    device: str = "auto",
    batch: Sequence[int] = (),
    threads: int | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    shapes: Shapes | None = None,
    value_ranges: Mapping[str, Range] | None = None,
    progress: Callable[[str], None] | None = None,
    names: Mapping[str, str] | None = None,
) -> Timing:
    """Measure the latency of two models in turns, warm, with the runtime's optimisations on.

    Only speed is compared: use `verify` to find out whether the outputs match. Both models must be of one runtime, and
    take and give values of the same names, types and shapes.

    Args:
        original: The path of an .onnx or .pt2 file, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module in
            evaluation mode or a torch.export.ExportedProgram.
        folded: The same.
        inputs: One sample of real data: arrays by name, or, for torch, what the model is called with; a
            torch.nn.Module needs it. What is left out is made up.
        device: "auto" (the GPU if it works, else the CPU), "cpu", "cuda" or "tensorrt"; only "auto" falls back.
        batch: Batch sizes to measure, where inputs have an open first dimension; empty for the inputs as they are. A
            torch.nn.Module gets the rows of its inputs, which have to be equally many, as often as it takes.
        threads: Threads within an operator on the CPU; None for the runtime's choice.
        seconds: Time for each model and batch size, warm-up included; slow models take at least 8 calls.
        seed: Seed of the inputs that are made up.
        shapes: Shapes of inputs with open dimensions; by name, or in order with None for a name left out.
        value_ranges: Lowest and highest value of inputs that are made up, by name.
        progress: Told, in words, what is being measured.
        names: For inputs and outputs of an ONNX original, what the folded model calls them, if something else.

    Returns:
        Median, quartiles and extremes of both, and the ratio original/folded with its 95 % interval.

    Raises:
        UsageError: An argument is out of range, contradicts a model, or the two models cannot stand for each other.
        ModelLoadError: A model cannot be read.
        UnsafeModelError: A model reaches for files outside its folder, or would run code when loaded.
        UnsupportedModelError: An input without data is of a type that no value can be made up for.
        VerificationError: A model does not run.
        DeviceError: The device cannot be used, or has no kernel for a model.
    """
    _check(batch, threads, seconds)
    request = parse_device(device)
    if is_torch(original) != is_torch(folded):
        raise UsageError(
            "one model is of onnxruntime and one of torch, so that not the models would be compared but the runtimes",
            hint="Give two ONNX models, or two PyTorch models.",
        )
    if names and is_torch(original):
        raise UsageError("names are for ONNX models", hint="Let both return the same structure.")
    begin("loading both models")
    pair, labels = (_torch_pair if is_torch(original) else _onnx_pair)(
        original, folded, request, threads, inputs, seed, shapes, value_ranges, names or {}
    )
    comparisons = []
    with pair.running():
        for size in tuple(batch) or (None,):
            what = "both models" if size is None else f"both models with batch {size}"
            with heard_by(progress):
                begin(f"measuring {what} for {2 * seconds:g} s")
            comparisons.append(_compare(pair, size, seconds))
    return Timing(*labels, pair.setting, seed, seconds, tuple(comparisons))


def _compare(pair: Pair, batch: int | None, seconds: float) -> Comparison:
    prepared = pair.prepare(batch)
    rounds = interleave(prepared.original, prepared.folded, seconds)
    return Comparison(
        batch,
        prepared.inputs,
        Latency.of([duration for each in rounds for duration in each.original_s]),
        Latency.of([duration for each in rounds for duration in each.folded_s]),
        Ratio.of(rounds),
    )


def _check(batch: Sequence[int], threads: int | None, seconds: float) -> None:
    for size in batch:
        if size < 1:
            raise UsageError(f"a batch size is {size}", hint="Batch sizes are 1 or more.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", hint="Give 1 or more, or none for the runtime's choice.")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"seconds is {seconds}", hint="Give a time above 0.")


def _onnx_pair(
    original: AnyModel,
    folded: AnyModel,
    request: DeviceRequest,
    threads: int | None,
    inputs: Inputs,
    seed: int,
    shapes: Shapes | None,
    value_ranges: Mapping[str, Range] | None,
    names: Mapping[str, str],
) -> tuple[Pair, tuple[str, str]]:
    given = cast(Mapping[str, Array] | Sequence[Mapping[str, Array]] | None, inputs)
    feeds = FeedRequest.of(given, 1, seed, shapes, value_ranges)
    _check_one_sample(feeds.samples)
    one = Source.of(cast(ModelLike, original), "original")
    other = Source.of(cast(ModelLike, folded), "folded").called(names)
    return OnnxPair(one, other, request, threads, feeds), (one.label, other.label)


def _torch_pair(
    original: AnyModel,
    folded: AnyModel,
    request: DeviceRequest,
    threads: int | None,
    inputs: Inputs,
    seed: int,
    shapes: Shapes | None,
    value_ranges: Mapping[str, Range] | None,
    names: Mapping[str, str],  # noqa: ARG001 - like `_onnx_pair`; modules have no names for outputs
) -> tuple[Pair, tuple[str, str]]:
    # Whoever measures ONNX models need not wait for torch.
    require("torch", "a PyTorch model")
    from bnfold.latency.torch_runner import TorchPair
    from bnfold.verification.torch.run.samples import SampleRequest
    from bnfold.verification.torch.run.subject import Subject, TorchLike

    samples = SampleRequest.of(None, inputs, 1, seed, shapes, value_ranges)
    _check_one_sample(samples.samples)
    one = Subject.of(cast(TorchLike, original), "original")
    other = Subject.of(cast(TorchLike, folded), "folded")
    return TorchPair(one, other, request, threads, samples), (one.label, other.label)


def _check_one_sample(samples: int) -> None:
    if samples > 1:
        raise UsageError(f"{samples} samples were given", hint="Latency is measured with one; give that alone.")
