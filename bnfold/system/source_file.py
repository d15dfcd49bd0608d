"""A file that tensors are read from, pinned to the state in which it was first seen."""

import os
import stat
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from bnfold.errors import ModelLoadError, perhaps


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as it was when it was first looked at; opened for each use, so that no handle is held.

    Attributes:
        path: Where it is, absolute.
        size: Its length in bytes.
    """

    path: Path
    size: int
    _identity: tuple[int, ...]

    @staticmethod
    def at(path: Path) -> "SourceFile":
        """Look at a file.

        Raises:
            ModelLoadError: It does not exist, is not a regular file, or is out of reach.
        """
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise ModelLoadError(f"{path} does not exist.", hint=_neighbour(path)) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ModelLoadError(f"{path} cannot be read: {reason_of(error)}.") from error
        if stat.S_ISDIR(status.st_mode):
            raise ModelLoadError(f"{path} is a folder, not a file.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path} is not a regular file.")
        return SourceFile(path, status.st_size, _identity(status))

    def open(self) -> "OpenedFile":
        """Open it for reading.

        Raises:
            ModelLoadError: It cannot be read, or is no longer the file that it was.
        """
        try:
            handle = self.path.open("rb", buffering=0)
        except OSError as error:
            raise ModelLoadError(f"{self.path} cannot be read: {reason_of(error)}.") from error
        opened = OpenedFile(self, handle)
        try:
            opened.require_unchanged()
        except ModelLoadError:
            opened.close()
            raise
        return opened

    def is_at(self, descriptor: int) -> bool:
        """Whether an open file is the one that was looked at, and nobody has written to it since."""
        return _identity(os.fstat(descriptor)) == self._identity


class OpenedFile:
    """A source file open for reading; a `wire.Source`, and a context manager that wants it unchanged at its end."""

    def __init__(self, file: SourceFile, handle: FileIO) -> None:
        self._file = file
        self._handle = handle

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._file.size

    def fileno(self) -> int:
        """Its descriptor."""
        return self._handle.fileno()

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`.

        Raises:
            ModelLoadError: The file ends too early or cannot be read.
        """
        try:
            self._handle.seek(start)
            data = self._handle.read(stop - start)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) == stop - start:
            return data
        if not data:
            raise self._too_short(start)
        return data + self.read(start + len(data), stop)  # the system reads at most 2 GiB at once

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view`, a view of bytes, from `offset` on.

        Raises:
            ModelLoadError: The file ends too early or cannot be read.
        """
        try:
            self._handle.seek(offset)
            while view:
                count = self._handle.readinto(view)
                if not count:
                    raise self._too_short(offset)
                offset += count
                view = view[count:]
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> ModelLoadError:
        return ModelLoadError(f"{self._file.path} cannot be read: {reason_of(error)}.")

    def _too_short(self, offset: int) -> ModelLoadError:
        return ModelLoadError(f"{self._file.path} ends at byte {offset}, too early.")

    def require_unchanged(self) -> None:
        """Require that nobody has written to it since it was first looked at.

        Raises:
            ModelLoadError: Somebody has.
        """
        if not self._file.is_at(self._handle.fileno()):
            raise ModelLoadError(f"{self._file.path} has changed since it was loaded.", hint="Load the model again.")

    def close(self) -> None:
        """Close it."""
        self._handle.close()

    def __enter__(self) -> "OpenedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.require_unchanged()
        finally:
            self.close()


def reason_of(error: OSError | ValueError) -> str:
    """The system's words for what went wrong."""
    return getattr(error, "strerror", None) or str(error)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is another one or was written to; its time of change no program can set back."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _neighbour(path: Path) -> str:
    """The file in the same folder that may have been meant."""
    try:
        return perhaps(path.name, [entry.name for entry in os.scandir(path.parent) if entry.is_file()])
    except OSError:
        return f"There is no folder {path.parent}."
