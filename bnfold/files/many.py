"""Many files at once, on any executor, or on processes of our own."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError, ModelLoadError, UsageError
from bnfold.files.naming import places, require_folder
from bnfold.files.one import fold_one
from bnfold.files.pool import in_processes, processors
from bnfold.files.records import FileOptions, FileOutcome, Request, Status
from bnfold.files.remote import is_url
from bnfold.system.staging import remove_abandoned

if TYPE_CHECKING:
    from bnfold.report.page.index import Entry

OnDone = Callable[[FileOutcome], None]


def fold_files(
    paths: "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]",
    out_dir: "str | os.PathLike[str]",
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    threads: int | None = None,
    recursive: bool = False,
    resume: bool = False,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    leftover: str = "conv",
    merge: bool = True,
    repair: bool = False,
    require_all: bool = False,
    verify: bool = True,
    force: bool = False,
    dry_run: bool = False,
    page: "str | os.PathLike[str] | None" = None,
    on_start: Callable[[int], None] | None = None,
    on_done: OnDone | None = None,
    **verification: object,
) -> list[FileOutcome]:
    """Folds many files: each is verified, put in place at once or not at all, and its report kept beside it.

    A file that fails does not keep the others from being folded.

    Args:
        paths: .onnx and .pt2 files; folders, with `recursive`. Any of them may be a URL of fsspec.
        out_dir: Where the folds go, under the names of their files; made if it is not there. It may be a URL.
        executor: Where the work is done: processes, a cluster, whatever has the interface. Its workers have to see the
            same files, and bnfold has to be installed there. A file whose worker died may be folded again, with the
            same result.
        jobs: Without an executor, how many processes of this machine fold at once.
        threads: How many threads the runtime has for each file; by default its own choice, or, for `jobs`, a fair part.
        recursive: Whether folders are searched, and those in them. Files then keep their places below the folder.
        resume: Leave what is there already, folded and verified by this version with the same options, and whose
            source is the same, by hashes of both.
        skip: As for `bnfold.fold`.
        only: As for `bnfold.fold`.
        leftover: As for `bnfold.fold`.
        merge: As for `bnfold.fold`.
        repair: As for `bnfold.fold`; for .onnx files.
        require_all: A file of which a BatchNorm is left fails, and is not written.
        verify: Whether a file is verified before it is put in place.
        force: Allow a file to be replaced by its own fold.
        dry_run: Write nothing.
        page: Also write a page (.html or .md) that lists all files, and one for each, in a folder
            of its name.
        on_start: Told how many files there are.
        on_done: Told of each file when it is done.
        **verification: Options of `bnfold.verify`, besides the models.

    Returns:
        What became of each file, in the order of `paths`.

    Raises:
        UsageError: Two files would go to one place, one that is to be folded would be replaced, or an argument is of
            the wrong kind.
        ModelLoadError: There is no file at all, or a folder cannot be read.
        OutputError: The output folder cannot be made, or the page not written.
    """
    if jobs < 1 or (executor is not None and jobs > 1):
        message = f"jobs is {jobs}, and not at least 1" if jobs < 1 else "jobs is for work without an executor"
        raise UsageError(message)
    given = [paths] if isinstance(paths, str | os.PathLike) else [*paths]
    found = places([os.fspath(path) for path in given], os.fspath(out_dir), recursive=recursive, force=force)
    index = None if page is None else _required_page(Path(page))
    if not dry_run:
        require_folder(os.fspath(out_dir))
    share = threads if threads is not None or jobs == 1 else max(1, processors() // jobs)
    options = FileOptions(
        *(tuple(skip), tuple(only), leftover, merge, repair, require_all, verify),
        verification=verification if share is None else {**verification, "threads": share},
        resume=resume,
        force=force,
        dry_run=dry_run,
    )
    requests = [Request(place, options, None if index is None else _page_of(index, place.name)) for place in found]
    if on_start is not None:
        on_start(len(requests))
    outcomes = {}
    try:
        with closing(_outcomes(requests, executor, jobs, share)) as coming:
            for outcome in coming:
                outcomes[outcome.name] = outcome
                if on_done is not None:
                    on_done(outcome)
    finally:
        for folder in {Path(place.destination).parent for place in found if not is_url(place.destination)}:
            with suppress(OSError, BnfoldError):
                remove_abandoned(folder)  # of workers that died
    done = [outcomes[place.name] for place in found]
    if index is not None:
        from bnfold.report.page.index import write_index

        write_index([_entry(outcome, index) for outcome in done], index)
    return done


def _outcomes(
    requests: Sequence[Request], executor: Executor | None, jobs: int, threads: int | None
) -> Generator[FileOutcome, None, None]:
    if executor is not None:
        yield from _by_executor(requests, executor)
    elif jobs == 1:
        yield from map(fold_one, requests)
    else:
        yield from in_processes([*requests], jobs, threads or 1, _lost)


def _by_executor(requests: Sequence[Request], executor: Executor) -> Iterator[FileOutcome]:
    futures = {executor.submit(fold_one, request): request for request in requests}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except Exception as error:  # noqa: BLE001 - whatever an executor says of a worker that died
                yield _lost(futures[future], f"{type(error).__name__} {error}".rstrip())
    finally:
        for future in futures:
            future.cancel()


def _lost(request: Request, reason: str) -> FileOutcome:
    """What is said of a file whose worker died, each time that it was tried."""
    place = request.place
    error = ModelLoadError(
        f"the process that folded {place.source} ended before it was done ({reason})",
        hint="It may have run out of memory; fold the file alone to see.",
    )
    return FileOutcome(place.source, place.destination, place.name, Status.FAILED, error=error)


def _required_page(page: Path) -> Path:
    from bnfold.report.page import require_page

    require_page(page)
    return page


def _page_of(index: Path, name: str) -> Path:
    """The page about one file: in a folder beside the index, below which it has the place of the file."""
    return index.with_suffix("") / f"{name}{index.suffix}"


def _entry(outcome: FileOutcome, index: Path) -> "Entry":
    from bnfold.report.page.index import Entry

    page = _page_of(index, outcome.name)
    return Entry(
        outcome.name,
        outcome.status.value,
        page.relative_to(index.parent).as_posix() if outcome.report is not None else "",
        outcome.report,
        "" if outcome.report is not None else outcome.headline(),
        outcome.duration_s,
    )
