"""A report from the JSON that it was written as: for those that are kept beside the folded models."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from bnfold.report.report import SCHEMA, Report

_OTHER_NAMES = {"timings_s": "timings"}


def report_of(document: object) -> Report:
    """The report that `Report.to_dict` gave, with None for numbers that were not finite.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        message = f"this is no document of schema {SCHEMA}"
        raise ValueError(message)
    hints = typing.get_type_hints(Report)
    values: dict[str, Any] = {item.name: _read(document, item.name, hints[item.name]) for item in fields(Report)}
    return Report(**values)


def _read(document: Mapping[str, object], field: str, kind: object) -> object:
    name = _OTHER_NAMES.get(field, field)
    if name not in document:
        message = f"it has no {name}"
        raise ValueError(message)
    return _value(document[name], kind)


def _value(found: object, kind: object) -> object:
    """A JSON value as what a field of a record holds."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is object or (found is None and (kind is float or type(None) in inner)):
        return found
    if origin in (typing.Union, types.UnionType):
        return _value(found, next(part for part in inner if part is not type(None)))
    if origin is tuple and _is_list(found):
        parts = [inner[0]] * len(found) if inner[1:] == (...,) else inner
        return tuple(_value(item, part) for item, part in zip(found, parts, strict=True))
    if origin is not None and isinstance(found, Mapping):
        return {name: _value(item, inner[1]) for name, item in found.items()}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(found, Mapping):
        hints = typing.get_type_hints(kind)
        return kind(**{item.name: _read(found, item.name, hints[item.name]) for item in fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(found)
    if kind is float and isinstance(found, int):
        return float(found)
    if isinstance(kind, type) and isinstance(found, kind):
        return found
    message = f"{found!r} is no {kind}"
    raise ValueError(message)


def _is_list(found: object) -> typing.TypeGuard[Sequence[object]]:
    return isinstance(found, Sequence) and not isinstance(found, str)
