"""What a module returns: tensors in tuples, dicts, dataclasses and other objects, whether torch knows those or not."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor
from torch.utils import _pytree as pytree


def leaves(value: object) -> Iterator[object]:
    """Everything that is in a result and no container."""
    for leaf in pytree.tree_leaves(value):
        parts = _parts(leaf)
        if parts is None:
            yield leaf
        else:
            for part in parts.values():
                yield from leaves(part)


def plain(value: object) -> object:
    """A result in which dicts stand for the dataclasses that torch does not know."""

    def written_out(leaf: object) -> object:
        parts = _parts(leaf)
        return leaf if parts is None else {name: plain(part) for name, part in parts.items()}

    result: object = pytree.tree_map(written_out, value)
    return result


def _parts(leaf: object) -> Mapping[str, object] | None:
    """The fields of a dataclass; those that are left out of comparisons and copies as well."""
    if isinstance(leaf, Tensor) or not is_dataclass(leaf) or isinstance(leaf, type):
        return None
    return {field.name: getattr(leaf, field.name) for field in fields(leaf) if hasattr(leaf, field.name)}
