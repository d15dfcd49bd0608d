"""`python -m bnfold`, and the installed command: imports the command line with an eye on Ctrl-C."""

import sys


def main() -> None:
    """Runs the command line; an interruption leaves no traceback, even while it is being imported."""
    try:
        from bnfold.cli import main as run  # type: ignore[import-not-found]  # its files are in cli/

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; no file was left half written.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
