"""Records as JSON values: numbers that are not finite become null, with a count beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeAlias, Union

JsonValue: TypeAlias = Union[bool, int, float, str, "list[JsonValue]", "dict[str, JsonValue]", None]

NONFINITE_COUNT_KEY = "nonfinite_values"


def to_json_value(value: object) -> JsonValue:
    """`value` as plain JSON data.

    A mapping or dataclass in which numbers had to become null gains the key "nonfinite_values": their
    count.

    Args:
        value: Dataclasses, mappings with string keys, sequences, strings, numbers, booleans and None, nested.

    Raises:
        TypeError: `value` holds something else.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)  # a StrEnum becomes its value
    if is_dataclass(value) and not isinstance(value, type):
        return _object({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, Sequence):
        return [to_json_value(item) for item in value]
    raise TypeError(f"a report cannot hold a {type(value).__name__}")


def _object(items: Mapping[str, object]) -> dict[str, JsonValue]:
    result = {str(key): to_json_value(item) for key, item in items.items()}
    nonfinite = sum(isinstance(item, float) and not math.isfinite(item) for item in items.values())
    if nonfinite:
        result[NONFINITE_COUNT_KEY] = nonfinite
    return result
