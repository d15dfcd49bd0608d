"""Writing a file piece by piece, each at its place, by two threads if it is large.

While one of them waits for the system to take the bytes of its piece, the other one computes those of another.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from bnfold.onnx.file import wire
from bnfold.onnx.file.tensors import FileRange
from bnfold.system.source_file import OpenedFile, SourceFile

_CHUNK_NBYTES = 1 << 18  # for more at once, systems look for large runs of memory, which takes longer than to write it
_COPIED_NBYTES = 1 << 26  # at once: the kernel is not interrupted
_SAMPLED_NBYTES = 1 << 20
_SAMPLE_NBYTES = 1 << 12
_WORTH_A_THREAD_NBYTES = 1 << 24

Parts = Callable[[wire.Piece], Iterable[bytes | memoryview]]
"""Gives the bytes of a piece in parts, of which each is good until the next is asked for."""


def write_pieces(path: Path, pieces: Iterable[tuple[int, wire.Piece]], nbytes: int, parts: Parts) -> list[bytes]:
    """Write a new file.

    Args:
        path: The file.
        pieces: What goes where; what lies between reads as zeros.
        nbytes: How large the file will be.
        parts: Gives the bytes of the pieces that are not parts of other files; it is called by several threads.

    Returns:
        For each piece a hash of samples from all over it.
    """
    path.open("xb").close()
    numbered, lock, over = enumerate(pieces), threading.Lock(), threading.Event()
    digests: dict[int, bytes] = {}

    def work() -> None:
        try:
            with Output(path) as output:
                while not over.is_set():
                    with lock:
                        number, (offset, piece) = next(numbered, (-1, (0, b"")))
                    if number < 0:
                        return
                    digests[number] = output.put(offset, piece, parts)
        finally:
            over.set()  # there is nothing left to be taken, or no use for it

    with ThreadPoolExecutor(max_workers=1) as pool:
        other = pool.submit(work) if nbytes >= _WORTH_A_THREAD_NBYTES else None
        work()
        if other is not None:
            other.result()
    return [digests[number] for number in range(len(digests))]


class Output:
    """A file that is written to; a context manager. It is not shared between threads: each has its own."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._source: tuple[SourceFile, OpenedFile] | None = None

    def put(self, offset: int, piece: wire.Piece, parts: Parts) -> bytes:
        """Write a piece, and give a hash of samples of it."""
        self._file.seek(offset)
        samples = hashlib.sha256()
        if isinstance(piece, FileRange):
            self._copy(piece)
            for start in (*range(0, piece.length, _SAMPLED_NBYTES), max(0, piece.length - _SAMPLE_NBYTES)):
                end = min(start + _SAMPLE_NBYTES, piece.length)
                samples.update(self._opened(piece.file).read(piece.offset + start, piece.offset + end))
        else:
            for part in parts(piece):
                for start in range(0, len(part), _SAMPLED_NBYTES):
                    samples.update(part[start : start + _SAMPLE_NBYTES])
                self._write_all(memoryview(part))
        self._begin_to_store(offset)
        return samples.digest()

    def _copy(self, run: FileRange) -> None:
        """Write a part of another file, without reading it where the system can do that."""
        source = self._opened(run.file)
        copied = _kernel_copy(source, self._file, run.offset, run.length)
        buffer = memoryview(bytearray(min(_CHUNK_NBYTES, run.length - copied)))
        while copied < run.length:
            part = buffer[: run.length - copied]
            source.read_into(run.offset + copied, part)
            self._write_all(part)
            copied += len(part)

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view[:_CHUNK_NBYTES]) :]

    def _begin_to_store(self, offset: int) -> None:
        """Let the system put on the disk now, beside the computations, what it would at the end make us wait for."""
        nbytes = self._file.tell() - offset
        if nbytes >= _SAMPLED_NBYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _opened(self, file: SourceFile) -> OpenedFile:
        """A handle on a source; only the latest is kept, for a model may have thousands of data files."""
        if self._source is None or self._source[0] != file:
            self._let_go(None)
            self._source = (file, file.open())
        return self._source[1]

    def _let_go(self, kind: type[BaseException] | None) -> None:
        source, self._source = self._source, None
        if source is not None:
            source[1].__exit__(kind)

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._let_go(kind)


def _kernel_copy(source: OpenedFile, target: IO[bytes], offset: int, length: int) -> int:
    """Write a range of one file to another inside the kernel; how many bytes that went for."""
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
