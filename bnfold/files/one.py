"""One file of many: folded, verified, put in place with its report, or left as it is where that is done already."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from bnfold.errors import BnfoldError
from bnfold.files.job import Job, Terms, carry_out
from bnfold.files.kept import REPORT_SUFFIX, keep, kept, report_beside
from bnfold.files.naming import make_folder
from bnfold.files.records import FileOptions, FileOutcome, Place, Request, Status
from bnfold.files.remote import fetch, is_url, send
from bnfold.system.trouble import explained

if TYPE_CHECKING:
    from bnfold.report import FileInfo, Report

_DECIDING = ("skip", "only", "leftover", "merge", "repair", "require_all", "verify")
_IDLE = ("progress", "threads", "timeout_s")
"""Options that change how long a verification takes, and not what it finds."""


def fold_one(request: Request) -> FileOutcome:
    """Folds one file; whatever goes wrong is in the outcome, for others have to be folded as well."""
    started = time.perf_counter()
    place = request.place
    try:
        status, report, notes = _folded(request, started)
        error = None
    except Exception as raised:  # noqa: BLE001 - one of many: the others go on
        status, report, notes, error = Status.FAILED, None, (), explained(raised)
    duration_s = time.perf_counter() - started
    return FileOutcome(place.source, place.destination, place.name, status, report, error, notes, duration_s)


def asked_for(options: FileOptions) -> dict[str, object]:
    """What decides how a file is folded and verified, for its report."""
    verification = {name: value for name, value in options.verification.items() if name not in _IDLE}
    return {
        **{name: getattr(options, name) for name in _DECIDING},
        **{name: _described(value) for name, value in verification.items() if value is not None},
    }


def _folded(request: Request, started: float) -> "tuple[Status, Report, tuple[str, ...]]":
    options, place = request.options, request.place
    asked = asked_for(options)
    with _staged_here(place) as (source, destination):
        report = None
        if options.resume and not options.dry_run:
            if is_url(place.destination):
                with suppress(BnfoldError):  # nothing is there yet
                    for url in (place.destination, f"{place.destination}{REPORT_SUFFIX}"):
                        fetch(url, destination.parent)
            report = kept(source, destination, asked)
        status, notes = Status.KEPT, tuple[str, ...]()
        if report is None:
            from bnfold.verification.runtime.limits import limited_to

            if not options.dry_run:
                make_folder(destination.parent)
            terms = Terms(options.verify, options.require_all, options.dry_run, hashed=True, options=asked)
            with limited_to(cast("float | None", options.verification.get("timeout_s"))):
                done = carry_out(_job(source, options), destination, terms, started)
            status = Status.FOLDED if done.good else Status.FAILED
            report, notes = _named(done.report, place), () if done.written is None else done.written.notes
            if done.written is not None:
                notes += keep(report, destination)
                if is_url(place.destination):
                    model, *data = done.written.files
                    send([*data, model, report_beside(destination)], place.destination)
        if request.page is not None:
            notes += _write_page(report, request.page)
    return status, report, notes


def _job(source: Path, options: FileOptions) -> Job:
    from bnfold.api import fold
    from bnfold.verification import verify

    is_onnx = source.suffix.lower() == ".onnx"
    result = fold(
        source,
        skip=options.skip,
        only=options.only,
        leftover=options.leftover,
        merge=options.merge,
        repair=options.repair and is_onnx,
    )
    return Job.of(
        result,
        source,
        lambda staged, exact: verify(source, staged, exact=exact, **options.verification),  # type: ignore[arg-type]
        force=options.force,
        is_copy=is_onnx and not result.changed,
    )


@contextmanager
def _staged_here(place: Place) -> "Iterator[tuple[Path, Path]]":
    """The source and the destination as files of this machine."""
    urls = (place.source, place.destination)
    if not any(map(is_url, urls)):
        yield Path(place.source), Path(place.destination)
        return
    with TemporaryDirectory(prefix="bnfold-") as name:
        folders = [Path(name, part) for part in ("in", "out")]
        for folder in folders:
            folder.mkdir()
        try:
            here = fetch(place.source, folders[0]) if is_url(place.source) else Path(place.source)
            yield here, folders[1] / Path(place.name).name if is_url(place.destination) else Path(place.destination)
        except BnfoldError as error:
            said = [str(error), error.hint]
            for folder, url in zip(folders, urls, strict=True):
                said = [text.replace(str(folder), url.rpartition("/")[0]) for text in said]
            raise type(error)(said[0], hint=said[1]) from error


def _named(report: "Report", place: Place) -> "Report":
    """A report in which the files are called as they were given."""

    def called(file: "FileInfo | None", path: str) -> "FileInfo | None":
        return None if file is None else replace(file, path=path)

    return replace(report, input=called(report.input, place.source), output=called(report.output, place.destination))


def _write_page(report: "Report", page: Path) -> tuple[str, ...]:
    from bnfold.report.page import write_page

    make_folder(page.parent)
    return tuple(write_page(report, page))


def _described(value: object) -> object:
    """An option of a verification as a JSON value: arrays by their hash."""
    import hashlib

    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): _described(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    return str(value)
