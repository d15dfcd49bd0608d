"""`bnfold fold --out-dir`: many files, with a line for each as it comes, and what it all came to."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnfold.errors import UsageError
from bnfold.files.records import FileOptions, FileOutcome, Status
from bnfold.text.tables import Table, size

from .shared.effects import typed
from .shared.terminal import say, say_blocks, say_json, tell

if TYPE_CHECKING:
    from rich.progress import Progress as Display

_ONLY_MANY = ("--jobs", "--recursive", "--resume")


@dataclass(frozen=True, slots=True)
class Batch:
    """Many files, as they were typed.

    Attributes:
        paths: Files and folders.
        out_dir: Where their folds go.
        jobs: How many at once.
        recursive: Whether folders are searched.
        page: Where a page about all of them goes.
    """

    paths: list[str]
    out_dir: str
    jobs: int
    recursive: bool
    page: Path | None


def require_one(context: typer.Context) -> None:
    """Raises UsageError if an option for many files was typed for one."""
    for option in _ONLY_MANY:
        if option in typed(context):
            raise UsageError(f"{option} is for many files, which need --out-dir", hint="Say which folder they go to.")


def fold_batch(batch: Batch, options: FileOptions, *, as_json: bool, quiet: bool) -> bool:
    """Folds many files, and tells of each; whether all of them came out well."""
    from bnfold.files.many import fold_files

    with _bar(shown=not quiet and sys.stderr.isatty()) as bar:

        def done(outcome: FileOutcome) -> None:
            with bar.paused():
                _tell(outcome, as_json=as_json, quiet=quiet)
            bar.advance()

        given = {item.name: getattr(options, item.name) for item in fields(options)}
        verification = given.pop("verification")
        outcomes = fold_files(
            batch.paths,
            batch.out_dir,
            jobs=batch.jobs,
            recursive=batch.recursive,
            page=batch.page,
            on_start=bar.start,
            on_done=done,
            **given,
            **verification,
        )
    if not as_json and not quiet:
        say_blocks(["", _summary(outcomes)])
    return all(outcome.status is not Status.FAILED for outcome in outcomes)


def _tell(outcome: FileOutcome, *, as_json: bool, quiet: bool) -> None:
    failed = outcome.status is Status.FAILED
    line = f"{outcome.status:6} {outcome.source}: {outcome.headline()}"
    if as_json:
        say_json(outcome.to_json())
    elif not quiet:
        say([f"{line} ({outcome.duration_s:.2f} s)"])
    elif failed:
        tell(line)
    for note in outcome.notes:
        tell(f"note: {outcome.source}: {note}")


def _summary(outcomes: list[FileOutcome]) -> Table:
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    written = [(report.input, report.output) for report in reports if report.input and report.output]
    left = sum(entry.batch_norms for report in reports for entry in report.left)
    counts = {status: sum(outcome.status is status for outcome in outcomes) for status in Status}
    rows = [("", "files")] + [(status.value, str(count)) for status, count in counts.items() if count]
    rows += [
        ("BatchNorms", f"{left + sum(report.batch_norms_folded for report in reports)} -> {left}"),
        ("size", " -> ".join(size(sum(pair[side].bytes for pair in written)) for side in (0, 1))),
    ]
    return rows


class _Bar:
    """How many files are done, on stderr; nothing where it is not shown."""

    def __init__(self, display: "Display | None") -> None:
        self._display = display

    def start(self, count: int) -> None:
        if self._display is not None:
            self._display.add_task("folding", total=count)
            self._display.start()

    def advance(self) -> None:
        if self._display is not None:
            self._display.advance(self._display.task_ids[0])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes it away while something else is printed to the terminal."""
        if self._display is not None:
            self._display.stop()
        yield
        if self._display is not None:
            self._display.start()


@contextmanager
def _bar(*, shown: bool) -> Iterator[_Bar]:
    if not shown:
        yield _Bar(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    display = Display(
        *columns,
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        yield _Bar(display)
    finally:
        display.stop()
