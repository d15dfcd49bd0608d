"""Ropes over a serialized skeleton: references taken out of a model, and put back in."""

import bisect
from collections.abc import Callable, Iterable, Iterator

import onnx

from bnfold.errors import UnsupportedModelError
from bnfold.onnx.file import wire
from bnfold.onnx.file.external import ExternalFiles
from bnfold.onnx.file.tensors import LOCATION, Blob, FileRange, TensorStore, require_nbytes
from bnfold.system.source_file import SourceFile

BY_REFERENCE_NBYTES = 16384
"""Tensors with more raw data than this, in bytes, stay where they are; a reference to less costs more than a copy."""

# fields of TensorProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_DEFAULT_LOCATION = b"\x70\x00"

_SHAPE_DATA_NBYTES = 65536  # integer vectors up to this size may be shapes, which shape inference reads


def take_out(file: SourceFile, store: TensorStore) -> tuple[bytes, bool]:
    """A model without its large tensors.

    Returns:
        The serialized skeleton, and whether it may speak of external data.

    Raises:
        wire.WireError: The file is not a protobuf message.
        ModelLoadError: The raw data of a tensor does not fit its shape.
    """

    def elide(tensor: wire.WireTensor) -> list[wire.Piece] | None:
        raw = [field for field in tensor.fields if field.number == _RAW_DATA]
        if (
            len(raw) != 1
            or raw[0].wire_type != wire.LENGTH_DELIMITED
            or raw[0].stop - raw[0].value <= BY_REFERENCE_NBYTES
            or any(field.number == _EXTERNAL_DATA for field in tensor.fields)
            or tensor.kind is wire.Kind.SPARSE_PART
        ):
            return None  # protobuf's own reading of whatever this is counts
        location = tensor.bytes_of(_DATA_LOCATION)
        if location not in (b"", _DEFAULT_LOCATION):
            return None
        proto = _parsed(tensor.bytes_without(_RAW_DATA, _DATA_LOCATION))
        told = location != b""
        run = FileRange(file, raw[0].value, raw[0].stop - raw[0].value, explicit_location=told)
        require_nbytes(proto, run.length, str(file.path))
        store.refer(proto, run)
        return [proto.SerializeToString()]

    def wanted(start: int, stop: int) -> bool:
        return stop - start > BY_REFERENCE_NBYTES

    parts = []
    may_be_external = False
    with file.open() as source:
        pieces = wire.rewrite(source, wanted=wanted, replace=elide)
        if wire.length_of(pieces) > wire.LENGTH_LIMIT:
            raise wire.WireError("it has more than 2 GiB besides its weights")
        for piece in pieces:
            if isinstance(piece, wire.Span):
                part = source.read(piece.start, piece.stop)
                may_be_external = may_be_external or LOCATION.encode() in part
                parts.append(part)
            elif isinstance(piece, bytes):
                parts.append(piece)
    return b"".join(parts), may_be_external


def take_out_external(skeleton: bytes, files: ExternalFiles, store: TensorStore) -> tuple[bytes, bool]:
    """A skeleton whose tensors with external data are references too, and whether there were any.

    Raises:
        UnsafeModelError, ModelLoadError: See `ExternalFiles.range_of`.
        UnsupportedModelError: A sparse tensor has external data.
    """
    seen = False

    def refer(tensor: wire.WireTensor) -> list[wire.Piece] | None:
        nonlocal seen
        proto = _parsed(tensor.bytes_without())
        if proto.data_location != onnx.TensorProto.EXTERNAL or store.find(proto):
            return None
        if tensor.kind is wire.Kind.SPARSE_PART:
            raise UnsupportedModelError(f"{files.model_path}: a sparse tensor has external data.")
        run = files.range_of(proto)
        seen = True
        store.refer(proto, run)
        return [proto.SerializeToString()]

    return _edited(skeleton, [LOCATION], refer, store), seen


