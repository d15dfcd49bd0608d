"""What writing a model of any format shares: a private folder beside the destination, and the checks before it.

What is written there is complete before it is renamed, and the folder goes whatever happens.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Protocol

from bnfold.errors import OutputError
from bnfold.source_file import reason_of


class Staged(Protocol):
    """A model written beside its destination.

    Attributes:
        path: The complete model, to be read and run but not changed.
        destination: Where `commit` puts it.
    """

    path: Path
    destination: Path

    def commit(self) -> None:
        """Reads back what was written, and puts it in the place of the destination.

        Raises:
            OutputError: That failed; the destination is as it was.
        """


def require_writable(destination: Path, suffixes: tuple[str, ...], model: str, *, hint: str = "") -> None:
    """Require that a model can go to a path.

    Args:
        destination: The path, absolute, links followed.
        suffixes: What it may end in, such as ".onnx".
        model: What the model is called in the message, such as "an ONNX model".
        hint: What to do about another extension, instead of giving one of those.

    Raises:
        OutputError: It cannot.
    """
    usual = (
        f"Give the path of {'an' if suffixes[0] == '.onnx' else 'a'} {_one_of(suffixes)} file in an existing folder."
    )
    require_file(destination, usual)
    if destination.suffix.lower() not in suffixes:
        raise OutputError(f"{destination} does not end in {_one_of(suffixes)}, where {model} goes.", hint=hint or usual)
    if not os.path.isdir(destination.parent):
        raise OutputError(f"The folder {destination.parent} does not exist.", hint="Create it first.")
    if os.path.exists(destination) and not os.access(destination, os.W_OK):
        raise OutputError(f"{destination} is write-protected.", hint="Change its mode, or give another path.")


def require_file(destination: Path, hint: str) -> None:
    """Require that what is in the way, if anything, is a file that can be replaced."""
    if os.path.isdir(destination):
        raise OutputError(f"{destination} is a folder.", hint=hint)
    if os.path.exists(destination) and not os.path.isfile(destination):
        raise OutputError(f"{destination} is not a regular file.", hint=hint)


def require_not_source(target: Path, sources: set[Path]) -> None:
    """Require that a file is none of those that the model was read from."""
    if target.exists() and any(source.exists() and source.samefile(target) for source in sources):
        raise OutputError(
            f"{target} is what the model was read from.",
            hint="Give another path, or --force to replace it.",
        )


def make_folder(destination: Path) -> Path:
    """Make a private folder beside a destination.

    Raises:
        OutputError: The folder of the destination cannot be written to.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=".bnfold-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"The folder {destination.parent} cannot be written to: {reason_of(error)}.") from error


def keep_mode(existing: Path, replacement: Path) -> None:
    """Give a file the mode of the one that it will replace, if there is one."""
    if existing.exists():
        replacement.chmod(stat.S_IMODE(existing.stat().st_mode))


def _one_of(suffixes: tuple[str, ...]) -> str:
    return ", ".join([*suffixes[:-2], " or ".join(suffixes[-2:])])
