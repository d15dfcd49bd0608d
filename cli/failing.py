"""How a command fails: one sentence on stderr and an exit code; with --json also a document on stdout."""

import json
import sys
from typing import NoReturn

import typer

from bnfold.errors import BnfoldError

from .shared.terminal import say_json, tell

SCHEMA = "bnfold.error/1"
USAGE_EXIT_CODE = 2

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's, or that of the copy of click in typer
NoWords: type[Exception] = typer.BadParameter.__mro__[1]


def fail(kind: str, message: str, hint: str, exit_code: int) -> NoReturn:
    """Says what is wrong, and ends the process.

    Args:
        kind: The class of the error.
        message: One sentence on what is wrong and where.
        hint: What to do about it; may be empty.
        exit_code: What the process ends with.
    """
    tell(f"error: {message.rstrip('.')}. {hint}".rstrip())
    if wants_json():
        document = {
            "schema": SCHEMA,
            "error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code},
        }
        say_json(json.dumps(document, indent=2, ensure_ascii=False))
    sys.exit(exit_code)


def fail_with(error: BnfoldError) -> NoReturn:
    """Ends the process with an error of bnfold's."""
    fail(type(error).__name__, str(error), error.hint, error.exit_code)


def fail_to_parse(error: Exception) -> NoReturn:
    """Ends the process with an error that was found in the words of the command line."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help() if context else "", err=True)
        sys.exit(USAGE_EXIT_CODE)
    message = str(error.format_message() if hasattr(error, "format_message") else error)
    sentence, _, more = message.partition("\n")
    command = context.command_path if context else "bnfold"
    hint = " ".join(filter(None, [" ".join(more.split()), f"See {command} --help."]))
    fail("UsageError", sentence.strip(), hint, USAGE_EXIT_CODE)


def wants_json() -> bool:
    """Whether --json is on the command line, which may be beyond parsing."""
    return "--json" in sys.argv[1:]
