"""How an array that broadcasts against a value is carried along when the value changes its shape.

An array has the rank of its value, and along each axis the size of the value, or 1 where it is constant. All of these
return None where the array cannot be carried, because that is not proved to be exact.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from bnfold.algebra.rounding import Float64Array

Shape = tuple[int | str | None, ...]

_MOST_ELEMENTS = 1 << 24
"""An array that would have to be written out in full beyond this is not carried."""


def is_too_large(shape: Sequence[int]) -> bool:
    """Whether an array is not carried, as it would have to be written out in full."""
    return prod(shape) > _MOST_ELEMENTS


def reshaped(array: Float64Array, source: Shape, target: Shape) -> Float64Array | None:
    """Carries an array from a value of shape `source` to the same elements in shape `target`, in row-major order.

    Axes are matched in groups of equal size as long as all sizes are known or are the same symbol: from the right, then
    from the left. What lies between is opaque, and the array has to be constant there.
    """
    groups, opaque = _groups(source, target)
    if any(array.shape[axis] != 1 for axis in opaque):
        return None
    shape = [1] * len(target)
    for axes, new_axes in groups:
        if all(array.shape[axis] == 1 for axis in axes):
            continue
        sizes = [source[axis] for axis in axes]
        new_sizes = [target[axis] for axis in new_axes]
        if len(axes) == len(new_axes) == 1:
            shape[new_axes[0]] = array.shape[axes[0]]
            continue
        known = [size for size in (*sizes, *new_sizes) if isinstance(size, int)]
        if len(known) != len(sizes) + len(new_sizes) or is_too_large((*array.shape, *known[: len(sizes)])):
            return None
        full = list(array.shape)
        for axis in axes:
            full[axis] = known[axes.index(axis)]
        array = np.broadcast_to(array, full)
        for axis, size in zip(new_axes, known[len(sizes) :], strict=True):
            shape[axis] = size
    return compact(np.ascontiguousarray(array).reshape(shape))


def _groups(source: Shape, target: Shape) -> tuple[list[tuple[list[int], list[int]]], range]:
    """Groups of axes with as many elements in both shapes, and the axes of `source` that are in no group."""
    groups = []
    right, new_right = len(source), len(target)
    while right and new_right:
        found = _group(source[:right][::-1], target[:new_right][::-1])
        if found is None:
            break
        groups.append(([*range(right - found[0], right)], [*range(new_right - found[1], new_right)]))
        right, new_right = right - found[0], new_right - found[1]
    left = new_left = 0
    while left < right and new_left < new_right:
        found = _group(source[left:right], target[new_left:new_right])
        if found is None:
            break
        groups.append(([*range(left, left + found[0])], [*range(new_left, new_left + found[1])]))
        left, new_left = left + found[0], new_left + found[1]
    return groups, range(left, right)


def _group(sizes: Sequence[int | str | None], new_sizes: Sequence[int | str | None]) -> tuple[int, int] | None:
    """How many leading sizes of each sequence have the same product, at least one of each."""
    if isinstance(sizes[0], str) and sizes[0] == new_sizes[0]:
        return 1, 1
    count, new_count = 1, 1
    while True:
        head, new_head = sizes[:count], new_sizes[:new_count]
        known = [size for size in head if isinstance(size, int)]
        new_known = [size for size in new_head if isinstance(size, int)]
        if len(known) < count or len(new_known) < new_count or 0 in known or 0 in new_known:
            return None
        if prod(known) == prod(new_known):
            return count, new_count
        if prod(known) < prod(new_known):
            count += 1
        else:
            new_count += 1
        if count > len(sizes) or new_count > len(new_sizes):
            return None


def compact(array: Float64Array) -> Float64Array:
    """The same array with size 1 along every axis along which it is constant."""
    for axis, size in enumerate(array.shape):
        if size > 1:
            first = array.take([0], axis)
            if (array == first).all():
                array = first
    return array


def narrowed(array: Float64Array, shape: Shape | None) -> Float64Array | None:
    """Carries an array from the result of a broadcasting operator to one of its inputs, of shape `shape`.

    The array has to be constant along every axis along which the input is broadcast, and an axis of unknown size may be
    one of these.
    """
    if shape is None or len(shape) > array.ndim:
        return None
    extra = array.ndim - len(shape)
    if any(size != 1 for size in array.shape[:extra]):
        return None
    array = array.reshape(array.shape[extra:])
    fits = all(array.shape[axis] in (1, size) for axis, size in enumerate(shape))
    return array if fits else None


def widened(array: Float64Array, rank: int) -> Float64Array:
    """Carries an array from an input of a broadcasting operator to its result, of rank `rank`."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
