"""Other sizes that a module may be called with: an example with another batch, and with images of another size.

Values are those of the example, repeated or cut off. Which dimensions of an input may vary only its module knows, so
these are suggestions; what the module refuses is no size of its inputs.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.torch.capture.export import Arguments

_LARGE = 1 << 16
"""An input with more elements than that is not tried any larger: it would cost more than all the rest."""

Shapes = tuple[tuple[int, ...], ...]

_Sizes = Callable[[int, int], int]
"""What becomes of a size, and of its distance from the last axis."""


def smaller(arguments: Arguments) -> Iterator[Arguments]:
    """Calls like an example with smaller images, those with another batch first: odd sizes, then halves."""
    for batch, sizes, axes in product((_other(arguments), None), (_smaller, _half), _AXES):
        yield _resized(arguments, batch, axes, sizes)


def larger(arguments: Arguments) -> Iterator[Arguments]:
    """The same with larger images, unless they are large already: odd sizes, then doubles."""
    if max((tensor.numel() for tensor in _tensors(arguments)), default=0) <= _LARGE:
        for batch, sizes, axes in product((2 * _batch(arguments) + 1, None), (_larger, _double), _AXES):
            yield _resized(arguments, batch, axes, sizes)


def other_batch(arguments: Arguments) -> Iterator[Arguments]:
    """Calls like an example with another batch alone."""
    for batch in (_other(arguments), 2 * _batch(arguments)):
        yield _resized(arguments, batch)


def has_batch_of(arguments: Arguments, example: Arguments) -> bool:
    """Whether a call has a batch of the same size as another."""
    return _batch(arguments) == _batch(example)


def shapes(arguments: Arguments) -> Shapes:
    """The shapes of all tensors."""
    return tuple(tuple(tensor.shape) for tensor in _tensors(arguments))


def sizes_of(arguments: Arguments) -> str:
    """The shapes in words, such as "2x3x8x8 and 2x5"."""
    return " and ".join("x".join(map(str, shape)) or "scalar" for shape in shapes(arguments))


def _tensors(arguments: Arguments) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _batch(arguments: Arguments) -> int:
    return next((tensor.shape[0] for tensor in _tensors(arguments) if tensor.dim()), 0)


def _other(arguments: Arguments) -> int:
    return 1 if _batch(arguments) > 1 else 2


def _resized(
    arguments: Arguments,
    batch: int | None,
    axes: Callable[[Tensor], Iterable[int]] | None = None,
    sizes: _Sizes | None = None,
) -> Arguments:
    before = _batch(arguments)

    def resized(tensor: Tensor) -> Tensor:
        shape = [*tensor.shape]
        if axes is not None and sizes is not None:
            for axis in axes(tensor):
                shape[axis] = sizes(shape[axis], tensor.dim() - 1 - axis) if shape[axis] > 1 else 1
        if batch is not None and shape and tensor.shape[0] == before:
            shape[0] = batch
        for axis, size in enumerate(shape):
            if 0 < tensor.shape[axis] != size:
                positions = torch.arange(size, device=tensor.device) % tensor.shape[axis]
                tensor = tensor.index_select(axis, positions)
        return tensor

    result: Arguments = pytree.tree_map_only(Tensor, resized, arguments)
    return result


def _behind_channels(tensor: Tensor) -> Iterable[int]:
    """The axes of (N, C, *image), and of tokens (N, L)."""
    return range(2 if tensor.is_floating_point() or tensor.dim() > 2 else 1, tensor.dim())


def _before_channels(tensor: Tensor) -> Iterable[int]:
    """The axes of (N, *image, C), and of tokens (N, L)."""
    return range(1, tensor.dim() - 1 if tensor.is_floating_point() or tensor.dim() > 2 else tensor.dim())


def _last_two(tensor: Tensor) -> Iterable[int]:
    """The axes of an image, whatever comes before them."""
    return range(max(0, tensor.dim() - 2), tensor.dim()) if tensor.dim() > 2 else ()


_AXES = (_behind_channels, _before_channels, _last_two)


def _smaller(size: int, distance: int) -> int:
    """An odd size, not the same for two axes of one size."""
    return (size // 4 if size >= 128 else size // 2) + 2 * distance | 1


def _larger(size: int, distance: int) -> int:
    return size + size // 2 + 2 * distance | 1


def _half(size: int, _: int) -> int:
    return size // 2


def _double(size: int, _: int) -> int:
    return 2 * size
