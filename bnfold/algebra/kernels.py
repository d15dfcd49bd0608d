"""Linear maps in one common form.

With zeros for what lies outside of the input, every convolution, pooling window, affine and matrix product is

    y[o] = Σ_i W_i · x[o · stride + first + i · step] + b        for all o < (n + surplus) // stride + 1

along each spatial axis (a matrix product has none). The offsets first + i · step are its taps: −pad + i · dilation. A
transposed convolution sends x[o] to the places from which this formula reads, n · stride + surplus of them. An affine
and the identity are kernels with one tap, at 0, in groups of one channel; an average pool is one of equal weights.

Weights are not computed before they are needed, and then in float64: they are rounded where the map is stored. What
kernels make together is in `bnfold.algebra.joining`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import IS_TRANSPOSED, PADS_WITH_ZEROS, Folding, LinearMap, Window
from bnfold.algebra.quantised import QuantisedTensor
from bnfold.algebra.rounding import DType, Float64Array

_DEEPEST = 8
"""Sums of sums of kernels are computed at once beyond this depth."""


@dataclass(frozen=True, slots=True)
class Axis:
    """How a kernel lies along one spatial axis; see the formula above."""

    first: int
    step: int
    taps: int
    stride: int
    surplus: int

    @property
    def last(self) -> int:
        """The last tap."""
        return self.first + (self.taps - 1) * self.step

    @property
    def padded_after(self) -> int:
        """How many zeros stand behind the input; not of a transposed convolution."""
        return self.surplus + 1 + self.last

    @property
    def reach(self) -> int:
        """The dilation of a transposed convolution; with one tap, one that is larger than the output padding."""
        return self.step if self.taps > 1 else max(1, 1 - self.first - self.cut_after)

    @property
    def cut_after(self) -> int:
        """How many outputs of a transposed convolution are cut off at the end, less its output padding."""
        return (self.taps - 1) * self.step + 1 - self.stride + self.first - self.surplus


_POINT = Axis(first=0, step=1, taps=1, stride=1, surplus=-1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Kernel:
    """A linear map in the common form.

    Attributes:
        out_channels: The number of output channels.
        in_channels: The number of input channels.
        groups: The number of groups.
        axes: The spatial axes.
        channel_axes: The channel axis of the input and that of the output, negative.
        dtype: What its weights are stored in; None if it has none.
        cost: The multiply-adds, per output position, of the operations that it stands for. An affine counts one a
            channel, the identity none.
        parameters: How many numbers these operations store; an affine counts as scale and shift.
        weight: Computes the weights, (out, in/groups, *taps).
        bias: Computes the bias, of any shape that broadcasts against the output as a LinearMap's does.
        transposed: Whether it is a transposed convolution.
        depth: How many sums stand above each other in its weights.
    """

    out_channels: int
    in_channels: int
    groups: int
    axes: tuple[Axis, ...]
    channel_axes: tuple[int, int]
    dtype: DType | None
    cost: int
    parameters: int
    weight: Callable[[], Float64Array]
    bias: Callable[[], Float64Array | None]
    transposed: bool = False
    depth: int = 0

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds per output position (transposed: input position) of the kernel as one map."""
        return self.out_channels * (self.in_channels // self.groups) * prod(axis.taps for axis in self.axes)

    @property
    def is_affine(self) -> bool:
        """Whether it does to each channel what an affine does: a BN that stays may be written as such a map."""
        alone = self.groups == self.in_channels == self.out_channels and not self.transposed
        return alone and bool(self.axes) and all(axis == _POINT for axis in self.axes)

    @property
    def size(self) -> tuple[int, ...]:
        """How many taps it has along each spatial axis."""
        return tuple(axis.taps for axis in self.axes)


@dataclass(frozen=True, slots=True, eq=False)
class ExactTensor:
    """A constant known in float64; a `bnfold.algebra.tensor.Tensor`.

    Attributes:
        shape: The shape.
        dtype: What it is to be stored in, while `read` gives float64.
        compute: Computes the values.
        depth: How many sums stand above each other in it.
    """

    shape: tuple[int, ...]
    dtype: DType
    compute: Callable[[], Float64Array]
    depth: int = 0

    def read(self) -> Float64Array:
        """The values, in float64; not finite where they overflow."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self.compute()


def of_map(folding: Folding) -> Kernel | None:
    """The kernel of a linear map with what it has absorbed.

    None if it is quantised, moves other axes about or adds them up, or if it is not known how it slides.
    """
    linear = folding.linear
    taps, window = linear.weight.shape[2:], linear.window
    if (taps and window is None) or isinstance(linear.weight, QuantisedTensor) or not linear.keeps_axes:
        return None
    transposed = bool(taps) and not linear.out_first
    axes = () if window is None else _axes(taps, window, transposed=transposed)

    def weight() -> Float64Array:
        wide = folding.exact_weight() * linear.alpha
        return wide if linear.out_first else _swapped(wide, linear.groups)

    own = linear.out_channels * (linear.in_channels // linear.groups) * prod(taps)
    shifts = any(affine is not None and affine.shift.any() for affine in (folding.inner, folding.outer))
    bias = linear.out_channels if linear.bias is not None or shifts else 0
    return Kernel(
        out_channels=linear.out_channels,
        in_channels=linear.in_channels,
        groups=linear.groups,
        axes=axes,
        channel_axes=(linear.input_axis, linear.output_axis),
        dtype=linear.weight.dtype,
        cost=own,
        parameters=own + bias,
        weight=weight,
        bias=folding.exact_bias,
        transposed=transposed,
        depth=linear.weight.depth if isinstance(linear.weight, ExactTensor) else 0,
    )


def of_pool(size: tuple[int, ...], window: Window, channels: int) -> Kernel:
    """The kernel of an average pool whose outputs all sum over the same window."""
    taps = prod(size)
    return Kernel(
        out_channels=channels,
        in_channels=channels,
        groups=channels,
        axes=_axes(size, window, transposed=False),
        channel_axes=(-1 - len(size),) * 2,
        dtype=None,
        cost=channels * taps,
        parameters=0,
        weight=lambda: np.full((channels, 1, *size), 1.0 / taps),
        bias=lambda: None,
    )


def of_affine(affine: Affine | None, like: Kernel) -> Kernel | None:
    """The kernel of an affine of the value that a map reads.

    Args:
        affine: The affine; None for the identity.
        like: The kernel of the map.

    Returns:
        The kernel, or None if the affine does not act on the channels of that map, or its output is not like its input.
    """
    axis, channels = like.channel_axes[0], like.in_channels
    vector = Affine(np.ones(1), np.zeros(1)) if affine is None else affine.along(axis, channels)
    if vector is None or like.transposed or axis != like.channel_axes[1] or channels != like.out_channels:
        return None
    scale, shift = np.broadcast_to(vector.scale, (channels,)), vector.shift
    column = (-1,) + (1,) * (-axis - 1 if not like.axes else 0)
    return Kernel(
        out_channels=channels,
        in_channels=channels,
        groups=channels,
        axes=(_POINT,) * len(like.axes),
        channel_axes=like.channel_axes,
        dtype=None,
        cost=0 if affine is None else channels,
        parameters=0 if affine is None else 2 * channels,
        weight=lambda: scale.reshape(channels, 1, *(1 for _ in like.axes)),
        bias=lambda: shift.reshape(column) if shift.any() else None,
    )


def as_affine(kernel: Kernel) -> Affine | None:
    """A kernel as the affine that it is; None if it is none."""
    if not kernel.is_affine:
        return None
    shape = (1, -1, *(1 for _ in kernel.axes))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scale, bias = kernel.weight().reshape(shape), kernel.bias()
    return Affine(scale, np.zeros_like(scale) if bias is None else bias.reshape(shape))


def as_map(kernel: Kernel, base: LinearMap, factor: float) -> LinearMap:
    """A kernel as a linear map with constants in float64, to be rounded when it is stored.

    Args:
        kernel: The kernel.
        base: The map in whose place it stands, which has its layout and dtype.
        factor: What it is multiplied by.
    """
    inputs = kernel.in_channels // kernel.groups
    outputs = kernel.out_channels // kernel.groups
    channels = (kernel.out_channels, inputs) if base.out_first else (kernel.in_channels, outputs)

    def weight() -> Float64Array:
        wide = kernel.weight() * factor
        return wide if base.out_first else _swapped(wide, kernel.groups)

    tensor = ExactTensor((*channels, *kernel.size), base.weight.dtype, weight, kernel.depth)
    if kernel.depth >= _DEEPEST:
        computed = tensor.read()
        tensor = replace(tensor, compute=lambda: computed, depth=0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bias = kernel.bias()
        scaled = None if bias is None else bias * factor
    stored = base.weight.dtype if base.bias is None else base.bias.dtype
    linear = replace(
        base,
        weight=tensor,
        bias=None if scaled is None else ExactTensor(scaled.shape, stored, lambda: scaled),
        groups=kernel.groups,
        alpha=1.0,
        beta=1.0,
    )
    if not kernel.axes:
        return linear
    window = Window(
        strides=tuple(axis.stride for axis in kernel.axes),
        dilations=tuple(axis.reach if kernel.transposed else axis.step for axis in kernel.axes),
        before=tuple(-axis.first for axis in kernel.axes),
        after=tuple(axis.cut_after if kernel.transposed else axis.padded_after for axis in kernel.axes),
    )
    padded = any(window.before + window.after)
    if kernel.transposed:
        whole = not padded and all(axis.taps == axis.stride == 1 for axis in kernel.axes)
        return replace(linear, window=window, partial_kernel="" if whole else IS_TRANSPOSED)
    return replace(linear, window=window, partial_kernel=PADS_WITH_ZEROS if padded else "")


def _axes(taps: tuple[int, ...], window: Window, *, transposed: bool) -> tuple[Axis, ...]:
    axes = []
    for size, stride, dilation, before, after in zip(
        taps, window.strides, window.dilations, window.before, window.after, strict=True
    ):
        reach = dilation * (size - 1)
        surplus = reach + 1 - stride - before - after if transposed else before + after - reach - 1
        axes.append(Axis(-before, dilation if size > 1 else 1, size, stride, surplus))
    return tuple(axes)


def _swapped(weight: Float64Array, groups: int) -> Float64Array:
    """Swaps the two channel dimensions of a weight, group by group."""
    rows, columns, *taps = weight.shape
    split = np.swapaxes(weight.reshape(groups, rows // groups, columns, *taps), 1, 2)
    return split.reshape(groups * columns, rows // groups, *taps)
