"""Writing an ONNX model: staged in a private folder beside the destination, verified there, then renamed.

Tensors that did not change are copied from file to file; deferred ones are computed one at a time.
"""

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import onnx

from bnfold.errors import BnfoldError, OutputError
from bnfold.onnx.file import skeleton, wire
from bnfold.onnx.file.load import OnnxModel, load
from bnfold.onnx.file.tensors import LOCATION, Blob, FileRange, TensorStore
from bnfold.source_file import OpenedFile, SourceFile, reason_of
from bnfold.staging import keep_mode, make_folder, require_file, require_not_source, require_writable

_CHUNK_NBYTES = 1 << 20
_PIECES_AHEAD = 3  # between two tensors lies a run of other bytes, so one or two tensors wait in memory
_PAGE_NBYTES = 4096  # large tensors start on a page, so that a runtime can map them
_SMALL_ALIGNMENT_NBYTES = 64


@dataclass(slots=True)
class Staged:
    """A model written beside its destination.

    Attributes:
        path: The complete model, to be read and run but not changed.
        destination: Where `commit` puts it.
    """

    path: Path
    destination: Path
    _data: Path | None
    _sizes: dict[Path, int]
    _counts: tuple[int, int]
    _backup: Path

    def commit(self) -> None:
        """Read back what was written, and put it in the place of the destination, external data first.

        Raises:
            OutputError: It does not read back as written, or cannot be renamed; the destination is as it was.
        """
        self._read_back()
        try:
            keep_mode(self.destination, self.path)
            if self._data:
                self._replace_both(self._data, self.destination.with_name(self._data.name))
            else:
                os.replace(self.path, self.destination)
        except OSError as error:
            kept = f" The old data file is {self._backup}." if self._backup.exists() else ""
            raise OutputError(
                f"{self.destination} cannot be replaced: {reason_of(error)}.{kept}",
                hint="Another program may have it open.",
            ) from error

    def _replace_both(self, data: Path, target: Path) -> None:
        """Move the data file and the model, or neither."""
        keep_mode(target, data)
        try:
            if target.exists():
                os.replace(target, self._backup)
            os.replace(data, target)
            os.replace(self.path, self.destination)
        except BaseException:
            if self._backup.exists():
                os.replace(self._backup, target)
            elif not data.exists():
                target.unlink(missing_ok=True)
            raise
        self._backup.unlink(missing_ok=True)

    def _read_back(self) -> None:
        try:
            sizes = {path: path.stat().st_size for path in self._sizes}
            graph = load(self.path).proto.graph
        except (OSError, BnfoldError) as error:
            raise OutputError(f"What was written for {self.destination} does not read back: {error}") from error
        if sizes != self._sizes or (len(graph.node), len(graph.initializer)) != self._counts:
            raise OutputError(
                f"What was written for {self.destination} does not read back as it was written.",
                hint="The disk may be full or failing.",
            )


