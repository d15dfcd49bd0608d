"""Adds to a verification's report what was folded, and which files were read and written."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bnfold.graph import Kind
from bnfold.planning.plan import Direction, Plan
from bnfold.report.records import FileInfo, PlanEntry
from bnfold.report.report import Report

_SIDES = {Direction.BACKWARD: "output", Direction.FORWARD: "input", Direction.BOTH: "both"}
"""The side of the targets that took the affine."""
_CHUNK_NBYTES = 1 << 20


def plan_entries(plan: Plan) -> tuple[tuple[PlanEntry, ...], tuple[PlanEntry, ...]]:
    """The folds of a plan and what it left, as a report tells them."""
    folds = tuple(
        PlanEntry(
            nodes=fold.nodes,
            kind=fold.kind.value,
            targets=fold.targets,
            direction=_SIDES[fold.direction],
            path=fold.path,
            batch_norms=len(fold.nodes) if fold.kind is Kind.BATCH_NORM else 0,
        )
        for fold in plan.folds
    )
    left = tuple(
        PlanEntry(
            nodes=entry.nodes,
            kind=entry.kind.value,
            code=entry.code.value,
            reason=entry.reason,
            written=entry.written or None,
            batch_norms=entry.batch_norms,
        )
        for entry in plan.left
    )
    return folds, left


def complete(
    report: Report,
    plan: Plan,
    source: FileInfo,
    written: FileInfo | None,
    timings_s: Mapping[str, float],
    operators: tuple[Mapping[str, int], Mapping[str, int]],
    options: Mapping[str, object],
) -> Report:
    """A report with the plan, the files and the durations of a whole run.

    Args:
        report: What the verification found.
        plan: What was folded.
        source: The file that was read, or what stands for it where the model is code.
        written: The file that was written, None if none was.
        timings_s: Durations in seconds, added to those of the verification.
        operators: How many nodes there are of each operator, before and after.
        options: What was asked for, as JSON values.
    """
    folds, left = plan_entries(plan)
    return replace(
        report,
        folds=folds,
        left=left,
        merges=plan.merges,
        apart=plan.apart,
        assumptions=plan.assumptions,
        input=source,
        output=written,
        timings_s={**report.timings_s, **timings_s},
        operators_before=operators[0],
        operators_after=operators[1],
        options=options,
    )


def file_info(path: Path, data: Sequence[Path], *, hashed: bool) -> FileInfo:
    """Describes a model of one file, or of one with data files, which count as if they were appended to it.

    Args:
        path: The model.
        data: Its data files, in the order in which they are hashed.
        hashed: Whether all of it is read for a hash.
    """
    digest = hashlib.sha256()
    for file in (path, *data) if hashed else ():
        with file.open("rb", buffering=0) as opened:
            while chunk := opened.read(_CHUNK_NBYTES):
                digest.update(chunk)
    return FileInfo(
        path=str(path),
        sha256=digest.hexdigest() if hashed else None,
        format=path.suffix.lower().removeprefix("."),
        bytes=sum(file.stat().st_size for file in (path, *data)),
        data_files=tuple(file.name for file in data),
    )
