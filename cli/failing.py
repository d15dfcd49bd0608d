"""How a command fails: one sentence on stderr and an exit code; with --json also a document on stdout."""

import json
import sys
from typing import NoReturn

import typer

from bnfold.errors import BnfoldError, UsageError
from bnfold.files.records import error_document

from .shared.terminal import say_json, tell

ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's, or that of the copy of click in typer
NoWords: type[Exception] = typer.BadParameter.__mro__[1]


def fail_with(error: BnfoldError) -> NoReturn:
    """Says what is wrong, and ends the process."""
    tell(f"error: {str(error).rstrip('.')}. {error.hint}".rstrip())
    if wants_json():
        say_json(json.dumps(error_document(error), indent=2, ensure_ascii=False))
    sys.exit(error.exit_code)


def fail_to_parse(error: Exception) -> NoReturn:
    """Ends the process with an error that was found in the words of the command line."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help() if context else "", err=True)
        sys.exit(UsageError.exit_code)
    message = str(error.format_message() if hasattr(error, "format_message") else error)
    sentence, _, more = message.partition("\n")
    command = context.command_path if context else "bnfold"
    hint = " ".join(filter(None, [" ".join(more.split()), f"See {command} --help."]))
    fail_with(UsageError(sentence.strip(), hint=hint))


def wants_json() -> bool:
    """Whether --json is on the command line, which may be beyond parsing."""
    return "--json" in sys.argv[1:]
