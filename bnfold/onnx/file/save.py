"""Writing an ONNX model: staged in a private folder beside the destination, verified there, then renamed.

Tensors that did not change are copied from file to file; deferred ones are computed one at a time.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from bnfold.errors import BnfoldError, OutputError
from bnfold.onnx.file import skeleton, wire
from bnfold.onnx.file.data_files import DIGEST_LENGTH, data_files, data_name, file_at, is_taken, remove_spent
from bnfold.onnx.file.load import OnnxModel, read_skeleton
from bnfold.onnx.file.output import write_pieces
from bnfold.onnx.file.tensors import LOCATION, Blob, FileRange, TensorStore
from bnfold.system.locking import locked
from bnfold.system.source_file import SourceFile, reason_of
from bnfold.system.staging import (
    Written,
    flush,
    private_folder,
    replace_file,
    require_not_source,
    require_writable,
    take_attributes,
)

_SMALLEST_EXTERNAL_NBYTES = 1024  # onnx's own
_SMALL_NBYTES = 1 << 14
_JOINED_NBYTES = 1 << 20
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
    _seen: SourceFile | None
    _sizes: dict[Path, int]
    _counts: tuple[int, int]

    def commit(self) -> Written:
        """Read back what was written, and put it in the place of the destination.

        The data file gets its name first, which nothing reads yet; the rename of the model is what changes the model at
        the destination, at once. The data that is then nobody's goes.

        Raises:
            OutputError: It does not read back as written, or cannot be renamed; the destination is as it was.
        """
        self._read_back()
        try:
            with locked(self.destination.parent) as has_locks:
                replaced = data_files(self.destination)
                files = [self.destination]
                notes = []
                if self._data:
                    data = self.destination.with_name(self._data.name)
                    files.append(data)
                    notes += self._replace_both(self._data, data)
                else:
                    notes += replace_file(self.path, self.destination)
                if has_locks:  # another process may otherwise be between its two renames
                    remove_spent(self.destination)
        except OSError as error:
            raise OutputError(
                f"{self.destination} cannot be replaced: {reason_of(error)}.",
                hint="Another program may have it open.",
            ) from error
        kept = [path for path in replaced if path not in files and path.exists()]
        notes += [f"{path}, the data of the model that was replaced, is still there" for path in kept]
        return Written(tuple(files), tuple(notes))

    def _replace_both(self, data: Path, target: Path) -> list[str]:
        """Put the data file and the model in place, or neither."""
        is_new = not target.exists()
        if file_at(target) != self._seen and is_taken(target, data):
            raise OutputError(f"Another process has just written other data to {target}.", hint="Try again.")
        take_attributes(self.destination, data)
        flush(data)
        try:
            os.replace(data, target)
            flush(target.parent)
            return replace_file(self.path, self.destination)
        except BaseException:
            if is_new and self.path.exists():
                target.unlink(missing_ok=True)
            raise

    def _read_back(self) -> None:
        try:
            sizes = {path: path.stat().st_size for path in self._sizes}
            graph = read_skeleton(SourceFile.at(self.path))[0].graph
        except (OSError, BnfoldError) as error:
            raise OutputError(f"What was written for {self.destination} does not read back: {error}") from error
        if sizes != self._sizes or (len(graph.node), len(graph.initializer)) != self._counts:
            raise OutputError(
                f"What was written for {self.destination} does not read back as it was written.",
                hint="The disk may be full or failing.",
            )


def save(model: OnnxModel, path: str | os.PathLike[str], *, force: bool = False) -> Written:
    """Write a model; see `stage`."""
    with stage(model, path, force=force) as staged:
        return staged.commit()


@contextmanager
def stage(model: OnnxModel, path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Staged]:
    """Write a model into a temporary folder beside its destination, which goes when the block is left.

    A model that is as it was loaded is copied byte for byte. The weights of a model that came with external
    data, or that would not fit into one file, go to a data file; see `data_files`.

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
    if not force:
        sources = {file.path for file in model.store.files} | ({model.path} if model.path else set())
        require_not_source(destination, sources)
    with private_folder(destination.parent) as folder:
        target = folder / destination.name
        try:
            sizes = _write(model, target, destination.parent)
        except OSError as error:
            raise OutputError(f"{destination} cannot be written: {reason_of(error)}.") from error
        data = next((path for path in sizes if path != target), None)
        seen = file_at(destination.with_name(data.name)) if data else None
        counts = len(model.proto.graph.node), len(model.proto.graph.initializer)
        yield Staged(target, destination, data, seen, sizes, counts)


