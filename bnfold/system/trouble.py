"""Exceptions that nobody raised on purpose, as errors of bnfold: what the machine is short of, and our own bugs."""

import errno
import os
import re
import traceback

from bnfold.errors import BnfoldError, ModelLoadError
from bnfold.version import __version__

_NO_MEMORY = re.compile("cannot allocate memory|failed to map segment|cannot map|bad_alloc", re.IGNORECASE)
_NO_THREAD = "can't start new thread"
_NO_FILES = re.compile("too many open files", re.IGNORECASE)


def lacks_arena(error: BaseException) -> bool:
    """Whether protobuf could not parse a message because there was no memory for it, which it says in words alone."""
    return type(error).__name__ == "DecodeError" and "Arena alloc failed" in str(error)


def explained(error: Exception) -> BnfoldError:
    """An exception as an error with a sentence; one of ours is itself."""
    if isinstance(error, BnfoldError):
        return error
    behind: BaseException | None = error
    while behind is not None:
        shortage = _shortage(behind)
        if shortage:
            return ModelLoadError(shortage)
        behind = behind.__cause__ or behind.__context__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return BnfoldError(
        f"a bug in bnfold {__version__}: {type(error).__name__} at {frame.filename}:{frame.lineno}: {error}",
        hint="No file was left half written. Please report it with this line and, if you can, the model.",
    )


def _shortage(error: BaseException) -> str:
    """What this process lacks, whatever model it works on; "" if an error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    is_import = isinstance(error, ImportError)  # of a library, which says what it lacks in words alone
    no_thread = isinstance(error, RuntimeError) and str(error) == _NO_THREAD  # no memory for its stack
    no_memory = isinstance(error, MemoryError) or number == errno.ENOMEM or no_thread or lacks_arena(error)
    if no_memory or (is_import and _NO_MEMORY.search(str(error))):
        return (
            "There is not enough memory for this. What is in use may be limited (ulimit -v), or the model is too large"
        )
    if number in (errno.EMFILE, errno.ENFILE) or (is_import and _NO_FILES.search(str(error))):
        return "Too many files are open. Allow more of them (ulimit -n)"
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except OSError:
            return "The current folder does not exist any more. Change to another one"
    return ""
