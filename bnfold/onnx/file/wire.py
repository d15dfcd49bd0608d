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
        """A buffer, and which position of the source it begins with; a header follows unless the source ends."""
        index = position - self._base
        if index < 0 or index + _HEADER > len(self._data):
            self._base = position
            self._data = self._source.read(position, min(position + _WINDOW, self.size))
        return self._data, self._base

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        if self._base <= start and stop <= self._base + len(self._data):
            return self._data[start - self._base : stop - self._base]
        return self._source.read(start, stop)


class Span(NamedTuple):
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


_Run = tuple[int, int, int, int, int]


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
    return [Span(0, source.size)] if edited is None else edited[0]


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

    def message(self, kind: Kind, start: int, stop: int, depth: int) -> tuple[list[Piece], int] | None:
        """The message rewritten, and the number of its bytes; None if nothing in it changed."""
        if depth > _DEPTH_LIMIT:
            raise WireError(f"its messages are nested deeper than {_DEPTH_LIMIT}")
        pieces: list[Piece] = []
        nbytes = 0
        kept = start
        for number, at, value, end, child in self._children(kind, start, stop):
            edited = (
                self._tensor(WireTensor(child, self._tensor_fields(value, end), self._window))
                if child in _TENSORS
                else self.message(child, value, end, depth + 1)
            )
            if edited is None:
                continue
            if kept < at:
                pieces.append(Span(kept, at))
            before = header(number, edited[1])
            pieces.append(before)
            pieces += edited[0]
            nbytes += at - kept + len(before) + edited[1]
            kept = end
        if not pieces:
            return None
        if kept < stop:
            pieces.append(Span(kept, stop))
        return pieces, nbytes + stop - kept

    def _tensor(self, tensor: WireTensor) -> tuple[list[Piece], int] | None:
        edited = self._replace(tensor)
        return None if edited is None else (edited, length_of(edited))

    def _children(self, kind: Kind, start: int, stop: int) -> Iterator[tuple[int, int, int, int, Kind]]:
        """The wanted fields of a message that are, or lead to, a tensor: number, start, value, stop, kind."""
        children, wanted = _CHILDREN[kind], self._wanted
        fields: Iterable[_Run] = self._fields(start, stop)
        if kind is Kind.ATTRIBUTE:
            fields = list(fields)
            if sum(number == _SINGULAR_TENSOR for number, *_ in fields) > 1:
                fields = [field for field in fields if field[0] != _SINGULAR_TENSOR]
        for number, wire_type, at, value, end in fields:
            child = children.get(number)
            if child is not None and wire_type == LENGTH_DELIMITED and wanted(value, end):
                yield number, at, value, end, child

    def _tensor_fields(self, start: int, stop: int) -> list[Field]:
        """The fields of a tensor, in which a run of elements counts as one."""
        fields: list[Field] = []
        for run in self._fields(start, stop):
            if fields and run[0] in _LISTS and fields[-1].number == run[0]:
                fields[-1] = fields[-1]._replace(stop=run[4])
            else:
                fields.append(Field(*run))
        return fields

    def _fields(self, start: int, stop: int) -> Iterator[_Run]:
        """What the fields of a message are made of, as of `Field`."""
        position = start
        data, base, sure = b"", 0, 0  # a header that begins before `sure` lies in the buffer
        while position < stop:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise WireError("it consists of tiny fields, more than any model has")
            if not base <= position < sure:
                data, base = self._window.at(position)
                sure = base + len(data) - _HEADER
            index = position - base
            if position < sure and data[index] & 0x87 == LENGTH_DELIMITED and data[index + 1] < 0x80:
                tag, length, value = data[index], data[index + 1], position + 2  # most fields by far
            else:
                tag, value = self._varint(position, stop, 5)
                length, value = self._varint(value, stop, 5) if tag & 7 == LENGTH_DELIMITED else (0, value)
            number, wire_type = tag >> 3, tag & 7
            if number == 0 or tag > 0xFFFFFFFF:
                raise WireError(f"the field at byte {position} has no valid number")
            end = (
                value + length if wire_type == LENGTH_DELIMITED else self._number_end(wire_type, position, value, stop)
            )
            if end > stop:
                raise WireError(f"the field at byte {position} ends {end - stop} bytes after what holds it")
            yield number, wire_type, position, value, end
            position = end

    def _number_end(self, wire_type: int, position: int, value: int, stop: int) -> int:
        """Where a number ends that is the value of the field at `position`."""
        if wire_type == VARINT:
            return self._varint(value, stop, 10)[1]
        if wire_type == FIXED32:
            return value + 4
        if wire_type == FIXED64:
            return value + 8
        raise WireError(f"the field at byte {position} has wire type {wire_type}, which ONNX never uses")

    def _varint(self, position: int, stop: int, longest: int) -> tuple[int, int]:
        """The varint at `position`, and the position after it."""
        data, base = self._window.at(position)
        index = position - base
        if position < stop and data[index] < 0x80:
            return data[index], position + 1
        value = shift = 0
        for byte in data[index : index + min(longest, stop - position)]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, position + shift // 7
        raise WireError(f"the number at byte {position} does not end")
