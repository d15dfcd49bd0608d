"""The gates for PyTorch models: run both on the same inputs and device, judge the difference by float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from bnfold.errors import DeviceError, ModelLoadError, VerificationError
from bnfold.model_kind import is_torch
from bnfold.report.clock import Clock
from bnfold.report.records import DeviceInfo, OutputMetrics, Verdict
from bnfold.report.report import Report
from bnfold.text.progress import each
from bnfold.torch.capture.example_inputs import array_hint
from bnfold.verification.judging.comparing import (
    Compared,
    Results,
    Tolerances,
    compare_results,
    judge_without_noise,
    metrics_only,
)
from bnfold.verification.judging.sites import SitesOutcome, worst_of
from bnfold.verification.judging.verdicts import config_of, decide, does_not_run, sites_do_not_explain
from bnfold.verification.runtime.devices import Device, DeviceRequest, cpu_device, cuda_device
from bnfold.verification.runtime.request import Request
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure, check_device_works
from bnfold.verification.runtime.source import ModelLike, Source
from bnfold.verification.torch.outputs.oracle import Judged, Measured, judge_by_noise
from bnfold.verification.torch.run.devices import limited_to, torch_device
from bnfold.verification.torch.run.evaluation import Placement
from bnfold.verification.torch.run.folded import OnnxFolded
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.samples import SampleRequest, make_samples
from bnfold.verification.torch.run.subject import RunError, Runner, Subject, TorchLike, check_modes
from bnfold.verification.torch.sites.measure import measure_sites

_CHECK_INPUTS = "Check the shapes, element types and values of the inputs."

AnyModel: TypeAlias = TorchLike | ModelLike


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What is compared, and how.

    Attributes:
        original: The original.
        folded: The folded model, if PyTorch runs it.
        onnx: The folded model, if onnxruntime does.
        samples: What was said about inputs.
        request: How they are compared.
    """

    original: Subject
    folded: Subject | None
    onnx: Source | None
    samples: SampleRequest
    request: Request

    @property
    def folded_label(self) -> str:
        """What a message calls the folded model."""
        return self.folded.label if self.folded is not None else cast(Source, self.onnx).label


def verify_torch(original: TorchLike, folded: AnyModel, samples: SampleRequest, request: Request) -> Report:
    """Compare a folded model with its PyTorch original.

    Args:
        original: The original.
        folded: The folded model.
        samples: What was said about inputs.
        request: How they are compared.

    Raises:
        UsageError: An argument contradicts the model.
        ModelLoadError: A model cannot be read.
        UnsafeModelError: A file would run code, or reaches for files outside its folder.
        UnsupportedModelError: A model is of a kind that cannot be run with other parameters.
        VerificationError: The original does not run, or a run does not end in time, so that nothing can be compared.
        DeviceError: The device cannot be used.
    """
    in_torch = is_torch(folded)
    task = _Task(
        Subject.of(original, "original"),
        Subject.of(cast(TorchLike, folded), "folded") if in_torch else None,
        None if in_torch else Source.of(cast(ModelLike, folded), "folded"),
        samples,
        request,
    )
    if task.folded is not None:
        check_modes(task.original, task.folded)
    used, onnx_device, fell_back = _devices(task)
    onnx_device = onnx_device and request.limited(onnx_device)
    clock = Clock()
    with clock.measure("total"), limited_to(request.threads):
        report = _compare(task, request.limited(used), onnx_device, fell_back, clock)
    return replace(report, timings_s=clock.timings_s)


def _devices(task: _Task) -> tuple[Device, Device | None, str | None]:
    """The device of torch, that of onnxruntime if it takes part, and why "auto" fell back.

    Raises:
        DeviceError: One of them cannot use what was asked for.
    """
    used, fell_back = torch_device(task.request.device)
    if task.onnx is None:
        return used, None, fell_back
    if used.kind == "cuda":
        try:
            gpu = cuda_device()
            check_device_works(gpu)
        except DeviceError as error:
            if task.request.device is DeviceRequest.CUDA:
                raise
            return torch_device(DeviceRequest.CPU)[0], cpu_device(), str(error)
        return used, gpu, None
    return used, cpu_device(), fell_back


