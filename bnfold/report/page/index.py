"""A page about many files: how each came out, with a link to the page about it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfold.report.page.writing import put_page
from bnfold.report.report import Report


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        name: What it is called.
        status: "folded", "kept" or "failed".
        link: The page about it, relative to the index; "" if there is none.
        report: What was found; None where an error came first.
        error: That error as sentences; "" if there was none.
        duration_s: How long it took, in seconds.
    """

    name: str
    status: str
    link: str
    report: Report | None
    error: str
    duration_s: float


def write_index(entries: Sequence[Entry], path: str | os.PathLike[str]) -> list[str]:
    """Write the page, with what failed at its top; see `write_page`."""
    from bnfold.report.page.rendering import render

    reports = [entry.report for entry in entries if entry.report is not None]
    left = [sum(item.batch_norms for item in report.left) for report in reports]
    facts: dict[str, object] = {
        "entries": sorted(entries, key=lambda entry: entry.status != "failed"),
        "counts": Counter(entry.status for entry in entries),
        "batch_norms": (sum(left) + sum(report.batch_norms_folded for report in reports), sum(left)),
    }
    return put_page(Path(path), lambda suffix: render("index", suffix, facts))
