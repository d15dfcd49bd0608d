"""All that the commands print: results to stdout, progress and warnings to stderr.

What a terminal would take for a command is escaped.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

import typer

from bnfold.errors import OutputError
from bnfold.text.printable import printable, printable_json
from bnfold.text.tables import Block, as_text

_CLOSED_PIPE_EXIT_CODE = 141  # what a shell shows of a program that the closing of its pipe has ended
_DESCRIPTORS = (0, 1, 2)
_COLOURS = {"pass": typer.colors.GREEN, "fail": typer.colors.RED}


def say(lines: Iterable[str]) -> None:
    """Prints lines to stdout.

    Raises:
        OutputError: They cannot be printed.
    """
    _print("\n".join(map(printable, lines)))


def say_blocks(blocks: Iterable[Block], verdict: str = "") -> None:
    """Prints lines and tables to stdout, the first line in the colour of a verdict; see `say`."""
    first, _, rest = as_text(blocks).partition("\n")
    if verdict and not os.environ.get("NO_COLOR"):
        first = typer.style(first, fg=_COLOURS.get(verdict, typer.colors.YELLOW), bold=True)
    _print(f"{first}\n{rest}" if rest else first)


def say_json(document: str) -> None:
    """Prints a JSON document to stdout; see `say`."""
    _print(printable_json(document))


def tell(line: str) -> None:
    """Prints a line to stderr, if there is one."""
    with suppress(OSError):
        typer.echo(printable(line), err=True)


def require_descriptors() -> None:
    """Opens what a caller has closed of stdin, stdout and stderr: the next file would take its place."""
    for descriptor in _DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _print(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        sys.stdout = _nowhere()
        sys.exit(_CLOSED_PIPE_EXIT_CODE)
    except OSError as error:
        sys.stdout = _nowhere()
        raise OutputError(f"stdout cannot be written to: {error.strerror}") from error


def _nowhere() -> TextIO:
    """A stream for what cannot be shown, what is left in a buffer at the end of the process included."""
    return open(os.devnull, "w")
