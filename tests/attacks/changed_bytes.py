"""Changes of files at random: of messages field by field, of archives entry by entry, of bytes."""

import contextlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, -3e38, float("inf"), float("nan"))
_BYTES = (b"", b"\0", b"\xff" * 8, b"A" * 300, b"\x1b[2J", b"../x", b"/etc/passwd", b"9" * 40, b"-1", b"1e3")
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_ENUM}


def bytes_of(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, set, cut out, doubled, put in or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), len(changed) - place)
        kind = rng.randrange(6)
        if kind == 0 and length:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        elif kind == 4:
            changed[place:place] = rng.choice(_BYTES)
        elif rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def model_of(data: bytes, rng: random.Random) -> bytes:
    """A model with other fields; one time in five just other bytes."""
    if rng.random() < 0.2:
        return bytes_of(data, rng)
    model: Message = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        messages = [*_messages(model)]
        words = [*_words(messages)]
        _change(rng.choice(messages), rng, words)
    return bytes(model.SerializeToString())


def archive_of(data: bytes, rng: random.Random) -> bytes:
    """A zip archive of which some entries are other ones, missing, doubled or renamed; one time in five other bytes."""
    if rng.random() < 0.2:
        return bytes_of(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(entries))
        name, content = entries[place]
        kind = rng.randrange(8)
        if kind < 5:
            entries[place] = name, json_of(content, rng) if name.endswith(".json") else bytes_of(content, rng)
        elif kind == 5 and len(entries) > 1:
            del entries[place]
        elif kind == 6:
            entries[place] = rng.choice([f"{name}x", f"../{name}", name.upper(), f"/{name}"]), content
        else:
            entries[place] = name, entries[rng.randrange(len(entries))][1]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in dict(entries).items():
            archive.writestr(name, content)
    return file.getvalue()


def safetensors_of(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header; one time in three other bytes."""
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json_of(data[8 : 8 + length], rng)
    told = len(header) if rng.random() < 0.9 else rng.choice(_NUMBERS) % 2**64
    return struct.pack("<Q", told) + header + data[8 + length :]


def json_of(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with other values in it; one time in five other bytes."""
    try:
        document = json.loads(data)
    except ValueError:
        return bytes_of(data, rng)
    if rng.random() < 0.2:
        return bytes_of(data, rng)
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        places += [(item, key) for key in keys]
        waiting += [item[key] for key in keys]
    if not places:
        return bytes_of(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        item, key = rng.choice(places)
        other, other_key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0 and isinstance(item, dict):
            item.pop(key, None)
        elif kind == 1:
            item[key] = rng.choice([*_NUMBERS, None, True, [], {}, "", "x" * 300, "__import__('os')", 1.5])
        elif isinstance(item, dict) or key < len(item):
            try:
                item[key] = json.loads(json.dumps(other[other_key]))
            except (KeyError, IndexError, ValueError, RecursionError):
                item[key] = None
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return data


def _messages(message: Message) -> Iterator[Message]:
    """A message and all those in it."""
    yield message
    for field, value in message.ListFields():
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for inner in value if hasattr(value, "extend") else [value]:
                yield from _messages(inner)


def _words(messages: list[Message]) -> Iterator[Any]:
    """All that is text, so that names can be put in the place of others."""
    for message in messages:
        for field, value in message.ListFields():
            if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                yield from value if hasattr(value, "extend") else [value]


def _change(message: Message, rng: random.Random, words: list[Any]) -> None:
    """Changes one field, mostly one that is there."""
    present = [field for field, _ in message.ListFields()]
    fields = present if present and rng.random() < 0.9 else [*message.DESCRIPTOR.fields]
    field = rng.choice(fields)
    value = getattr(message, field.name)
    if not hasattr(value, "extend"):
        if rng.random() < 0.15 or field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            with contextlib.suppress(ValueError):  # not every number is a member of an enumeration
                setattr(message, field.name, _other(field, value, rng, words))
        return
    items = [*value]
    kind = rng.randrange(4)
    if items and kind == 0:
        del items[rng.randrange(len(items))]
    elif items and kind == 1:
        items.insert(rng.randrange(len(items) + 1), rng.choice(items))
    elif items and kind == 2:
        rng.shuffle(items)
    elif field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        place = rng.randrange(len(items) + 1)
        items[place : place + 1] = [_other(field, items[place] if place < len(items) else None, rng, words)]
    copies = []
    for item in items:
        copy = item
        if isinstance(item, Message):
            copy = type(item)()
            copy.CopyFrom(item)
        copies.append(copy)
    message.ClearField(field.name)
    getattr(message, field.name).extend(copies)


def _other(field: FieldDescriptor, value: Any, rng: random.Random, words: list[Any]) -> Any:
    if field.cpp_type in _INTEGERS:
        number = rng.choice([*_NUMBERS, (value or 0) + 1, (value or 0) - 1, rng.randrange(64)])
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            return number % 2**31 if abs(number) >= 2**31 else number
        return number if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else (number + 2**31) % 2**32 - 2**31
    if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
        return rng.choice(_NUMBERS) % 2**32
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes_of(value or b"", rng)
    text = rng.choice([*words, *(item.decode("latin-1") for item in _BYTES)])
    return text if isinstance(text, str) else text.decode("latin-1")