def put_back(
    skeleton: bytes, store: TensorStore, place: Callable[[wire.Kind, Blob], bytes | None] | None = None
) -> list[wire.Piece]:
    """The rope over a skeleton in which references are data again.

    Args:
        skeleton: The serialized skeleton.
        store: The store of its references.
        place: Gives the fields of TensorProto to write instead of the data of a reference, or None.
    """

    def fill(tensor: wire.WireTensor) -> list[wire.Piece] | None:
        blob = _blob(tensor, store)
        if blob is None:
            return None
        instead = place(tensor.kind, blob) if place else None
        data: list[wire.Piece] = [wire.header(_RAW_DATA, blob.length), blob] if instead is None else []
        told = _DEFAULT_LOCATION if blob.explicit_location else b""
        kept = [field for field in tensor.fields if field.number not in (_EXTERNAL_DATA, _DATA_LOCATION)]
        before = [wire.Span(field.start, field.stop) for field in kept if field.number < _RAW_DATA]
        after = [wire.Span(field.start, field.stop) for field in kept if field.number > _RAW_DATA]
        return [*before, *data, *after, told if instead is None else instead]

    return _rope(skeleton, store.prefixes, fill)


def for_inference(skeleton: bytes, store: TensorStore) -> bytes:
    """A skeleton for the onnx checker and shape inference: vectors that may be shapes have their values."""

    def restore(tensor: wire.WireTensor) -> list[wire.Piece] | None:
        blob = _blob(tensor, store)
        if blob is None or blob.length > _SHAPE_DATA_NBYTES:
            return None
        proto = _parsed(tensor.bytes_without())
        if len(proto.dims) > 1 or proto.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            return None
        proto.raw_data = bytes(store.content(blob))
        del proto.external_data[:]
        proto.ClearField("data_location")
        return [proto.SerializeToString()]

    return _edited(skeleton, store.prefixes, restore, store)


def piece_bytes(piece: wire.Piece, skeleton: bytes, store: TensorStore) -> bytes | memoryview:
    """The bytes of one piece of a rope over `skeleton`."""
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, wire.Span):
        return skeleton[piece.start : piece.stop]
    if isinstance(piece, Blob):
        return store.content(piece)
    raise TypeError(f"{type(piece).__name__} is no payload of a TensorStore")


def piece_parts(piece: wire.Piece, skeleton: bytes, store: TensorStore) -> Iterator[bytes | memoryview]:
    """The same bytes in parts, of which each is good until the next is asked for."""
    return store.parts(piece) if isinstance(piece, Blob) else iter([piece_bytes(piece, skeleton, store)])


def _edited(
    skeleton: bytes,
    needles: Iterable[str],
    replace: Callable[[wire.WireTensor], list[wire.Piece] | None],
    store: TensorStore,
) -> bytes:
    return b"".join(piece_bytes(piece, skeleton, store) for piece in _rope(skeleton, needles, replace))


def _rope(
    skeleton: bytes, needles: Iterable[str], replace: Callable[[wire.WireTensor], list[wire.Piece] | None]
) -> list[wire.Piece]:
    """Rewrite the tensors that contain one of the needles, and look at nothing else."""
    positions: list[int] = []
    for needle in needles:
        encoded = needle.encode()
        position = skeleton.find(encoded)
        while position >= 0:
            positions.append(position)
            position = skeleton.find(encoded, position + 1)
    positions.sort()

    def wanted(start: int, stop: int) -> bool:
        index = bisect.bisect_left(positions, start)
        return index < len(positions) and positions[index] < stop

    return wire.rewrite(wire.Memory(skeleton), wanted=wanted, replace=replace)


def _parsed(data: bytes) -> onnx.TensorProto:
    proto: onnx.TensorProto = onnx.TensorProto.FromString(data)
    return proto


def _blob(tensor: wire.WireTensor, store: TensorStore) -> Blob | None:
    return store.find(_parsed(tensor.bytes_of(_EXTERNAL_DATA, _DATA_LOCATION)))