def _write(model: OnnxModel, target: Path, place: Path) -> dict[Path, int]:
    """Write the model, and its data file beside it if it needs one.

    Args:
        model: The model.
        target: Where it is written.
        place: The folder that it goes to.

    Returns:
        The paths written and their sizes in bytes.
    """
    file = model.unchanged_file
    if file:
        write_pieces(target, [(0, FileRange(file, 0, file.size))], file.size, lambda _: ())
        return {target: file.size}
    serialized = model.proto.SerializeToString()
    pieces = skeleton.put_back(serialized, model.store)
    layout = None
    if model.has_external_data or wire.length_of(pieces) > wire.LENGTH_LIMIT:
        layout = _Layout(data_name(target.name, "0" * DIGEST_LENGTH))
        pieces = skeleton.put_back(serialized, model.store, layout.place)
    if wire.length_of(pieces) > wire.LENGTH_LIMIT:
        raise OutputError(
            "The model holds more than 2 GiB outside its initializers, which no ONNX file can.",
            hint="Turn its large Constant nodes into initializers.",
        )
    sizes = {target: wire.length_of(pieces)}
    if layout and layout.blobs:
        data = _write_data(layout, serialized, model.store, target, place)
        sizes[data] = layout.size
        pieces = skeleton.put_back(serialized, model.store, _Layout(data.name).place)
    placed = _placed(_joined(pieces, serialized, model.store))
    write_pieces(target, placed, sizes[target], lambda piece: skeleton.piece_parts(piece, serialized, model.store))
    return sizes


def _write_data(layout: "_Layout", serialized: bytes, store: TensorStore, target: Path, place: Path) -> Path:
    """Write the data file beside a model, and call it by its content; see `data_files`."""
    unnamed = target.with_name("data")
    digests = write_pieces(
        unnamed, layout.blobs, layout.size, lambda piece: skeleton.piece_parts(piece, serialized, store)
    )
    told = hashlib.sha256()
    for (offset, blob), digest in zip(layout.blobs, digests, strict=True):
        told.update(b"%d %d %b" % (offset, blob.length, digest))
    name = data_name(target.name, told.hexdigest())
    if is_taken(place / name, unnamed):
        with unnamed.open("rb") as data:
            name = data_name(target.name, hashlib.file_digest(data, "sha256").hexdigest())
    return unnamed.rename(target.with_name(name))


def _placed(pieces: Iterable[wire.Piece]) -> Iterator[tuple[int, wire.Piece]]:
    """The pieces of a rope with their places."""
    offset = 0
    for piece in pieces:
        yield offset, piece
        offset += wire.length_of([piece])


def _joined(pieces: Iterable[wire.Piece], serialized: bytes, store: TensorStore) -> Iterator[wire.Piece]:
    """The same rope with its small pieces put together, which a model of many nodes would wait for one by one."""
    small: list[bytes | memoryview] = []
    nbytes = 0
    for piece in pieces:
        length = wire.length_of([piece])
        is_small = length <= _SMALL_NBYTES and not isinstance(piece, FileRange)
        if is_small:
            small.append(skeleton.piece_bytes(piece, serialized, store))
            nbytes += length
        if small and (not is_small or nbytes > _JOINED_NBYTES):
            yield b"".join(small)
            small, nbytes = [], 0
        if not is_small:
            yield piece
    if small:
        yield b"".join(small)


class _Layout:
    """Which tensors go to the data file, and where."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size = 0
        self.blobs: list[tuple[int, Blob]] = []

    def place(self, kind: wire.Kind, blob: Blob) -> bytes | None:
        """The fields of a TensorProto that say where its data is, or None to keep it in the model."""
        if blob.length <= _SMALLEST_EXTERNAL_NBYTES:
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
