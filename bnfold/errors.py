"""What can go wrong, as a tree of exceptions.

BnfoldError                 exit code 70 (a bug in bnfold, if raised as such)
├── UsageError              2   the call contradicts itself or names something that is not there
├── ModelLoadError          3   the input is missing, truncated or not a model
├── UnsafeModelError        3   the input reaches for files or code outside itself
├── UnsupportedModelError   3   the input is a valid file that bnfold cannot work on
├── VerificationError       1   two models could not be compared
├── DeviceError             4   the requested device or runtime cannot be used
└── OutputError             5   the result cannot be written
"""

import difflib
from collections.abc import Iterable

from bnfold.text.printable import printable


class BnfoldError(Exception):
    """The base of every error that bnfold raises on purpose.

    Args:
        message: One sentence on what is wrong and where. Names in it may come from a file.
        hint: One sentence on what to do about it; may be empty.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(printable(message))
        self.hint = printable(hint)


class UsageError(BnfoldError, ValueError):
    """An argument is of the wrong form or names something that the model does not have."""

    exit_code = 2


class ModelLoadError(BnfoldError):
    """The input is missing, truncated or not a model."""

    exit_code = 3


class UnsafeModelError(BnfoldError):
    """Reading the input would read files or run code outside the model."""

    exit_code = 3


class UnsupportedModelError(BnfoldError):
    """The input is well formed, but nothing that bnfold can work on."""

    exit_code = 3


class VerificationError(BnfoldError):
    """The two models could not be compared, so nothing is proved."""

    exit_code = 1


class DeviceError(BnfoldError):
    """The requested device or runtime cannot be used."""

    exit_code = 4


class OutputError(BnfoldError):
    """The result cannot be written."""

    exit_code = 5


def perhaps(name: str, known: Iterable[str]) -> str:
    """A hint with the known names that a wrong one is nearest to; "" if none is near."""
    close = difflib.get_close_matches(name, list(known), n=2)
    return f"Perhaps {' or '.join(close)}?" if close else ""
