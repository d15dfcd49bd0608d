"""Exceptions that nobody raised on purpose, as errors of bnfold: what the machine is short of, and our own bugs."""

import errno
import os
import traceback

from bnfold.errors import BnfoldError, ModelLoadError
from bnfold.version import __version__


def explained(error: Exception) -> BnfoldError:
    """An exception as an error with a sentence; one of ours is itself."""
    if isinstance(error, BnfoldError):
        return error
    shortage = _shortage(error)
    if shortage:
        return ModelLoadError(shortage)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return BnfoldError(
        f"a bug in bnfold {__version__}: {type(error).__name__} at {frame.filename}:{frame.lineno}: {error}",
        hint="No file was left half written. Please report it with this line and, if you can, the model.",
    )


def _shortage(error: Exception) -> str:
    """What this process lacks, whatever model it works on; "" if an error is about something else."""
    if isinstance(error, MemoryError):
        return (
            "There is not enough memory for this. What is in use may be limited (ulimit -v), or the model is too large"
        )
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "Too many files are open. Allow more of them (ulimit -n)"
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except OSError:
            return "The current folder does not exist any more. Change to another one"
    return ""
