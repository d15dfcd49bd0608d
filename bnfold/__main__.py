"""`python -m bnfold`, and the installed command: imports the command line with an eye on Ctrl-C."""

import atexit
import contextlib
import gc
import os
import sys
import threading

_COLLECTED_AFTER = 20_000
"""Objects before Python looks for cycles: after 700, as usual, is a tenth of the time of a fold, and finds none."""


def main() -> None:
    """Runs the command line; an interruption leaves no traceback, even while it is being imported."""
    gc.set_threshold(_COLLECTED_AFTER, *gc.get_threshold()[1:])
    try:
        from bnfold.cli import main as run  # type: ignore[import-not-found]  # its files are in cli/

        try:
            run()
        except SystemExit as leaving:
            if "torch" in sys.modules:
                _leave_at_once(leaving.code)
            raise
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; no file was left half written.\n")
        sys.exit(130)


def _leave_at_once(code: object) -> None:
    """Leaves as Python does, but frees no objects: those of torch take a second, which the system does at once.

    Args:
        code: The exit code.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an end without hurry does
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # what cannot be written any more is for Python itself to tell
        sys.stdout.flush()
        sys.stderr.flush()
        if code is None or isinstance(code, int):
            os._exit(code or 0)


if __name__ == "__main__":
    main()
