"""The protobuf wire format of an ONNX model, edited without parsing its weights.

A ModelProto of 100 MB is a skeleton of some 100 KB and a few hundred runs of weight bytes. `rewrite` walks
the wire format (https://protobuf.dev/programming-guides/encoding/), descends only where a TensorProto can be,
hands each tensor to a callback and returns the edited message as a rope: a list of runs of the source, new
bytes, and payloads whose bytes are elsewhere. All enclosing length prefixes are computed anew. The reader
uses it to take the weights out, the writer to put them back in.

The source is not trusted: each field is visited once, and nothing larger than the source is allocated.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

LENGTH_LIMIT = 2**31 - 1
"""Protobuf's limit on a message, in bytes."""

_DEPTH_LIMIT = 100
_FREE_FIELDS = 2**20  # real models have a field for each node, initializer and value,
_FIELD_NBYTES = 4  # and for each word of a vocabulary: a tag, a length and some letters
_LISTS = frozenset({4, 5, 6, 7, 10, 11})  # the fields of a TensorProto that repeat for each element
_WINDOW = 8192
_HEADER = 20  # a tag takes at most 5 bytes, a varint value at most 10

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
FIXED32 = 5


class WireError(ValueError):
    """The bytes are not a protobuf message, or one that no honest writer would produce."""


class Source(Protocol):
    """Something with random access: a file or bytes in memory."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, both within the source."""


class Payload(Protocol):
    """Bytes that are produced when the rope is written."""

    @property
    def length(self) -> int:
        """The number of bytes that it will be."""


class Memory:
    """Bytes as a source."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._data)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        return self._data[start:stop]


class _Window:
    """A source with a small buffer, for reads that are mostly close together."""

    def __init__(self, source: Source) -> None:
        self.size = source.size
        self._source = source
        self._base = 0
        self._data = b""

    def at(self, position: int) -> tuple[bytes, int]:
        """A buffer, and where in it `position` is; a whole header follows unless the source ends."""
        index = position - self._base
        if index < 0 or index + _HEADER > len(self._data):
            self._base, index = position, 0
            self._data = self._source.read(position, min(position + _WINDOW, self.size))
        return self._data, index

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        if self._base <= start and stop <= self._base + len(self._data):
            return self._data[start - self._base : stop - self._base]
        return self._source.read(start, stop)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes of the source that the rope was made from."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start


Piece = bytes | Span | Payload


class Field(NamedTuple):
    """Where one field lies in the source: its tag at `start`, its value from `value` to `stop`."""

    number: int
    wire_type: int
    start: int
    value: int
    stop: int


class Kind(Enum):
    """The messages of onnx.proto on the way to a TensorProto; the last three are TensorProtos themselves."""

    MODEL = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    FUNCTION = auto()
    TRAINING = auto()
    SPARSE = auto()
    INITIALIZER = auto()
    ATTRIBUTE_TENSOR = auto()
    SPARSE_PART = auto()


_TENSORS = frozenset({Kind.INITIALIZER, Kind.ATTRIBUTE_TENSOR, Kind.SPARSE_PART})

_CHILDREN: dict[Kind, dict[int, Kind]] = {
    Kind.MODEL: {7: Kind.GRAPH, 20: Kind.TRAINING, 25: Kind.FUNCTION},
    Kind.TRAINING: {1: Kind.GRAPH, 2: Kind.GRAPH},
    Kind.GRAPH: {1: Kind.NODE, 5: Kind.INITIALIZER, 15: Kind.SPARSE},
    Kind.FUNCTION: {7: Kind.NODE, 11: Kind.ATTRIBUTE},
    Kind.NODE: {5: Kind.ATTRIBUTE},
    Kind.ATTRIBUTE: {
        5: Kind.ATTRIBUTE_TENSOR,
        6: Kind.GRAPH,
        10: Kind.ATTRIBUTE_TENSOR,
        11: Kind.GRAPH,
        22: Kind.SPARSE,
        23: Kind.SPARSE,
    },
    Kind.SPARSE: {1: Kind.SPARSE_PART, 2: Kind.SPARSE_PART},
}

_SINGULAR_TENSOR = 5  # AttributeProto.t: several are merged into one tensor, which is left to protobuf


@dataclass(frozen=True, slots=True)
class WireTensor:
    """One TensorProto of the source, as fields."""

    kind: Kind
    fields: list[Field]
    source: Source

    def bytes_of(self, *numbers: int) -> bytes:
        """The fields with these numbers, tags included."""
        return self._joined([field for field in self.fields if field.number in numbers])

    def bytes_without(self, *numbers: int) -> bytes:
        """All fields but those with these numbers, tags included."""
        return self._joined([field for field in self.fields if field.number not in numbers])

    def _joined(self, fields: list[Field]) -> bytes:
        return b"".join(self.source.read(field.start, field.stop) for field in fields)


def rewrite(
    source: Source,
    *,
    wanted: Callable[[int, int], bool],
    replace: Callable[[WireTensor], list[Piece] | None],
) -> list[Piece]:
    """Edit the tensors of a serialized ModelProto.

    Args:
        source: The ModelProto.
        wanted: Whether to look into the message that lies between two offsets of the source.
        replace: The new content of a tensor, or None to leave it alone.

    Returns:
        The edited message as a rope over `source`; a single Span if nothing changed.

    Raises:
        WireError: The source is malformed, or nested or fragmented beyond reason.
    """
    edited = _Walk(source, wanted, replace).message(Kind.MODEL, 0, source.size, 1)
    return [Span(0, source.size)] if edited is None else edited


def length_of(pieces: list[Piece]) -> int:
    """The number of bytes of a rope."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in pieces)


