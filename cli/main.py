"""The `bnfold` command: its sub-commands, and how errors become one sentence and an exit code.

Exit codes: 0 good; 1 the models differ, or an asked-for condition is not met; 2 usage; 3 the input; 4 the device;
5 the output; 70 a bug in bnfold.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from bnfold.system.trouble import explained
from bnfold.version import __version__

from .bench import bench
from .doctor import doctor
from .failing import ClickError, fail_to_parse, fail_with
from .fold import fold
from .help import SETTINGS, Command, examples
from .inspect import inspect
from .settings import defaults
from .shared.terminal import require_descriptors, tell
from .verify import verify

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SIGNAL_EXIT_CODE = 128  # plus the number of the signal
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
INTERRUPTED_EXIT_CODE = _SIGNAL_EXIT_CODE + signal.SIGINT

app = typer.Typer(
    name="bnfold",
    help="Fold inference-mode BatchNorm into the weights around it, and prove that the outputs still match.",
    epilog=examples("bnfold fold model.onnx -o folded.onnx", "bnfold inspect model.onnx"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)


class _Working(Command):
    """A command that is about to work, when it has not been asked for help alone."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's, which typer has a copy of
        """Runs it."""
        _import_numpy()
        return super().invoke(ctx)


def _import_numpy() -> None:
    """Imports numpy without the threads of its BLAS: they take a fifth of a small fold, and nothing for them to do."""
    asked = _BLAS_THREADS in os.environ
    os.environ.setdefault(_BLAS_THREADS, "1")
    import numpy  # noqa: F401 - what reads the variable

    if not asked:
        del os.environ[_BLAS_THREADS]


def _add(command: Callable[..., None], *lines: str) -> None:
    app.command(cls=_Working, epilog=examples(*lines), context_settings=SETTINGS)(command)


_add(
    fold,
    "bnfold fold model.onnx -o folded.onnx",
    "bnfold fold torchvision.models:resnet18 --weights w.pth --input 1,3,224,224 -o folded.onnx",
)
_add(
    inspect,
    "bnfold inspect model.onnx",
    "bnfold inspect model.onnx --fail-on foldable    # in CI: a model that could still be folded",
)
_add(
    verify,
    "bnfold verify model.onnx folded.onnx",
    "bnfold verify model.onnx folded.onnx --inputs samples.npz --device cuda",
)
_add(
    bench,
    "bnfold bench model.onnx folded.onnx",
    "bnfold bench model.onnx folded.onnx --batch 1,8 --device cpu --threads 1",
)
_add(doctor, "bnfold doctor", "bnfold doctor --device cuda    # exit code 4 if it cannot be used")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bnfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    context.default_map = defaults(context, Path.cwd())


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    require_descriptors()
    received: list[int] = []

    def stop_as_ctrl_c_does(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup, for one, has SIGHUP ignored
            signal.signal(number, stop_as_ctrl_c_does)
    try:
        code = app(prog_name="bnfold", standalone_mode=False)
    except ClickError as error:
        fail_to_parse(error)
    except Exception as error:  # noqa: BLE001 - the last door: what the machine is not short of is our bug
        if not isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps it while a class is being made
            fail_with(explained(error))
        code = INTERRUPTED_EXIT_CODE
    if code == INTERRUPTED_EXIT_CODE:  # typer makes one of an interruption, and says nothing
        tell("interrupted; no file was left half written.")
        sys.exit(_SIGNAL_EXIT_CODE + received.pop() if received else INTERRUPTED_EXIT_CODE)
    sys.exit(code or 0)
