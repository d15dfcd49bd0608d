"""What a module is given, and what it returns: tensors in containers and objects, whether torch knows those or not."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.torch.capture.kept_state import is_plain_object

_Above = frozenset[int]
"""The objects that a value is in, by their ids: one that holds itself is followed once."""


def leaves(value: object, above: _Above = frozenset()) -> Iterator[object]:
    """Everything that is in a value and no container."""
    for leaf in pytree.tree_leaves(value):
        parts = _parts(leaf, above)
        if parts is None:
            yield leaf
        else:
            for part in parts.values():
                yield from leaves(part, above | {id(leaf)})


def with_tensors(value: object, change: Callable[[Tensor], Tensor], above: _Above = frozenset()) -> object:
    """A copy of a value with other tensors in it, in the order of `leaves`.

    Args:
        value: The value.
        change: Gives for each tensor the other one.
        above: The objects that it is in.
    """

    def changed(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            return change(leaf)
        parts = _parts(leaf, above)
        if not parts:
            return leaf
        copied = copy.copy(leaf)
        for name, part in parts.items():
            object.__setattr__(copied, name, with_tensors(part, change, above | {id(leaf)}))
        return copied

    result: object = pytree.tree_map(changed, value)
    return result


def plain(value: object, above: _Above = frozenset()) -> object:
    """A result in which dicts stand for the dataclasses, and other objects with tensors, that torch does not know."""

    def written_out(leaf: object) -> object:
        parts = _parts(leaf, above)
        return leaf if parts is None else {name: plain(part, above | {id(leaf)}) for name, part in parts.items()}

    result: object = pytree.tree_map(written_out, value)
    return result


def _parts(leaf: object, above: _Above) -> Mapping[str, object] | None:
    """All fields of a dataclass, and of another object what leads to tensors; None if it is neither."""
    if id(leaf) in above:
        return {}
    if is_dataclass(leaf) and not isinstance(leaf, Tensor | type):
        return {field.name: getattr(leaf, field.name) for field in fields(leaf) if hasattr(leaf, field.name)}
    inside = attributes(leaf).items()
    return {name: part for name, part in inside if _has_tensors(part, above | {id(leaf)})} or None


def attributes(value: object) -> dict[str, object]:
    """What a plain object holds, whether in its `__dict__` or in slots."""
    if not is_plain_object(value):
        return {}
    found = dict(object.__getattribute__(value, "__dict__")) if type(value).__dictoffset__ else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _has_tensors(value: object, above: _Above) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value, above))
