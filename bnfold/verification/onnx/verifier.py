"""Run both models on the same inputs and device; judge the difference by the original's rounding noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bnfold.errors import DeviceError, ModelLoadError, VerificationError
from bnfold.onnx.constant_costs import require_small_constants
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.check import check
from bnfold.onnx.proto.normalise import normalise
from bnfold.report.clock import Clock
from bnfold.report.records import DeviceInfo, OutputMetrics, Verdict
from bnfold.report.report import Report
from bnfold.text.progress import each
from bnfold.verification.inputs.feeds import FeedRequest, make_feeds
from bnfold.verification.inputs.sampling import declared_inputs
from bnfold.verification.inputs.shapes import unequal_sizes
from bnfold.verification.judging.comparing import Compared, compare_results, metrics_only
from bnfold.verification.judging.sites import worst_of
from bnfold.verification.judging.verdicts import config_of, decide, does_not_run, sites_do_not_explain
from bnfold.verification.onnx.outputs.evidence import Baseline, compare_runs, judge_outputs
from bnfold.verification.onnx.outputs.steps import Stepless
from bnfold.verification.onnx.sites.measure import measure_sites
from bnfold.verification.runtime.devices import (
    Device,
    DeviceRequest,
    cpu_device,
    cuda_device,
    tensorrt_device,
)
from bnfold.verification.runtime.request import Request
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure, Session, check_device_works
from bnfold.verification.runtime.source import ModelLike, Source, injected_values, make_loadable

_Interface = tuple[tuple[str, ...], tuple[str, ...]]  # names of the inputs, names of the outputs


@dataclass(frozen=True, slots=True)
class _Task:
    """What is compared, and how."""

    original: Source
    folded: Source
    feeds: FeedRequest
    request: Request

    def opened(self) -> tuple[_Task, OnnxModel, OnnxModel]:
        """The same with models as they can be run, and their skeletons.

        Raises:
            ModelLoadError: One cannot be read.
            UnsafeModelError: One reaches for files outside its folder.
        """
        original, before = self.original.opened()
        folded, after = self.folded.opened()
        return replace(self, original=original, folded=folded), before, after


def verify_onnx(
    original: ModelLike, folded: ModelLike, feeds: FeedRequest, request: Request, names: Mapping[str, str]
) -> Report:
    """Compare a folded ONNX model with its original.

    Args:
        original: The original.
        folded: The folded model.
        feeds: What was said about inputs.
        request: How they are compared.
        names: For inputs and outputs of the original, what the folded model calls them, if something else.

    Raises:
        UsageError: An argument names no input, or contradicts the model.
        ModelLoadError: A model cannot be read.
        UnsafeModelError: A model reaches for files outside its folder.
        UnsupportedModelError: An input without data is of a type that no value can be made up for, or a model computes
            much more from constants than is in its file.
        VerificationError: The original does not run, or a run does not end in time, so that nothing can be compared.
        DeviceError: The device cannot be used, or has no kernel for the original.
    """
    task = _Task(Source.of(original, "original"), Source.of(folded, "folded").called(names), feeds, request)
    if request.device is DeviceRequest.CPU:
        return _verify_on(request.limited(cpu_device()), task)
    if request.device is DeviceRequest.TENSORRT:
        tensorrt, cuda = request.limited(tensorrt_device()), request.limited(cuda_device())
        for needed in (cuda, tensorrt):
            check_device_works(needed)
        return _verify_on(cuda, task, deployed_on=tensorrt)
    try:
        gpu = request.limited(cuda_device())
        check_device_works(gpu)
        return _verify_on(gpu, task)
    except DeviceError as error:
        if request.device is DeviceRequest.CUDA:
            raise
        reason = str(error)
    return _verify_on(request.limited(cpu_device()), task, fell_back=reason)


def _verify_on(
    device: Device, task: _Task, *, fell_back: str | None = None, deployed_on: Device | None = None
) -> Report:
    clock = Clock()
    with clock.measure("total"):
        report = _compare_models(device, deployed_on or device, task, clock, fell_back)
    return replace(report, timings_s=clock.timings_s)


def _compare_models(device: Device, folded_device: Device, task: _Task, clock: Clock, fell_back: str | None) -> Report:
    tolerances = task.request.tolerances
    task, original, folded = task.opened()
    for model in (original, folded):
        check(model)
        normalise(model.proto)
        require_small_constants(model)
    with _original_errors(task.original, device):
        with clock.measure("original_session"):
            session = task.original.runner(device, original.nbytes)
        with clock.measure("inputs"):
            feeds, inputs = make_feeds(declared_inputs(original.proto), task.feeds, session.run)
        with clock.measure("original_runs"):
            references = [session.run(feed) for feed in each(feeds[1:], "sample", done=1)]
    config = config_of(task.feeds.seed, len(feeds), inputs, tolerances)
    note = unequal_sizes(declared_inputs(original.proto), {info.name: info.shape for info in inputs})
    config = replace(config, inputs_note=note)
    info = DeviceInfo(
        requested=task.request.device.value,
        used=folded_device.kind,
        name=folded_device.name,
        provider=folded_device.provider,
        fell_back=fell_back,
        nodes_per_provider=session.nodes_per_provider,
        nodes_elsewhere=session.nodes_elsewhere,
    )
    report = Report(Verdict.INCONCLUSIVE, "nothing was compared", device=info, config=config)
    interface = session.inputs, session.outputs
    del session  # the models and the copies run one after another: one set of weights in memory at a time
    with clock.measure("sites"):
        outcome = measure_sites(original, folded, device, feeds[0])
    stepless = None if tolerances else Stepless.of(original, folded)
    report = replace(report, sites=outcome.sites, sites_note=outcome.note)
    first = outcome.references
    if first is None:
        with _original_errors(task.original, device), clock.measure("original_again"):
            first = task.original.runner(device, original.nbytes).run(feeds[0])
    proved = task.request.is_exact and outcome.all_pass
    baseline = Baseline(original, device, task.feeds.seed, feeds, [first, *references], proved)
    try:
        with clock.measure("folded_session"):
            session = task.folded.runner(folded_device, folded.nbytes)
        if problem := _other_interface(interface, (session.inputs, session.outputs)):
            return replace(report, verdict=Verdict.FAIL, reason=problem)
        with clock.measure("folded_runs"):
            results = map(session.run, each(feeds, "sample"))
            compared = compare_results(baseline.references, results, tolerances)
        del session
    except RuntimeFailure as failure:
        return _folded_failure(failure, task.folded, report)
    if task.request.tf32 and device.kind == "cuda":
        with clock.measure("as_deployed"):
            report = replace(report, as_deployed=_run_as_deployed(task.folded, device, baseline))
    with clock.measure("noise"):
        outputs, draws = (
            judge_outputs(compared, baseline, tolerances)
            if stepless is None
            else _judge_without_steps(stepless, compared, baseline)
        )
    if sites_do_not_explain(outputs, outcome.sites):
        with clock.measure("other_sites"):
            others = [measure_sites(original, folded, device, feed) for feed in feeds[1:]]
        outcome = worst_of([outcome, *others])
        report = replace(report, sites=outcome.sites, sites_note=outcome.note)
    verdict, reason = decide(outputs, outcome.sites, tolerances)
    return replace(report, verdict=verdict, reason=reason, outputs=outputs, config=replace(config, noise_draws=draws))


def _judge_without_steps(
    stepless: Stepless, compared: Mapping[str, Compared], baseline: Baseline
) -> tuple[tuple[OutputMetrics, ...], int]:
    """The verdicts on the outputs of a quantised model, and the number of draws behind them; see `steps`."""
    try:
        references = [*map(_session(stepless.original, baseline.device).run, baseline.feeds)]
        smooth = replace(baseline, model=stepless.original, references=references)
        runs = compare_runs(_session(stepless.folded, baseline.device), smooth, None)
    except RuntimeFailure:
        return judge_outputs(compared, baseline, None)
    outputs, draws = judge_outputs(runs, smooth, None)
    return stepless.judged(outputs, compared), draws


def _session(model: OnnxModel, device: Device) -> Session:
    make_loadable(model)
    return Session(model.proto.SerializeToString(), device, injected_values(model))


def _run_as_deployed(folded: Source, device: Device, baseline: Baseline) -> tuple[OutputMetrics, ...]:
    try:
        return metrics_only(compare_runs(folded.session(device, as_deployed=True), baseline, None))
    except RuntimeFailure as failure:
        raise DeviceError(
            f"{folded.label} cannot run as deployed, with the runtime's optimisations and TF32: {failure}",
            hint="Leave out --tf32 for the verdict alone.",
        ) from failure


def _other_interface(original: _Interface, folded: _Interface) -> str:
    """What makes it impossible to run the folded model in place of the original; "" if nothing does."""
    missing = [name for name in original[0] if name not in folded[0]]
    if missing:
        return f"the folded model has no input {missing[0]!r}"
    added = [name for name in folded[0] if name not in original[0]]
    if added:
        return f"the folded model asks for an input {added[0]!r} that the original does not have"
    if original[1] != folded[1] and sorted(original[1]) == sorted(folded[1]):
        return "the folded model gives its outputs in another order"
    return ""


@contextmanager
def _original_errors(source: Source, device: Device) -> Iterator[None]:
    """Say what it means that the runtime refuses the original."""
    try:
        yield
    except RuntimeFailure as failure:
        if failure.kind is FailureKind.UNREADABLE:
            raise ModelLoadError(f"{source.label} cannot be loaded: {failure}") from failure
        if failure.kind is FailureKind.NO_KERNEL or (failure.kind is FailureKind.DEVICE and device.kind != "cpu"):
            raise DeviceError(f"{source.label} cannot run on {device.provider}: {failure}") from failure
        raise VerificationError(
            f"{source.label} does not run in onnxruntime, so nothing can be compared with it: {failure}",
            hint="`bnfold fold --no-verify` folds it all the same, and `bnfold inspect` reads it.",
        ) from failure


def _folded_failure(failure: RuntimeFailure, source: Source, report: Report) -> Report:
    """A folded model that does not run, where the original did, is a failed verification."""
    if failure.kind is FailureKind.UNREADABLE:
        raise ModelLoadError(f"{source.label} cannot be loaded: {failure}") from failure
    if failure.kind is FailureKind.DEVICE:
        raise DeviceError(f"the folded model cannot run: {failure}") from failure
    return does_not_run(report, failure)
