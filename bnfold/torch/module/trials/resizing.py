"""Other sizes that a module may be called with: an example with another batch, and with images of another size.

Values are those of the example, repeated or cut off. Which dimensions of an input may vary only its module knows, so
these are suggestions; what the module refuses is no size of its inputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd
from typing import TypeGuard, cast

import torch
from torch import Tensor

from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.returned_values import leaves, with_tensors

_LARGE = 1 << 16
"""An input with more elements than that is not tried any larger: it would cost more than all the rest."""

Shapes = tuple[tuple[int, ...], ...]

_Axes = Callable[[Tensor], Iterable[int]]
_Image = tuple[int, ...]
"""The sizes of an image, or of tokens."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where the batch of an example may be: along one axis of all tensors that have that size there.

    Attributes:
        axis: The axis.
        size: How many there are.
        least_rank: Tensors of a lower rank have no batch.
    """

    axis: int
    size: int
    least_rank: int = 1

    def is_of(self, tensor: Tensor) -> bool:
        return tensor.dim() >= max(self.least_rank, self.axis + 1) and tensor.shape[self.axis] == self.size


def smaller(arguments: Arguments) -> Iterator[Arguments]:
    """Calls like an example with smaller images, higher than wide, those with another batch first."""
    yield from _images(arguments, _other, (partial(_smaller, wide=False), _half))


def wider(arguments: Arguments) -> Iterator[Arguments]:
    """The same with images that are wider than high."""
    yield from _images(arguments, _other, (partial(_smaller, wide=True), _half))


def larger(arguments: Arguments) -> Iterator[Arguments]:
    """The same with larger images, unless they are large already."""
    if max((tensor.numel() for tensor in _tensors(arguments)), default=0) <= _LARGE:
        yield from _images(arguments, lambda batch: _unlike(batch, 2 * batch + 1), (_larger, _double))


def other_batch(arguments: Arguments) -> Iterator[Arguments]:
    """Calls like an example with another batch alone, where the batch is most likely to be."""
    for batch in _batches(arguments)[:1]:
        for size, least_rank in product((_other(batch.size), 2 * batch.size), (1, _rank(arguments))):
            yield _resized(arguments, _Batch(batch.axis, batch.size, least_rank), size)


def other_places(arguments: Arguments) -> Iterator[Arguments]:
    """Calls like an example with another batch in a place where else it may be, or with a list of another length."""
    for batch in _batches(arguments)[1:]:
        yield _resized(arguments, batch, _other(batch.size))
    args, kwargs = arguments
    for length in {len(item): None for item in (*args, *kwargs.values()) if _is_list(item)}:
        change = partial(_with_length, length)
        yield tuple(map(change, args)), {name: change(item) for name, item in kwargs.items()}


def has_batch_of(arguments: Arguments, example: Arguments) -> bool:
    """Whether a call has as many rows as another, where its batch is most likely to be."""
    pairs = zip(_tensors(arguments), _tensors(example), strict=True)
    return not any(
        batch.is_of(before) and not batch.is_of(now) for batch in _batches(example)[:1] for now, before in pairs
    )


def shapes(arguments: Arguments) -> Shapes:
    """The shapes of all tensors."""
    return tuple(tuple(tensor.shape) for tensor in _tensors(arguments))


def sizes_of(arguments: Arguments) -> str:
    """The shapes in words, such as "2x3x8x8 and 2x5"."""
    return " and ".join("x".join(map(str, shape)) or "scalar" for shape in shapes(arguments))


def _tensors(arguments: Arguments) -> list[Tensor]:
    return [leaf for leaf in leaves(arguments) if isinstance(leaf, Tensor)]


def _rank(arguments: Arguments) -> int:
    return max((tensor.dim() for tensor in _tensors(arguments)), default=0)


def _batches(arguments: Arguments) -> list[_Batch]:
    """Where the batch may be, the likeliest first: the largest tensor begins with it; sequences may come before it."""
    tensors = sorted(_tensors(arguments), key=lambda tensor: (-tensor.dim(), -tensor.numel()))
    leading = [_Batch(0, tensor.shape[0]) for tensor in tensors if tensor.dim()]
    behind = [
        _Batch(1, tensor.shape[1]) for tensor in tensors if tensor.dim() == (3 if tensor.is_floating_point() else 2)
    ]
    return [batch for batch in dict.fromkeys([*leading, *behind]) if batch.size]


def _has_channels(tensor: Tensor) -> bool:
    """Whether a tensor is an image with channels, and not tokens."""
    return tensor.is_floating_point() or tensor.dim() > 2


def _other(batch: int) -> int:
    return 1 if batch > 1 else 2


def _images(
    arguments: Arguments, rows: Callable[[int], int], sizes: Iterable[Callable[[_Image], _Image]]
) -> Iterator[Arguments]:
    """Calls like an example with other images, with as many rows as is said, or as there are."""
    first = _batches(arguments)[:1]
    for count, change, axes in product([*(rows(batch.size) for batch in first), None], sizes, _AXES):
        yield _resized(arguments, first[0] if first else None, count, axes, change)


def _resized(
    arguments: Arguments,
    batch: _Batch | None,
    count: int | None,
    axes: _Axes | None = None,
    change: Callable[[_Image], _Image] | None = None,
) -> Arguments:
    def resized(tensor: Tensor) -> Tensor:
        shape = [*tensor.shape]
        if axes is not None and change is not None:
            varying = [axis for axis in axes(tensor) if shape[axis] > 1]
            for axis, size in zip(varying, change(tuple(shape[axis] for axis in varying)), strict=True):
                shape[axis] = size
        if batch is not None and count is not None and batch.is_of(tensor):
            shape[batch.axis] = count
        return _with_shape(tensor, shape)

    return cast(Arguments, with_tensors(arguments, resized))


def with_sizes(arguments: Arguments, sizes: Mapping[tuple[int, int], int]) -> Arguments:
    """A call in which axes of tensors have other sizes.

    Args:
        arguments: The call.
        sizes: The size for each such axis, by the number of the tensor and that of the axis.
    """
    places = iter(range(len(_tensors(arguments))))

    def resized(tensor: Tensor) -> Tensor:
        place = next(places)
        return _with_shape(tensor, [sizes.get((place, axis), size) for axis, size in enumerate(tensor.shape)])

    return cast(Arguments, with_tensors(arguments, resized))


def _with_shape(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    for axis, size in enumerate(shape):
        if 0 < tensor.shape[axis] != size:
            positions = torch.arange(size, device=tensor.device) % tensor.shape[axis]
            tensor = tensor.index_select(axis, positions)
    return tensor


def _behind_channels(tensor: Tensor) -> Iterable[int]:
    """The axes of (N, C, *image), and of tokens (N, L)."""
    return range(2 if _has_channels(tensor) else 1, tensor.dim())


def _before_channels(tensor: Tensor) -> Iterable[int]:
    """The axes of (N, *image, C), and of tokens (N, L)."""
    return range(1, tensor.dim() - 1 if _has_channels(tensor) else tensor.dim())


def _last_two(tensor: Tensor) -> Iterable[int]:
    """The axes of an image, whatever comes before them."""
    return range(max(0, tensor.dim() - 2), tensor.dim()) if tensor.dim() > 2 else ()


_AXES = (_behind_channels, _before_channels, _last_two)


def _smaller(image: _Image, *, wide: bool) -> _Image:
    """A half, or of large images a quarter."""
    return _unlike_all(image, [size // 4 if size >= 128 else size // 2 for size in image], wide)


def _larger(image: _Image) -> _Image:
    return _unlike_all(image, [size + size // 2 for size in image], wide=True)


def _half(image: _Image) -> _Image:
    return tuple(size // 2 for size in image)


def _double(image: _Image) -> _Image:
    return tuple(2 * size for size in image)


def _unlike_all(image: _Image, about: list[int], wide: bool) -> _Image:
    """Sizes that have nothing in common with those of an image, each above the one before, or below it.

    Args:
        image: The sizes.
        about: What the others are to be like, in any order.
        wide: Whether the last is the largest.
    """
    found: list[int] = []
    for size, least in zip(image if wide else image[::-1], sorted(about), strict=True):
        found.append(_unlike(size, max(least, found[-1] + 1 if found else 1)))
    return tuple(found if wide else found[::-1])


def _unlike(size: int, least: int) -> int:
    """The first number from there on that shares no divisor with a size, nor does one less share any with one less."""
    while gcd(least, size) > 1 or gcd(least - 1, max(size - 1, 1)) > 1:
        least += 1
    return least


def _is_list(item: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """Whether an argument is a list with tensors."""
    return type(item) in (list, tuple) and any(isinstance(leaf, Tensor) for leaf in leaves(item))


def _with_length(length: int, item: object) -> object:
    """A list that has so many elements with another number of them; anything else as it is."""
    return type(item)([*item, *item][: _other(length)]) if _is_list(item) and len(item) == length else item
