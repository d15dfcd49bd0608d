"""A file being written: pieces of a rope, or parts of other files that the kernel copies, hashed along the way."""

import errno
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from bnfold.onnx.file import wire
from bnfold.onnx.file.tensors import FileRange
from bnfold.system.source_file import OpenedFile, SourceFile

_CHUNK_NBYTES = 1 << 20
_COPIED_NBYTES = 1 << 26  # at once, so that the hash is not far behind


class Output:
    """A new file to which pieces of a rope are appended; a context manager.

    Args:
        path: Where it is made.
        hashed: Whether `sha256` will be asked for.
    """

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self._file = path.open("xb", buffering=0)
        self._source: tuple[SourceFile, OpenedFile] | None = None
        self._hash = _Hash(path) if hashed else None

    def write(self, piece: wire.Piece, content: bytes | memoryview) -> None:
        """Append one piece of a rope: part of another file, or these bytes."""
        if isinstance(piece, FileRange):
            self.copy(piece)
        else:
            self._write_all(memoryview(content))

    def copy(self, run: FileRange) -> None:
        """Append a part of another file, without reading it where the system can do that."""
        source = self._opened(run.file)
        copied = 0
        while copied < run.length:
            asked = min(_COPIED_NBYTES, run.length - copied)
            count = _kernel_copy(source, self._file, run.offset + copied, asked)
            copied += count
            self._follow()
            if count < asked:
                break
        buffer = memoryview(bytearray(min(_CHUNK_NBYTES, run.length - copied)))
        while copied < run.length:
            part = buffer[: run.length - copied]
            source.read_into(run.offset + copied, part)
            self._write_all(part)
            copied += len(part)

    def seek(self, offset: int) -> None:
        """Go on at `offset`; what lies between reads as zeros."""
        self._file.seek(offset)

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]
        self._follow()

    def _follow(self) -> None:
        if self._hash:
            self._hash.follow(self._file.tell())

    def sha256(self) -> str:
        """The hexadecimal digest of all that was written."""
        if self._hash is None:
            raise ValueError("the file was not opened to be hashed")
        return self._hash.hexdigest()

    def _opened(self, file: SourceFile) -> OpenedFile:
        """A handle on a source; only the latest is kept, for a model may have thousands of data files."""
        if self._source is None or self._source[0] != file:
            if self._source:
                self._source[1].close()
            self._source = None
            self._source = (file, file.open())
        return self._source[1]

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._source:
            self._source[1].close()
        if self._hash:
            self._hash.close()


class _Hash:
    """The hash of a file that grows, taken by a thread of its own from what the system still has in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._sum = hashlib.sha256()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._latest: Future[None] | None = None

    def follow(self, stop: int) -> None:
        """Go on to a byte before which everything has been written."""
        self._latest = self._worker.submit(self._read, stop)

    def hexdigest(self) -> str:
        """The digest of what it has followed."""
        if self._latest:
            self._latest.result()
        return self._sum.hexdigest()

    def _read(self, stop: int) -> None:
        buffer = memoryview(bytearray(_CHUNK_NBYTES))
        while (left := stop - self._file.tell()) > 0:
            count = self._file.readinto(buffer[:left])
            if not count:
                raise OSError(errno.EIO, "The file has become shorter")
            self._sum.update(buffer[:count])

    def close(self) -> None:
        """Stop, whether or not all was read."""
        self._worker.shutdown(cancel_futures=True)
        self._file.close()


def _kernel_copy(source: OpenedFile, target: IO[bytes], offset: int, length: int) -> int:
    """Append a range of one file to another inside the kernel; how many bytes that went for."""
    copied = 0
    if hasattr(os, "copy_file_range"):
        while copied < length:
            try:
                count = os.copy_file_range(source.fileno(), target.fileno(), length - copied, offset + copied)
            except OSError:
                break  # not between these file systems, or a true error, which plain writing meets again
            if count == 0:
                break
            copied += count
    return copied
