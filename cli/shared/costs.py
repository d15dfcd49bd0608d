"""What a run of a model takes before and after a fold: counted in files, and on request measured."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError

from .compare import Verification
from .models import CodeOptions
from .modules import stdout_kept
from .pairs import ModelPair, pair_of
from .terminal import tell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bnfold.latency import Timing
    from bnfold.report import Costs, Report
    from bnfold.text.progress import Progress


def with_costs(report: "Report", timing: "Timing | None") -> "Report":
    """A report on a fold with what a run takes: counted where something ran and both files are there, and measured."""
    report = replace(report, bench=None if timing is None else timing.to_dict())
    if report.device is None or report.input is None or report.output is None:
        return report
    before, after = Path(report.input.path), Path(report.output.path)
    if before.resolve() == after.resolve():
        return report
    return replace(report, costs_before=_counted(before), costs_after=_counted(after))


def timing_of_fold(model: str, output: Path, code: CodeOptions, given: Verification) -> "Timing | None":
    """How long the original and what was written take; None, with a note, where that cannot be measured."""
    if Path(model).resolve() == output.resolve():
        tell("note: the latency was not measured: the original is not there any more")
        return None
    try:
        with stdout_kept():
            return timing_of(pair_of(model, str(output), code, given), given)
    except BnfoldError as error:
        tell(f"note: the latency was not measured: {error}")
        return None


def timing_of(
    pair: ModelPair,
    given: Verification,
    names: "Mapping[str, str] | None" = None,
    *,
    batch: tuple[int, ...] = (),
    threads: int | None = None,
    seconds: float | None = None,
    progress: "Progress | None" = None,
) -> "Timing":
    """Runs `bnfold.benchmark` with options as they were typed.

    Args:
        pair: The models, and what modules are called with.
        given: Device and inputs.
        names: What the folded model calls inputs and outputs of the original.
        batch: Batch sizes.
        threads: Threads within an operator; None for the runtime's choice.
        seconds: Time for each model and batch size; None for the usual time.
        progress: Told, in words, what is being measured.

    Raises:
        UsageError: An option is malformed or does not fit the models.
    """
    import bnfold

    return bnfold.benchmark(
        pair.original,
        pair.folded,
        inputs=given.loaded_inputs() if pair.call is None else pair.call,
        device=given.device,
        batch=batch,
        threads=threads,
        **({} if seconds is None else {"seconds": seconds}),
        seed=given.seed,
        shapes=(given.parsed_shapes() or None) if pair.call is None else None,
        value_ranges=(given.parsed_ranges() or None) if pair.call is None else None,
        progress=progress,
        names=names,
    )


def _counted(file: Path) -> "Costs | None":
    if file.suffix.lower() != ".onnx":
        return None
    from bnfold.onnx.costs import run_costs
    from bnfold.onnx.file.load import load
    from bnfold.report import Costs

    found = run_costs(load(file))
    return None if found is None else Costs(*found)
