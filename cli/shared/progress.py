"""What is being done, on a terminal, where it takes more than a second; nowhere else."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, TextIO, cast

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
    line = _Line(sys.stderr)
    try:
        with heard_by(line.tell), redirect_stderr(cast(TextIO, _Above(line, sys.stderr))):
            yield
    finally:
        line.close()


class _Line:
    """One line that comes after a second, and goes at the end.

    Args:
        terminal: Where it is shown.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._words = "loading"
        self._since = time.monotonic()
        self._above = ""
        self._lock = threading.Lock()
        self._display: Display | None = None
        self._timer = threading.Timer(PATIENCE_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, words: str) -> None:
        with self._lock:
            self._words = words
            if self._display is not None:
                self._display.update(self._display.task_ids[0], description=_cut(words, self._display.console.width))

    def write(self, text: str) -> int:
        """Prints to the terminal: above the line, if it is there, and then each line of the text once it is whole."""
        with self._lock:
            if self._display is None:
                return self._terminal.write(text)
            whole, end, rest = (self._above + text).rpartition("\n")
            self._above = rest
            if end:
                self._display.console.out(whole, highlight=False)
            return len(text)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._display is not None:
                self._display.stop()
                self._terminal.write(self._above)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as Display
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            console = Console(file=self._terminal)
            self._display = Display(
                *(SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                get_time=time.monotonic,
            )
            self._display.add_task(_cut(self._words, console.width), start=False)
            self._display.tasks[0].start_time = self._since
            self._display.start()


def _cut(words: str, width: int) -> str:
    """Words that fit on a line of some width, beside the rest of it and what a terminal echoes of Ctrl-C.

    Of such as "running the original, sample 1 of 4" the count stays.
    """
    room = max(1, width - len("* 0:00:00 ^C"))
    if len(words) <= room:
        return words
    count = words[words.rfind(",") :] if "," in words else ""
    end = f"…{count}"
    return f"{words[: room - len(end)]}{end}" if len(end) < room else f"{words[: room - 1]}…"


class _Above:
    """A terminal with a line on it that changes: what is written goes above that.

    Args:
        line: The line.
        terminal: The terminal, which does all else.
    """

    def __init__(self, line: _Line, terminal: TextIO) -> None:
        self.write = line.write
        self._terminal = terminal

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)
