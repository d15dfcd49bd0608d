"""`python -m bnfold`, and the installed command: imports the command line with an eye on Ctrl-C."""

import gc
import sys

_COLLECTED_AFTER = 20_000
"""Objects before Python looks for cycles: after 700, as usual, is a tenth of the time of a fold, and finds none."""


def main() -> None:
    """Runs the command line; an interruption leaves no traceback, even while it is being imported."""
    gc.set_threshold(_COLLECTED_AFTER, *gc.get_threshold()[1:])
    try:
        from bnfold.cli import main as run  # type: ignore[import-not-found]  # its files are in cli/

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; no file was left half written.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
