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
from bnfold.printable import printable, printable_json

_CLOSED_PIPE_EXIT_CODE = 141  # what a shell shows of a program that the closing of its pipe has ended
_DESCRIPTORS = (0, 1, 2)


def say(lines: Iterable[str]) -> None:
    """Prints lines to stdout.

    Raises:
        OutputError: They cannot be printed.
    """
    _print("\n".join(map(printable, lines)))


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
