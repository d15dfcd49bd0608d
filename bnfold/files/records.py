"""What a worker is told of one file, and what it tells of it: both travel between processes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError
from bnfold.text.tables import plural

if TYPE_CHECKING:
    from bnfold.report import Report

ERROR_SCHEMA = "bnfold.error/1"


class Status(StrEnum):
    """What became of a file."""

    FOLDED = "folded"
    KEPT = "kept"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is, and where its fold goes.

    Attributes:
        source: A path or a URL.
        destination: Likewise.
        name: What the destination is called below the output folder, with "/" between folders.
    """

    source: str
    destination: str
    name: str


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What is done with each file; the attributes are the arguments of `bnfold.fold_files`.

    Attributes:
        skip: Names of BatchNorms that stay.
        only: Names of the only ones to fold.
        leftover: What becomes of those that stay.
        merge: Whether parallel branches become one.
        repair: Whether what the ONNX standard does not allow is mended.
        require_all: Whether a BatchNorm that is left fails the file.
        verify: Whether a file is verified before it is put in place.
        verification: Options of `bnfold.verify`.
        resume: Whether what is there, unchanged and verified, stays.
        force: Whether a destination may be its own source.
        dry_run: Whether nothing is written.
    """

    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    leftover: str = "conv"
    merge: bool = True
    repair: bool = False
    require_all: bool = False
    verify: bool = True
    verification: Mapping[str, object] = field(default_factory=dict)
    resume: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One file to fold.

    Attributes:
        place: Which, and where to.
        options: How.
        page: Where a page about it goes; None if nobody wants one.
    """

    place: Place
    options: FileOptions
    page: Path | None = None


@dataclass(frozen=True, slots=True, repr=False)
class FileOutcome:
    """What became of one file.

    Attributes:
        source: Its path or URL.
        destination: Where its fold went, or would have gone.
        name: What the destination is called below the output folder.
        status: "folded" (and verified, unless that was not asked for), "kept" (it was there already) or "failed".
        report: The whole report; None where an error came before there was one.
        error: The error; None if there was none. A fold that is not right is no error, but a report that says so.
        notes: What a caller should know of the files, as sentences without a full stop.
        duration_s: How long it took.
    """

    source: str
    destination: str
    name: str
    status: Status
    report: "Report | None" = None
    error: BnfoldError | None = None
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0

    def headline(self) -> str:
        """One line: what became of it, without names."""
        if self.error is not None:
            return f"{str(self.error).rstrip('.')}. {self.error.hint}".rstrip()
        assert self.report is not None  # one of the two is always there
        verdict = f"{self.report.verdict}: {self.report.reason}" if self.report.reason else self.report.verdict.value
        left = sum(entry.batch_norms for entry in self.report.left)
        affines = self.report.affines_folded
        more = f", {plural(affines, 'spelled-out affine')} folded" if affines else ""
        return f"{verdict}; {plural(left + self.report.batch_norms_folded, 'BatchNorm')}, {left} left{more}"

    def to_json(self) -> str:
        """The report, or the error under schema "bnfold.error/1", as one line of JSON."""
        if self.report is not None:
            return self.report.to_json(indent=None)
        assert self.error is not None  # one of the two is always there
        return json.dumps({**error_document(self.error), "input": {"path": self.source}}, ensure_ascii=False)

    def __repr__(self) -> str:
        return f"<FileOutcome: {self.source} {self.status}: {self.headline()}>"


def error_document(error: BnfoldError) -> dict[str, object]:
    """An error as a JSON value."""
    said = {
        "kind": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    return {"schema": ERROR_SCHEMA, "error": said}
