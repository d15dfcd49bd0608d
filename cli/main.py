"""The `bnfold` command: its sub-commands, and how errors become one sentence and an exit code.

Exit codes: 0 good; 1 the models differ, or an asked-for condition is not met; 2 usage; 3 the input; 4 the device;
5 the output; 70 a bug in bnfold.
"""

import sys
import traceback
from typing import Annotated

import typer

from bnfold.errors import BnfoldError
from bnfold.version import __version__

from .bench import bench
from .doctor import doctor
from .fold import fold
from .inspect import inspect
from .verify import verify

BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130

app = typer.Typer(
    name="bnfold",
    help="Fold inference-mode BatchNorm into the weights around it, and prove that the outputs still match.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(fold)
app.command()(inspect)
app.command()(verify)
app.command()(bench)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bnfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    try:
        app()
    except SystemExit as stop:  # typer makes one of an interruption, and says nothing
        if stop.code == INTERRUPTED_EXIT_CODE:
            typer.echo("interrupted; no file was left half written.", err=True)
        raise
    except BnfoldError as error:
        sentence = f"error: {str(error).rstrip('.')}."
        typer.echo(f"{sentence} {error.hint}".rstrip(), err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last door: whatever it is, it is our bug and gets exit code 70
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
        typer.echo(
            f"error: a bug in bnfold {__version__}: {type(error).__name__} at {place}: {error}. Nothing was written."
            " Please report it with this line and, if you can, the model.",
            err=True,
        )
        sys.exit(BUG_EXIT_CODE)