def save(model: OnnxModel, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a model; see `stage`."""
    with stage(model, path, force=force) as staged:
        staged.commit()


@contextmanager
def stage(model: OnnxModel, path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Staged]:
    """Write a model into a temporary folder beside its destination, which goes when the block is left.

    A model that is as it was loaded is copied byte for byte. The weights of a model that came with external
    data, or that would not fit into one file, go to `<name>.onnx.data`.

    Args:
        model: The model.
        path: The destination, an .onnx file in an existing folder. A link is followed, a file replaced.
        force: Allow the destination to be one of the files that the model was read from.

    Raises:
        OutputError: The destination is not fit to be written, or writing failed.
        ModelLoadError: The files that hold the weights have changed or cannot be read.
    """
    destination = Path(os.path.realpath(path))
    require_writable(destination, (".onnx",), "an ONNX model")
    data_name = f"{destination.name}.data"
    if not force:
        sources = {file.path for file in model.store.files} | ({model.path} if model.path else set())
        for target in (destination, destination.with_name(data_name)):
            require_not_source(target, sources)
    folder = make_folder(destination)
    backup = folder / f"{data_name}.old"
    try:
        target = folder / destination.name
        try:
            sizes = _write(model, target, folder / data_name)
        except OSError as error:
            raise OutputError(f"{destination} cannot be written: {reason_of(error)}.") from error
        data = folder / data_name if folder / data_name in sizes else None
        if data:
            require_file(destination.with_name(data_name), "Move it away.")
        counts = len(model.proto.graph.node), len(model.proto.graph.initializer)
        yield Staged(target, destination, data, sizes, counts, backup)
    finally:
        if not backup.exists():  # it is there only if putting it back failed
            shutil.rmtree(folder, ignore_errors=True)


def _write(model: OnnxModel, target: Path, data: Path) -> dict[Path, int]:
    """Write the model, and its data file if it needs one; the paths written and their sizes in bytes."""
    file = model.unchanged_file
    if file:
        with _Output(target) as output:
            output.copy(FileRange(file, 0, file.size))
        return {target: file.size}
    serialized = model.proto.SerializeToString()
    pieces = skeleton.put_back(serialized, model.store)
    layout = _Layout(data.name)
    if model.has_external_data or wire.length_of(pieces) > wire.LENGTH_LIMIT:
        pieces = skeleton.put_back(serialized, model.store, layout.place)
    if wire.length_of(pieces) > wire.LENGTH_LIMIT:
        raise OutputError(
            "The model holds more than 2 GiB outside its initializers, which no ONNX file can.",
            hint="Turn its large Constant nodes into initializers.",
        )
    sizes = {target: wire.length_of(pieces)}
    with _Output(target) as output:
        for piece, content in _computed_ahead(pieces, serialized, model.store):
            output.write(piece, content)
    if layout.blobs:
        sizes[data] = layout.size
        blobs = [blob for _, blob in layout.blobs]
        with _Output(data) as output:
            for (offset, blob), (_, content) in zip(
                layout.blobs, _computed_ahead(blobs, serialized, model.store), strict=True
            ):
                output.seek(offset)
                output.write(blob, content)
    return sizes


def _computed_ahead(
    pieces: Iterable[wire.Piece], serialized: bytes, store: TensorStore
) -> Iterator[tuple[wire.Piece, bytes | memoryview]]:
    """Each piece of a rope with its bytes, which are computed while those before it are written.

    The bytes of a piece that is copied from a file are empty.
    """
    pending: deque[tuple[wire.Piece, Future[bytes | memoryview] | None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for piece in pieces:
            copied = isinstance(piece, FileRange)
            future = None if copied else worker.submit(skeleton.piece_bytes, piece, serialized, store)
            pending.append((piece, future))
            if len(pending) > _PIECES_AHEAD:
                ready, content = pending.popleft()
                yield ready, b"" if content is None else content.result()
        for ready, content in pending:
            yield ready, b"" if content is None else content.result()


class _Layout:
    """Which tensors go to the data file, and where."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size = 0
        self.blobs: list[tuple[int, Blob]] = []

    def place(self, kind: wire.Kind, blob: Blob) -> bytes | None:
        """The fields of a TensorProto that say where its data is, or None to keep it in the model."""
        if blob.length <= skeleton.BY_REFERENCE_NBYTES:
            return None
        if kind is not wire.Kind.INITIALIZER and not blob.external:
            return None
        alignment = _PAGE_NBYTES if blob.length >= _PAGE_NBYTES else _SMALL_ALIGNMENT_NBYTES
        offset = -(-self.size // alignment) * alignment
        self.blobs.append((offset, blob))
        self.size = offset + blob.length
        pointer = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in ((LOCATION, self._name), ("offset", offset), ("length", blob.length)):
            pointer.external_data.add(key=key, value=str(value))
        fields: bytes = pointer.SerializeToString()
        return fields


class _Output:
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

    def __enter__(self) -> "_Output":
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
                count = os.copy_file_range(source.fileno(), target.fileno(), length - copied, offset + copied)
            except OSError:
                break  # not between these file systems, or a true error, which plain writing meets again
            if count == 0:
                break
            copied += count
    return copied
