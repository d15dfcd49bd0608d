"""Adds to a verification's report what was folded, and which files were read and written."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bnfold.planning.plan import Direction, Plan
from bnfold.report.records import FileInfo, PlanEntry
from bnfold.report.report import Report

_SIDES = {Direction.BACKWARD: "output", Direction.FORWARD: "input", Direction.BOTH: "both"}
"""The side of the targets that took the affine."""


def plan_entries(plan: Plan) -> tuple[tuple[PlanEntry, ...], tuple[PlanEntry, ...]]:
    """The folds of a plan and what it left, as a report tells them."""
    folds = tuple(
        PlanEntry(
            nodes=fold.nodes,
            kind=fold.kind.value,
            targets=fold.targets,
            direction=_SIDES[fold.direction],
        )
        for fold in plan.folds
    )
    left = tuple(
        PlanEntry(nodes=entry.nodes, kind=entry.kind.value, code=entry.code.value, reason=entry.reason)
        for entry in plan.left
    )
    return folds, left


def complete(
    report: Report, plan: Plan, source: Path | FileInfo, written: Path | None, timings_s: Mapping[str, float]
) -> Report:
    """A report with the plan, the files (hashed) and the durations of a whole run.

    Args:
        report: What the verification found.
        plan: What was folded.
        source: The file that was read, or what stands for it where the model is code.
        written: The file that was written, None if none was.
        timings_s: Durations in seconds, added to those of the verification.
    """
    folds, left = plan_entries(plan)
    return replace(
        report,
        folds=folds,
        left=left,
        merges=plan.merges,
        apart=plan.apart,
        assumptions=plan.assumptions,
        input=source if isinstance(source, FileInfo) else file_info(source),
        output=None if written is None else file_info(written),
        timings_s={**report.timings_s, **timings_s},
    )


def file_info(path: Path) -> FileInfo:
    """Hashes a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kind = path.suffix.lower().removeprefix(".")
    return FileInfo(path=str(path), sha256=digest, format=kind, bytes=path.stat().st_size)