def _compare(task: _Task, device: Device, onnx_device: Device | None, fell_back: str | None, clock: Clock) -> Report:
    tolerances = task.request.tolerances
    samples, inputs = make_samples(task.original, task.samples)
    seed = task.samples.seed
    try:
        with clock.measure("original_runs"):
            runner = task.original.runner(device)
            placement = runner.placement(samples[0])
            references: list[Results] = [runner.run(sample, seed=seed) for sample in each(samples, "sample")]
            random = _random_operation(runner, placement, samples[0], references[0], seed)
    except RunError as error:
        raise VerificationError(
            f"{task.original.label} does not run, so nothing can be compared with it: {error}",
            hint=array_hint(samples[0].leaves) or _CHECK_INPUTS,
        ) from error
    del runner
    if placement.heavy_elsewhere:
        raise DeviceError(
            f"{task.original.label} computes {placement.heavy_elsewhere} where {device.kind} was asked for",
            hint="Its own code puts tensors there; verify with --device cpu.",
        )
    config = config_of(seed, len(samples), inputs, tolerances)
    report = Report(
        Verdict.INCONCLUSIVE,
        "nothing was compared",
        device=_device_info(task, device, onnx_device, fell_back, placement),
        config=config,
    )
    with clock.measure("sites"):
        outcome = _sites(task, device, samples[0])
    report = replace(report, sites=outcome.sites, sites_note=outcome.note)
    with clock.measure("folded_runs"):
        found = _run_folded(task, device, onnx_device, samples, references[0])
    if isinstance(found, str):
        return does_not_run(report, found)
    compared = compare_results(references, found, tolerances)
    if task.request.tf32 and device.kind == "cuda":
        with clock.measure("as_deployed"):
            report = replace(report, as_deployed=_run_as_deployed(task, device, onnx_device, samples, references))
    with clock.measure("noise"):
        measured = Measured(
            task.original,
            task.folded,
            device,
            seed,
            samples,
            references,
            found,
            compared,
            is_exact=task.request.is_exact,
            proved=task.request.is_exact and outcome.all_pass,
        )
        judged = _judge(measured, tolerances, random)
    if sites_do_not_explain(judged.outputs, outcome.sites):
        with clock.measure("other_sites"):
            outcome = worst_of([outcome, *(_sites(task, device, sample) for sample in samples[1:])])
        report = replace(report, sites=outcome.sites, sites_note=outcome.note)
    verdict, reason = decide(judged.outputs, outcome.sites, tolerances)
    oracle = "float64" if judged.has_oracle else "none"
    config = replace(config, noise_draws=judged.draws, oracle=oracle, oracle_note=judged.note)
    return replace(report, verdict=verdict, reason=reason, outputs=judged.outputs, config=config)


def _judge(measured: Measured, tolerances: Tolerances | None, random: str) -> Judged:
    if tolerances is None and not random:
        return judge_by_noise(measured)
    outputs = judge_without_noise(measured.compared, tolerances, random)
    return Judged(outputs, 0, has_oracle=False, note="")


def _random_operation(runner: Runner, placement: Placement, sample: Sample, reference: Results, seed: int) -> str:
    """An operation that draws random numbers which reach an output; "" if there is none.

    Raises:
        RunError: The original does not run.
    """
    if not placement.random:
        return ""
    other = runner.run(sample, seed=seed + 1)
    compared = compare_results([reference], [other], None)
    same = all(not item.change and not item.max_abs for runs in compared.values() for item in runs.comparisons)
    return "" if same else placement.random


def _sites(task: _Task, device: Device, sample: Sample) -> SitesOutcome:
    if task.folded is None:
        reason = "the original is a PyTorch model and the folded one an ONNX model, so the outputs decide"
        return SitesOutcome(note=f"sites were not measured: {reason}")
    return measure_sites(task.original, task.folded, device, sample)


def _run_folded(
    task: _Task,
    device: Device,
    onnx_device: Device | None,
    samples: Sequence[Sample],
    reference: Results,
    *,
    as_deployed: bool = False,
) -> list[Results] | str:
    """Outputs of the folded model for each sample, or why it does not run.

    Raises:
        DeviceError: It cannot run on the device.
        ModelLoadError: It cannot be read.
        UsageError: It takes other inputs.
    """
    if task.folded is not None:
        try:
            runner = task.folded.runner(device)
            return [runner.run(sample, seed=task.samples.seed, tf32=as_deployed) for sample in each(samples, "sample")]
        except RunError as error:
            return str(error)
    assert task.onnx is not None  # one of the two is always there
    assert onnx_device is not None
    try:
        return OnnxFolded(task.onnx, onnx_device).run(samples, reference, as_deployed=as_deployed)
    except RuntimeFailure as failure:
        if failure.kind is FailureKind.UNREADABLE:
            raise ModelLoadError(f"{task.onnx.label} cannot be loaded: {failure}") from failure
        if failure.kind in (FailureKind.DEVICE, FailureKind.NO_KERNEL):
            raise DeviceError(f"{task.onnx.label} cannot run on {onnx_device.provider}: {failure}") from failure
        return str(failure)


def _run_as_deployed(
    task: _Task,
    device: Device,
    onnx_device: Device | None,
    samples: Sequence[Sample],
    references: Sequence[Results],
) -> tuple[OutputMetrics, ...]:
    found = _run_folded(task, device, onnx_device, samples, references[0], as_deployed=True)
    if isinstance(found, str):
        raise DeviceError(
            f"{task.folded_label} cannot run as deployed, with TF32: {found}",
            hint="Leave out --tf32 for the verdict alone.",
        )
    compared: Mapping[str, Compared] = compare_results(references, found, None)
    return metrics_only(compared)


def _device_info(
    task: _Task, device: Device, onnx_device: Device | None, fell_back: str | None, placement: Placement
) -> DeviceInfo:
    provider = device.provider if onnx_device is None else f"{device.provider} and {onnx_device.provider}"
    return DeviceInfo(
        requested=task.request.device.value,
        used=device.kind,
        name=device.name,
        provider=provider,
        fell_back=fell_back,
        nodes_per_provider=dict(placement.counts),
        nodes_elsewhere=tuple(placement.elsewhere),
    )
