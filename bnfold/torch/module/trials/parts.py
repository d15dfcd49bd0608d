"""What an argument has inside: items of dicts and lists, fields of dataclasses, of NamedTuples and of other objects."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial

from bnfold.torch.capture.returned_values import attributes


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of the things in a container.

    Attributes:
        name: As Python reads it from its container: "['mask']", "[0]" or ".mask".
        value: What it is.
        replaced: Makes a copy of the container with something else in its place.
        left_out: Makes a copy without it; None if there has to be something.
    """

    name: str
    value: object
    replaced: Callable[[object], object]
    left_out: Callable[[], object] | None = None


def parts(value: object) -> Iterator[Part]:
    """What there is in a container; nothing in a tensor or a number.

    Args:
        value: The container.
    """
    match value:
        case Mapping():
            for key, item in value.items():
                yield Part(f"[{key!r}]", item, partial(_with_item, value, key), partial(_without_item, value, key))
        case tuple() if hasattr(value, "_fields"):
            for name in value._fields:
                replaced = partial(_with_field, value, name)
                default = getattr(value, "_field_defaults", {}).get(name, MISSING)
                yield Part(f".{name}", getattr(value, name), replaced, _by_default(replaced, default))
        case list() | tuple():
            for index, item in enumerate(value):
                yield Part(f"[{index}]", item, partial(_with_element, value, index))
        case _ if is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                if hasattr(value, field.name):
                    replaced = partial(_with_attribute, value, field.name)
                    left_out = _by_default(replaced, field.default)
                    yield Part(f".{field.name}", getattr(value, field.name), replaced, left_out)
        case _:
            for name, item in attributes(value).items():
                yield Part(f".{name}", item, partial(_with_attribute, value, name))


def _by_default(replaced: Callable[[object], object], default: object) -> Callable[[], object] | None:
    return None if default is MISSING else partial(replaced, default)


def _with_item(container: Mapping[object, object], key: object, item: object) -> object:
    copied = copy.copy(container)
    copied[key] = item  # type: ignore[index]
    return copied


def _without_item(container: Mapping[object, object], key: object) -> object:
    copied = copy.copy(container)
    del copied[key]  # type: ignore[attr-defined]
    return copied


def _with_field(container: tuple[object, ...], name: str, item: object) -> object:
    return container._replace(**{name: item})  # type: ignore[attr-defined]


def _with_element(container: list[object] | tuple[object, ...], index: int, item: object) -> object:
    return type(container)([*container[:index], item, *container[index + 1 :]])


def _with_attribute(container: object, name: str, item: object) -> object:
    copied = copy.copy(container)
    object.__setattr__(copied, name, item)
    return copied
