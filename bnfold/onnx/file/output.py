"""A file being written: pieces of a rope, or parts of other files that the kernel copies."""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from bnfold.onnx.file import wire
from bnfold.onnx.file.tensors import FileRange
from bnfold.system.source_file import OpenedFile, SourceFile

_CHUNK_NBYTES = 1 << 20
_COPIED_NBYTES = 1 << 26  # at once: the kernel is not interrupted
_SAMPLE_NBYTES = 1 << 12


class Output:
    """A new file to which pieces of a rope are appended; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._source: tuple[SourceFile, OpenedFile] | None = None

    def write(self, piece: wire.Piece, content: bytes | memoryview) -> None:
        """Append one piece of a rope: part of another file, or these bytes."""
        if isinstance(piece, FileRange):
            self.copy(piece)
        else:
            self._write_all(memoryview(content))

    def copy(self, run: FileRange) -> None:
        """Append a part of another file, without reading it where the system can do that."""
        source = self._opened(run.file)
        copied = _kernel_copy(source, self._file, run.offset, run.length)
        buffer = memoryview(bytearray(min(_CHUNK_NBYTES, run.length - copied)))
        while copied < run.length:
            part = buffer[: run.length - copied]
            source.read_into(run.offset + copied, part)
            self._write_all(part)
            copied += len(part)

    def seek(self, offset: int) -> None:
        """Go on at `offset`; what lies between reads as zeros."""
        self._file.seek(offset)

    def digest(self, piece: wire.Piece, content: bytes | memoryview) -> bytes:
        """A hash of samples from all over one piece of a rope."""
        samples = hashlib.sha256()
        length = piece.length if isinstance(piece, FileRange) else len(content)
        for start in (*range(0, length, _CHUNK_NBYTES), max(0, length - _SAMPLE_NBYTES)):
            end = min(start + _SAMPLE_NBYTES, length)
            if isinstance(piece, FileRange):
                samples.update(self._opened(piece.file).read(piece.offset + start, piece.offset + end))
            else:
                samples.update(content[start:end])
        return samples.digest()

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]

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


def _kernel_copy(source: OpenedFile, target: IO[bytes], offset: int, length: int) -> int:
    """Append a range of one file to another inside the kernel; how many bytes that went for."""
    copied = 0
    if hasattr(os, "copy_file_range"):
        while copied < length:
            try:
                asked = min(_COPIED_NBYTES, length - copied)
                count = os.copy_file_range(source.fileno(), target.fileno(), asked, offset + copied)
            except OSError:
                break  # not between these file systems, or a true error, which plain writing meets again
            if count == 0:
                break
            copied += count
    return copied
