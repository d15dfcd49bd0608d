"""What is done with a model that was folded: written beside its destination, verified, put in place, reported."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.text.progress import begin

if TYPE_CHECKING:
    from bnfold.planning.plan import Plan
    from bnfold.report import Exact, FileInfo, Report
    from bnfold.result import FoldResult
    from bnfold.system.staging import Staged, Written


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A model that was folded.

    Attributes:
        plan: What was folded and left.
        ops_before: Nodes by operator, before.
        ops_after: Nodes by operator, after.
        parameters: How many numbers are stored, before and after.
        is_copy: Whether what is written equals what was read, so that there is nothing to verify.
        source: The file that was read, or what a report says of a module.
        stage: Writes the result beside a destination.
        check: The exact gate.
        verify: Compares what was staged with the original, told what the exact gate found.
    """

    plan: "Plan"
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    parameters: tuple[int, int]
    is_copy: bool
    source: "Path | FileInfo"
    stage: "Callable[[Path], AbstractContextManager[Staged]]"
    check: "Callable[[], Exact]"
    verify: "Callable[[Path, Exact], Report]"

    @staticmethod
    def of(
        result: "FoldResult[object]",
        source: "Path | FileInfo",
        verify: "Callable[[Path, Exact], Report]",
        *,
        force: bool,
        is_copy: bool = False,
    ) -> "Job":
        """What `bnfold.fold` gave; the other arguments are attributes, but `force`: whether OUT may be IN."""
        return Job(
            result.plan,
            result.ops_before,
            result.ops_after,
            result.parameters,
            is_copy,
            source,
            lambda destination: result.staged(destination, force=force),
            result.check,
            verify,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a model is put in place.

    Attributes:
        verifies: Whether it is verified first.
        require_all: Whether a BatchNorm that is left keeps it from being written.
        dry_run: Whether nothing is written at all.
        hashed: Whether the report gives the hashes of the files.
        options: What the report says that was asked for.
    """

    verifies: bool = True
    require_all: bool = False
    dry_run: bool = False
    hashed: bool = False
    options: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job.

    Attributes:
        report: The whole report.
        written: The files that are there now; None if none was written.
        good: Whether nothing stood against writing them.
    """

    report: "Report"
    written: "Written | None"
    good: bool


def carry_out(job: Job, output: Path | None, terms: Terms, started: float) -> Done:
    """Writes, verifies and puts in place what was folded.

    Args:
        job: What was folded.
        output: The destination; None for a dry run.
        terms: On which.
        started: When the fold began, by `time.perf_counter`.

    Raises:
        OutputError: It cannot be written; what was there is as it was.
        BnfoldError: It cannot be verified, for whatever reason; likewise.
    """
    from bnfold.report import Report, Verdict, complete

    source = describe(job.source, hashed=terms.hashed)
    timings_s = {"fold": time.perf_counter() - started}
    written, unmet = None, terms.require_all and job.plan.batch_norms_left > 0
    if output is None or terms.dry_run or unmet:
        reason = "a BatchNorm is left, and --require-all was asked for" if unmet else "dry run"
        report, good = Report(Verdict.SKIPPED, reason), not unmet
    else:
        begin("writing")
        with job.stage(output) as staged:
            timings_s["write"] = time.perf_counter() - started - timings_s["fold"]
            report = _verified(job, staged.path, verifies=terms.verifies)
            good = report.verdict in (Verdict.PASS, Verdict.SKIPPED)
            if good:
                written = staged.commit()
        timings_s["total"] = time.perf_counter() - started
    target = None
    if output is not None and written is not None:
        target = describe(output, hashed=terms.hashed, data=written.files[1:])
    operators = (job.ops_before, job.ops_after)
    return Done(complete(report, job.plan, source, target, timings_s, operators, terms.options or {}), written, good)


def describe(model: "Path | FileInfo", *, hashed: bool, data: Sequence[Path] | None = None) -> "FileInfo":
    """A file with all that belongs to it; what already is a description is itself.

    Args:
        model: The file.
        hashed: Whether all of it is read for a hash.
        data: Its data files, where they are known; else it is read to find them.
    """
    from bnfold.report import FileInfo, file_info

    if isinstance(model, FileInfo):
        return model
    if data is None and model.suffix.lower() == ".onnx":
        from bnfold.onnx.file.data_files import data_files

        data = data_files(model)
    return file_info(model, data or (), hashed=hashed)


def _verified(job: Job, staged: Path, *, verifies: bool) -> "Report":
    """What all gates say of a model that was staged; after a wrong region, nothing is run."""
    from bnfold.report import Report, Verdict

    if job.is_copy:
        return Report(Verdict.SKIPPED, "nothing was changed, the output is a copy of the input")
    if not verifies:
        return Report(Verdict.SKIPPED, "--no-verify was asked for")
    return job.verify(staged, job.check())
