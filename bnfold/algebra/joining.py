"""Kernels that become one: maps of the same value added up, and a map behind another; see `bnfold.algebra.kernels`.

Two maps of one value add up if they have the same strides and outputs: their taps are laid on one grid that has all of
them, and their weights into the blocks of groups that hold the blocks of both.

A pointwise map y = V·x + c before or behind a kernel is one with it, W'_i = W_i·V or V·W_i; where zeros of a padding
stand for outputs of a map with a bias, it is not.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.kernels import Axis, Kernel
from bnfold.algebra.rounding import Float64Array
from bnfold.reasons import Stop, StopCode


def total(kernels: Sequence[Kernel], factors: Sequence[float], sizes: Sequence[int | None]) -> Kernel | Stop:
    """The kernel of a sum of maps of one value.

    Args:
        kernels: The maps.
        factors: What each is multiplied by.
        sizes: The sizes of the value, None where unknown; those of the axes of the kernels are the last.

    Returns:
        The kernel, or why the sum is none.
    """
    one = kernels[0]
    dtypes = {kernel.dtype for kernel in kernels} - {None}
    if len(dtypes) > 1:
        return Stop(StopCode.WEIGHT_DTYPE, f"their weights are {' and '.join(sorted(map(str, dtypes)))}")
    for other in kernels[1:]:
        if (other.out_channels, other.channel_axes, len(other.axes)) != (
            one.out_channels,
            one.channel_axes,
            len(one.axes),
        ):
            return Stop(StopCode.CHANNEL_AXIS, "their outputs do not have the same channels")
        if other.transposed != one.transposed:
            return Stop(StopCode.NO_RULE, "one is transposed and the other is not")
    axes: list[Axis] = []
    spatial = sizes[len(sizes) - len(one.axes) :]
    for parts, size in zip(zip(*(kernel.axes for kernel in kernels), strict=True), spatial, strict=True):
        axis = _common(parts, size, transposed=one.transposed)
        if isinstance(axis, Stop):
            return axis
        axes.append(axis)
    groups = gcd(*(kernel.groups for kernel in kernels))
    shape = (one.out_channels, one.in_channels // groups, *(axis.taps for axis in axes))

    def weight() -> Float64Array:
        sums = np.zeros(shape)
        for kernel, factor in zip(kernels, factors, strict=True):
            _add(sums, kernel, factor, groups, axes)
        return sums

    def bias() -> Float64Array | None:
        found = [(kernel.bias(), factor) for kernel, factor in zip(kernels, factors, strict=True)]
        scaled = [factor * vector for vector, factor in found if vector is not None]
        return reduce(np.add, scaled) if scaled else None

    return replace(
        one,
        groups=groups,
        axes=tuple(axes),
        dtype=next(iter(dtypes), None),
        cost=sum(kernel.cost for kernel in kernels),
        parameters=sum(kernel.parameters for kernel in kernels),
        weight=weight,
        bias=bias,
        depth=1 + max(kernel.depth for kernel in kernels),
    )


def chain(first: Kernel, second: Kernel) -> Kernel | Stop:
    """The kernel of a map of the output of another, one of them pointwise.

    Args:
        first: The map that is carried out first.
        second: The map that reads its output.

    Returns:
        The kernel, or why the two are not one.
    """
    if first.transposed or second.transposed or len(first.axes) != len(second.axes) or not first.axes:
        return Stop(StopCode.NO_RULE, "they are not two convolutions")
    if first.dtype is not None and second.dtype is not None and first.dtype != second.dtype:
        return Stop(StopCode.WEIGHT_DTYPE, f"their weights are {first.dtype} and {second.dtype}")
    pads = any(axis.first < 0 or axis.padded_after > 0 for axis in second.axes)
    if all(axis.taps == axis.stride == 1 for axis in first.axes):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            offset = first.bias() if pads else None
        if offset is not None and offset.any():
            return Stop(StopCode.PADDED_SHIFT, "the second pads with zeros what the first gives with a bias")
        axes = tuple(
            replace(after, first=before.first + after.first, surplus=before.surplus + 1 + after.surplus)
            for before, after in zip(first.axes, second.axes, strict=True)
        )
    elif all(axis.taps == axis.stride == 1 for axis in second.axes):
        if pads:
            return Stop(StopCode.PADDED_SHIFT, "the second pads with zeros what the first gives")
        axes = first.axes
    else:
        return Stop(StopCode.NO_RULE, "neither of them is pointwise")
    groups = gcd(first.groups, second.groups)

    def bias() -> Float64Array | None:
        inner, outer = first.bias(), second.bias()
        if inner is None:
            return outer
        sums = second.weight().reshape(second.out_channels, -1, prod(second.size)).sum(axis=2)
        by_group = sums.reshape(second.groups, -1, sums.shape[1])
        through: Float64Array = np.einsum("goi,gi->go", by_group, inner.reshape(second.groups, -1)).reshape(-1)
        return through if outer is None else through + outer

    return replace(
        second,
        in_channels=first.in_channels,
        groups=groups,
        axes=axes,
        dtype=first.dtype or second.dtype,
        cost=first.cost * prod(axis.stride for axis in second.axes) + second.cost,
        parameters=first.parameters + second.parameters,
        weight=lambda: _product(first, second, groups),
        bias=bias,
        depth=1 + max(first.depth, second.depth),
    )


def chain_is_less_work(first: Kernel, second: Kernel) -> bool:
    """Whether two maps in a row, one of them pointwise, would take fewer multiply-adds as one."""
    inputs = first.in_channels // gcd(first.groups, second.groups)
    taps = prod(max(sizes) for sizes in zip(first.size, second.size, strict=True))
    strides = prod(axis.stride for axis in second.axes)
    return second.out_channels * inputs * taps < first.cost * strides + second.cost


def _common(parts: Sequence[Axis], size: int | None, *, transposed: bool) -> Axis | Stop:
    """The axis of a sum: a grid of taps that has those of all parts."""
    one = parts[0]
    if any(part.stride != one.stride for part in parts):
        return Stop(StopCode.STRIDES, f"their strides are {' and '.join(sorted({str(part.stride) for part in parts}))}")
    if len({part.surplus for part in parts}) > 1:
        outputs = {None if size is None else (size + part.surplus) // one.stride for part in parts}
        if transposed or None in outputs or len(outputs) > 1:
            return Stop(StopCode.OUTPUT_SIZE, "it is not proved that their outputs have the same size")
    first, last = min(part.first for part in parts), max(part.last for part in parts)
    offsets = [part.first - first for part in parts] + [part.step for part in parts if part.taps > 1]
    step = gcd(*offsets) or 1
    axis = replace(one, first=first, step=step, taps=(last - first) // step + 1)
    if transposed and axis not in parts:
        return Stop(StopCode.MORE_WORK, "no kernel has the taps of all")
    return axis


def _add(sums: Float64Array, kernel: Kernel, factor: float, groups: int, axes: Sequence[Axis]) -> None:
    """Adds the weights of a kernel, in place, to those of a sum with its own grid and groups."""
    places = []
    for axis, part in zip(axes, kernel.axes, strict=True):
        start, step = (part.first - axis.first) // axis.step, part.step // axis.step if part.taps > 1 else 1
        places.append(slice(start, start + (part.taps - 1) * step + 1, step))
    target = sums[(slice(None), slice(None), *places)]
    weight = kernel.weight()
    if kernel.groups == groups:
        target += factor * weight
    else:
        target[_blocks(kernel, groups)] += factor * weight


def _blocks(kernel: Kernel, groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of a kernel's weights, (out, in/groups), in a weight with fewer groups."""
    outputs = np.arange(kernel.out_channels, dtype=np.int64)
    inputs = kernel.in_channels // kernel.groups
    begin = outputs // (kernel.out_channels // kernel.groups) * inputs
    block = outputs // (kernel.out_channels // groups) * (kernel.in_channels // groups)
    return outputs[:, None], (begin - block)[:, None] + np.arange(inputs)


def _regrouped(kernel: Kernel, groups: int) -> Float64Array:
    """The weights of a kernel as those of one with fewer groups, (groups, out/groups, in/groups, taps)."""
    weight = kernel.weight().reshape(kernel.out_channels, -1, prod(kernel.size))
    wide = weight
    if kernel.groups != groups:
        wide = np.zeros((kernel.out_channels, kernel.in_channels // groups, weight.shape[2]))
        wide[_blocks(kernel, groups)] = weight
    return wide.reshape(groups, -1, *wide.shape[1:])


def _product(first: Kernel, second: Kernel, groups: int) -> Float64Array:
    """The weights of two maps in a row, one of which has a single tap."""
    size = [max(pair) for pair in zip(first.size, second.size, strict=True)]
    if second.groups == second.out_channels == second.in_channels:
        before = first.weight().reshape(first.out_channels, -1, prod(first.size))
        wide = before * second.weight().reshape(second.out_channels, 1, -1)
    else:
        before, after = _regrouped(first, groups), _regrouped(second, groups)
        wide = np.einsum("gomk,gmil->goikl", after, before, optimize=True)
    return wide.reshape(second.out_channels, first.in_channels // groups, *size)