def varint(value: int) -> bytes:
    """The encoding of a non-negative integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(number: int, length: int) -> bytes:
    """The tag and length prefix of a length-delimited field."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(length)


class _Walk:
    def __init__(
        self,
        source: Source,
        wanted: Callable[[int, int], bool],
        replace: Callable[[WireTensor], list[Piece] | None],
    ) -> None:
        self._window = _Window(source)
        self._wanted = wanted
        self._replace = replace
        self._fields_left = _FREE_FIELDS + source.size // _FIELD_NBYTES

    def message(self, kind: Kind, start: int, stop: int, depth: int) -> list[Piece] | None:
        """The message rewritten, or None if nothing in it changed."""
        if depth > _DEPTH_LIMIT:
            raise WireError(f"its messages are nested deeper than {_DEPTH_LIMIT}")
        pieces: list[Piece] = []
        kept = start
        for field, child in self._children(kind, start, stop):
            if not self._wanted(field.value, field.stop):
                continue
            edited = (
                self._replace(WireTensor(child, self._tensor_fields(field.value, field.stop), self._window))
                if child in _TENSORS
                else self.message(child, field.value, field.stop, depth + 1)
            )
            if edited is None:
                continue
            if kept < field.start:
                pieces.append(Span(kept, field.start))
            pieces.append(header(field.number, length_of(edited)))
            pieces.extend(edited)
            kept = field.stop
        if not pieces:
            return None
        if kept < stop:
            pieces.append(Span(kept, stop))
        return pieces

    def _children(self, kind: Kind, start: int, stop: int) -> Iterator[tuple[Field, Kind]]:
        """The fields of a message that are, or lead to, a tensor."""
        children = _CHILDREN[kind]
        fields: Iterable[Field] = self._fields(start, stop)
        if kind is Kind.ATTRIBUTE:
            fields = list(fields)
            if sum(field.number == _SINGULAR_TENSOR for field in fields) > 1:
                fields = [field for field in fields if field.number != _SINGULAR_TENSOR]
        for field in fields:
            child = children.get(field.number)
            if child is not None and field.wire_type == LENGTH_DELIMITED:
                yield field, child

    def _tensor_fields(self, start: int, stop: int) -> list[Field]:
        """The fields of a tensor, in which a run of elements counts as one."""
        fields: list[Field] = []
        for field in self._fields(start, stop):
            if fields and field.number in _LISTS and fields[-1].number == field.number:
                fields[-1] = fields[-1]._replace(stop=field.stop)
            else:
                fields.append(field)
        return fields

    def _fields(self, start: int, stop: int) -> Iterator[Field]:
        position = start
        while position < stop:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise WireError("it consists of tiny fields, more than any model has")
            tag, value = self._varint(position, stop, 5)
            number, wire_type = tag >> 3, tag & 7
            if number == 0 or tag > 0xFFFFFFFF:
                raise WireError(f"the field at byte {position} has no valid number")
            if wire_type == LENGTH_DELIMITED:
                length, value = self._varint(value, stop, 5)
                end = value + length
            elif wire_type == VARINT:
                _, end = self._varint(value, stop, 10)
            elif wire_type == FIXED32:
                end = value + 4
            elif wire_type == FIXED64:
                end = value + 8
            else:
                raise WireError(f"the field at byte {position} has wire type {wire_type}, which ONNX never uses")
            if end > stop:
                raise WireError(f"the field at byte {position} ends {end - stop} bytes after what holds it")
            yield Field(number, wire_type, position, value, end)
            position = end

    def _varint(self, position: int, stop: int, longest: int) -> tuple[int, int]:
        """The varint at `position`, and the position after it."""
        data, index = self._window.at(position)
        if position < stop and data[index] < 0x80:
            return data[index], position + 1
        value = shift = 0
        for byte in data[index : index + min(longest, stop - position)]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, position + shift // 7
        raise WireError(f"the number at byte {position} does not end")
