"""The reports that are kept beside folded files, and what they say of them: whether there is anything left to do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError, OutputError
from bnfold.files.job import describe
from bnfold.system.source_file import reason_of
from bnfold.system.staging import private_folder, replace_file
from bnfold.version import __version__

if TYPE_CHECKING:
    from bnfold.report import Report

REPORT_SUFFIX = ".bnfold.json"


def report_beside(destination: Path) -> Path:
    """Where the report of a folded file is kept."""
    return destination.with_name(destination.name + REPORT_SUFFIX)


def keep(report: "Report", destination: Path) -> tuple[str, ...]:
    """Puts a report beside what it tells of.

    Returns:
        Why that cannot be, as a sentence without a full stop; usually nothing.
    """
    path = report_beside(destination)
    try:
        with private_folder(path.parent) as folder:
            staged = folder / "report"
            staged.write_text(report.to_json(), encoding="utf-8")
            return tuple(replace_file(staged, path))
    except (OSError, OutputError) as error:
        said = reason_of(error) if isinstance(error, OSError) else str(error).rstrip(".")
        return (f"the report {path} cannot be kept, so that --resume will not know of it: {said}",)


def kept(source: Path, destination: Path, options: Mapping[str, object]) -> "Report | None":
    """The report of a fold that is there, by this version with these options, if neither file has changed since."""
    from bnfold.report import Verdict
    from bnfold.report.finite import to_json_value
    from bnfold.report.reading import report_of

    try:
        document = json.loads(report_beside(destination).read_bytes())
        report = report_of(document)
        found = [describe(path, hashed=True).sha256 for path in (source, destination)]
    except (OSError, ValueError, TypeError, RecursionError, BnfoldError):
        return None
    said = [file.sha256 for file in (report.input, report.output) if file is not None]
    right = report.verdict in (Verdict.PASS, Verdict.SKIPPED) and report.options == to_json_value(options)
    is_ours = document["tool"]["version"] == __version__
    return report if right and is_ours and said == found else None
