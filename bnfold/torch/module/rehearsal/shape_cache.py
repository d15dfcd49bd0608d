"""Results of torch's functions on tensors without values, remembered: most are computed in Python, and slowly.

A result is then a shape, strides, an element type and a device, and those of the arguments decide. So functions are
called once for each kind of arguments, unless they return one of their arguments or something that is no tensor.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Everything that there is to know of a tensor without values.

    Attributes:
        shape: Its sizes.
        strides: Its strides, in elements.
        offset: Where it begins in its memory.
        dtype: Its element type.
        device: Where it is, or would be.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "_Kind | None":
        """The kind of a tensor; None if there is more to it."""
        if type(tensor) not in (Tensor, torch.nn.Parameter, FakeTensor) or tensor.layout != torch.strided:
            return None
        if isinstance(tensor, FakeTensor) and tensor.constant is not None:
            return None
        offset = int(tensor.storage_offset())
        return cls(tuple(tensor.shape), tensor.stride(), offset, tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """Another tensor of this kind."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


class ShapeCache:
    """Calls functions, or knows what they return."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Kind] = {}

    def call(self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """What a function returns."""
        key = _key(function, args, kwargs)
        known = self._known.get(key) if key is not None else None
        if known is not None:
            return known.make()
        result = function(*args, **kwargs)
        if key is not None and type(result) in (Tensor, FakeTensor) and isinstance(result, Tensor):
            given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            kind = _Kind.of(result)
            plain = kind is not None and kind.offset == 0 and not result.requires_grad
            if kind is not None and plain and given and not any(result is leaf for leaf in given):
                self._known[key] = kind
        return result


def _key(function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> Hashable:
    """What a result depends on; None where that is not known."""
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    kinds: list[Hashable] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            kind = _Kind.of(leaf)
            if kind is None:
                return None
            kinds.append(kind)
        elif isinstance(leaf, _PLAIN):
            kinds.append((type(leaf), leaf))
        else:
            return None
    casts = tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES)
    return (function, structure, tuple(kinds), casts, torch.get_default_dtype())
