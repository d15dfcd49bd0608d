"""What is being done, on a terminal, where it takes more than a second; nowhere else."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bnfold.text.progress import heard_by

if TYPE_CHECKING:
    from rich.progress import Progress as Display

PATIENCE_S = 1.0


@contextmanager
def shown(*, quiet: bool) -> Iterator[None]:
    """Shows on stderr what begins while the block lasts, with the time since its beginning.

    Args:
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    line = _Line()
    try:
        with heard_by(line.tell):
            yield
    finally:
        line.close()


class _Line:
    """One line that comes after a second, and goes at the end."""

    def __init__(self) -> None:
        self._words = "loading"
        self._lock = threading.Lock()
        self._display: Display | None = None
        self._timer = threading.Timer(PATIENCE_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, words: str) -> None:
        with self._lock:
            self._words = words
            if self._display is not None:
                self._display.update(self._display.task_ids[0], description=words)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._display is not None:
                self._display.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Display
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            console = Console(file=sys.stderr)
            self._display = Display(
                *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._display.add_task(self._words)
            self._display.start()
