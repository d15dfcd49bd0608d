"""What writing a model of any format shares: a private folder beside the destination, and the checks before it.

What is written there is complete, and on the disk, before it is renamed; the folder goes whatever happens, and what a
killed process could not remove goes with the next run.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bnfold.errors import OutputError
from bnfold.system.locking import HeldByAnotherError, locked, take
from bnfold.system.source_file import reason_of

_PREFIX = ".bnfold-"
_PRIVATE = re.compile(re.escape(_PREFIX) + "[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Written:
    """What a commit put in place.

    Attributes:
        files: The files, absolute, the model itself first.
        notes: What a caller should know of them, as sentences without a full stop.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class Staged(Protocol):
    """A model written beside its destination.

    Attributes:
        path: The complete model, to be read and run but not changed.
        destination: Where `commit` puts it.
    """

    path: Path
    destination: Path

    def commit(self) -> Written:
        """Reads back what was written, and puts it in the place of the destination.

        Returns:
            The files that are there now.

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
    if os.path.exists(target) and any(os.path.exists(source) and source.samefile(target) for source in sources):
        raise OutputError(
            f"{target} is what the model was read from.",
            hint="Give another path, or --force to replace it.",
        )


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Make a folder beside a destination, for this process alone; it goes when the block is left, whatever happens.

    What killed processes have left of theirs goes as well: a lock tells the living from the dead.

    Raises:
        OutputError: The folder of the destination cannot be written to.
    """
    # A name that nobody else has, known before the folder is there: an interruption right behind mkdir removes it, too.
    folder, lock = parent / f"{_PREFIX}{secrets.token_hex(16)}", None
    try:
        try:
            with locked(parent) as has_locks:  # until it has its own lock, a folder looks abandoned
                if has_locks:
                    _remove_unlocked(parent)
                folder.mkdir(0o700)
                lock = take(folder)
        except OSError as error:
            raise OutputError(f"The folder {parent} cannot be written to: {reason_of(error)}.") from error
        yield folder
    finally:
        if lock is not None:
            os.close(lock)  # first: there may be no other descriptor for the removal
        _remove(folder)


def remove_abandoned(parent: Path) -> None:
    """Remove the private folders of processes that were killed, where locks tell them from those of the living.

    Raises:
        OSError: The folder cannot be read.
        OutputError: Another process has kept it for too long.
    """
    with locked(parent) as has_locks:
        if has_locks:
            _remove_unlocked(parent)


def _remove_unlocked(parent: Path) -> None:
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if _PRIVATE.fullmatch(entry.name)]
    for folder in found:
        try:
            lock = take(folder)
        except (OSError, HeldByAnotherError):
            continue
        if lock is not None:
            os.close(lock)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a private folder, with the one descriptor that may be left."""
    with suppress(OSError):
        for name in os.listdir(folder):
            (folder / name).unlink()
        folder.rmdir()
        return
    shutil.rmtree(folder, ignore_errors=True)


def replace_file(replacement: Path, destination: Path) -> list[str]:
    """Put a complete file in the place of another, if there is one, whose mode, owner and extended attributes it takes.

    The bytes of the file are on the disk before it gets its name, and the name is before this returns.

    Returns:
        What could not be kept or confirmed, as sentences without a full stop.

    Raises:
        OSError: It cannot be done; what was there is as it was.
    """
    notes = take_attributes(destination, replacement)
    flush(replacement)
    os.replace(replacement, destination)
    try:
        flush(destination.parent)
    except OSError as error:
        notes.append(f"{destination} is in place, but the disk has not confirmed it: {reason_of(error)}")
    return notes


def flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return  # not every system opens folders
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not every file system can
            raise
    finally:
        os.close(descriptor)


def take_attributes(existing: Path, replacement: Path) -> list[str]:
    """Give a file the mode, owner and extended attributes of the one that it will replace, if there is one.

    Returns:
        What could not be kept, as sentences without a full stop.
    """
    if not existing.exists():
        return []
    old, new, lost = existing.stat(), replacement.stat(), []
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.chown(replacement, old.st_uid, old.st_gid)
        except OSError:
            lost.append("owner")
    replacement.chmod(stat.S_IMODE(old.st_mode))
    for name in _extended_attributes(existing):
        try:
            os.setxattr(replacement, name, os.getxattr(existing, name))
        except OSError:
            lost.append(f"extended attribute {name}")
    if not lost:
        return []
    return [f"{existing} could not keep its {' and its '.join(lost)}"]


def _extended_attributes(path: Path) -> list[str]:
    """Those that belong to a file; the others belong to the system, which gives them to a new file as well."""
    if not hasattr(os, "listxattr"):
        return []
    try:
        names = os.listxattr(path)
    except OSError:
        return []
    return [name for name in names if name.startswith(("user.", "system."))]


def _one_of(suffixes: tuple[str, ...]) -> str:
    return ", ".join([*suffixes[:-2], " or ".join(suffixes[-2:])])
