"""Weights that are stored as integers, and the scales of affines that these take exactly.

A stored weight stands for W = d · (q − z), with a dequantisation scale d and a zero point z for the whole tensor, for
each index of one axis, or for blocks along one axis. Scaled by s it is

    s · d · (q − z)  =  d' · (q' − z)        d' = |s| · d        q' = sign(s) · (q − z) + z

where d' is rounded once and nothing is quantised anew. Where s = 0, or d' is too small to be stored at all (trained
networks have channels that are as good as gone), q' = z. What cannot be: a q' beyond the range of the integers (−128
turned round zero), a d' that would vary along two axes, and one below the smallest normal number of float16, which has
few digits left. The zero point stays as it is: runtimes
compute with one zero point for all channels. Blocks have zero points of their own, and there a range from a to b can be
turned as a whole, q' = a + b − q and z' = a + b − z, which never leaves it.

Between the dequantised numbers and their reader there may be transposes, reshapes and casts. The first two only move
elements about, and s with them. A cast to a narrower type rounds each number once more, as it did before; past one to
a wider type, in which the rounding of d' would be seen, s does not go.
"""

from dataclasses import dataclass, replace
from typing import Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import Array, DType, Float64Array, round_once
from bnfold.algebra.tensor import ArrayTensor, Tensor

_LEAST_OF_HALF = 2.0**-14
"""The smallest normal number of float16."""


@dataclass(frozen=True, slots=True)
class Turned:
    """Axis i of the result is axis `axes[i]`."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The same elements, in row-major order, in another shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Each number rounded to an element type that has no number which the one before has not."""

    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTensor:
    """A constant stored as integers; a `bnfold.algebra.tensor.Tensor` in the layout that its reader sees.

    Attributes:
        integers: The integers, as stored.
        scale: The dequantisation scale: one number, one for each index of `axis`, or one for each block.
        zero_point: Likewise, or None for zero.
        axis: The axis of the stored integers along which the scale varies or is blocked.
        block: The size of a block along `axis`; 0 where there are none.
        steps: What happens to the dequantised numbers before they are read, in order.
        simulated: Whether the file stores floats that are quantised and dequantised when the model runs.
        along_an_axis: Whether the file may store one scale for each index of an axis.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None
    axis: int
    block: int
    steps: tuple[Turned | Reshaped | Narrowed, ...]
    simulated: bool
    along_an_axis: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known without reading."""
        shape = self.integers.shape
        for step in self.steps:
            shape = _shape_after(step, shape)
        return shape

    @property
    def dtype(self) -> DType:
        """The dtype of the numbers that it stands for."""
        narrowed = (step.dtype for step in reversed(self.steps) if isinstance(step, Narrowed))
        return next(narrowed, self.scale.dtype)

    def read(self) -> Array:
        """The numbers that it stands for, as a runtime computes them."""
        array = self.dequantised()
        for step in self.steps:
            match step:
                case Turned(axes):
                    array = array.transpose(axes)
                case Reshaped(shape):
                    array = array.reshape(shape)
                case Narrowed(dtype):
                    array = round_once(array.astype(np.float64), dtype)
        return array

    def dequantised(self) -> Array:
        """The same, in the layout of the file and the type of the scale."""
        exact = self._expanded(_wide(self.scale)) * (_wide(self.integers) - self._zero())
        return round_once(exact, self.scale.dtype)

    def with_integers(self, wanted: Float64Array) -> Self:
        """The same with scales of one and two, whole zero points, and integers that are `wanted` away from them.

        What can be multiplied by an array is what could be: scales vary where they varied, and integers that leave
        their range when they are turned round their zero point are as near to it as such integers are.

        Args:
            wanted: Whole numbers, as the reader sees them; zero stands where they do not fit.
        """
        scale = _wide(self.scale)
        scale = np.where(scale == scale.reshape(-1)[:1], 1, 2).reshape(scale.shape)
        whole = replace(self, scale=ArrayTensor(scale.astype(self.scale.dtype)))
        if self.zero_point is not None:
            zeros = np.rint(_wide(self.zero_point)).astype(self.zero_point.dtype)
            whole = replace(whole, zero_point=ArrayTensor(zeros))
        dtype, zero = self.integers.dtype, whole._zero()
        lowest, highest = _range(dtype)
        new = zero + self._before_steps(wanted)
        turning = np.where(_fits(new, dtype) & _fits(2 * zero - new, dtype), new, zero)
        above, below = 2 * zero - lowest + 1, 2 * zero - highest - 1
        leaving = np.where(above <= highest, above, below)
        moved = np.where(_fits(2 * self._zero() - _wide(self.integers), dtype), turning, leaving)
        return replace(whole, integers=ArrayTensor(moved.clip(lowest, highest).astype(dtype)))

    def scaled(self, factor: Float64Array, order: tuple[int, ...] = ()) -> Self | str:
        """Multiplies by an array.

        Args:
            factor: Of shape (rows or 1, columns or 1), for two of the axes as the reader sees them.
            order: Which axis is which, those two first; empty if they are in their order.

        Returns:
            The product, with integers of the same type; or a clause saying why it cannot be stored so.
        """
        turned = replace(self, steps=(*self.steps, Turned(order))) if order else self
        wide = turned._as_stored(factor)
        if self.block and wide.shape[self.axis] > 1:
            return "its weight is quantised in blocks, along which the scale varies"
        scale = _shrunk(self._placed(_wide(self.scale)))
        new_scale = np.where(wide == 0, 1, np.abs(wide)) * scale
        axes = [axis for axis, size in enumerate(new_scale.shape) if size > 1]
        if not self.block and (len(axes) > 1 or (axes and self._varies_elsewhere(axes[0]))):
            return "its weight is quantised with one scale for each index of an axis, along another of which it varies"
        if not self.block and axes and not self.along_an_axis:
            return "its weight is quantised with one scale, and this opset has none for each channel (13 has)"
        zero = self.zero_point
        stored = round_once(new_scale, self.scale.dtype)
        if not self.block:
            wide = np.where(stored == 0, 0, wide)
            stored = np.where(stored == 0, round_once(scale, self.scale.dtype), stored)
        integers = self._turned(np.sign(wide))
        if integers is None and self.block:
            integers, zero = self._mirrored(np.sign(wide))
        least = _LEAST_OF_HALF if self.scale.dtype == np.float16 else 0.0
        if integers is None:
            kind = self.integers.dtype
            return f"its weight is quantised, and a negative scale turns an integer out of the range of {kind}"
        if not (np.isfinite(stored) & (stored.astype(np.float64) >= least) & (stored != 0)).all():
            return f"its weight is quantised, and a dequantisation scale leaves the range of {self.scale.dtype}"
        scaled = replace(self, zero_point=zero)._with(integers, stored, axes)
        narrowed = any(isinstance(step, Narrowed) for step in self.steps)
        if narrowed and not np.isfinite(scaled.read()).all():
            return f"its weight is quantised, and overflows {self.dtype}"
        return scaled

    def _as_stored(self, factor: Float64Array) -> Float64Array:
        """An array for the tensor that its reader sees, for the stored integers; of size 1 where it is constant."""
        shape = self.shape
        wide = self._before_steps(np.broadcast_to(factor.reshape(factor.shape + (1,) * (len(shape) - 2)), shape))
        repeated = (slice(0, 1) if step == 0 else slice(None) for step in wide.strides)
        return _shrunk(wide[tuple(repeated)])

    def _before_steps(self, array: Float64Array) -> Float64Array:
        """What the steps make an array of, the shape of which is the one that its reader sees."""
        shapes = [self.integers.shape]
        for step in self.steps:
            shapes.append(_shape_after(step, shapes[-1]))
        for step, shape in zip(reversed(self.steps), reversed(shapes[:-1]), strict=True):
            if isinstance(step, Turned):
                array = array.transpose(np.argsort(step.axes))
            elif isinstance(step, Reshaped):
                array = array.reshape(shape)
        return array

    def _with(self, integers: Array, scale: Array, axes: list[int]) -> Self:
        if self.block:
            blocks = np.broadcast_to(scale, self.scale.shape).astype(self.scale.dtype)
            return replace(self, integers=ArrayTensor(integers), scale=ArrayTensor(blocks))
        shape = (integers.shape[axes[0]],) if axes else self.scale.shape
        flat = -1 if shape else ()
        vector = np.broadcast_to(scale.reshape(flat), shape).copy()
        zero = self.zero_point
        if zero is not None and zero.shape != shape:
            zero = ArrayTensor(np.broadcast_to(zero.read().reshape(-1)[:1].reshape(flat), shape).copy())
        axis = axes[0] if axes else self.axis
        return replace(self, integers=ArrayTensor(integers), scale=ArrayTensor(vector), zero_point=zero, axis=axis)

    def _varies_elsewhere(self, axis: int) -> bool:
        """Whether the zero point varies along another axis."""
        return self.zero_point is not None and axis != self.axis and _shrunk(_wide(self.zero_point)).size > 1

    def _turned(self, sign: Float64Array) -> Array | None:
        """The integers with the differences from their zero point times a sign; None if they do not fit."""
        zero = self._zero()
        exact = sign * (_wide(self.integers) - zero) + zero
        return exact.astype(self.integers.dtype) if _fits(exact, self.integers.dtype).all() else None

    def _mirrored(self, sign: Float64Array) -> tuple[Array | None, Tensor | None]:
        """The integers and the zero points of blocks, those of negative sign turned within their range."""
        dtype = self.integers.dtype
        both = float(sum(_range(dtype)))
        old = np.zeros(self.scale.shape) if self.zero_point is None else _wide(self.zero_point)
        zero = np.where(sign < 0, both - old, old)
        stored = zero.astype(dtype if self.zero_point is None else self.zero_point.dtype)
        turned = replace(self, zero_point=ArrayTensor(stored))
        exact = np.where(sign < 0, both - _wide(self.integers), _wide(self.integers))
        exact = np.where(sign == 0, turned._zero(), exact)
        integers = exact.astype(dtype)
        fits = (integers.astype(np.float64) == exact).all() and (stored.astype(np.float64) == zero).all()
        return (integers, turned.zero_point) if fits else (None, None)

    def _zero(self) -> Float64Array:
        return np.zeros(()) if self.zero_point is None else self._expanded(_wide(self.zero_point))

    def _placed(self, array: Float64Array) -> Float64Array:
        """A scale or zero point so that it broadcasts against the integers, or against their blocks."""
        if self.block:
            return array
        shape = [1] * len(self.integers.shape)
        if array.size > 1:
            shape[self.axis] = array.size
        return array.reshape(shape)

    def _expanded(self, array: Float64Array) -> Float64Array:
        """The same for each element of a block."""
        if not self.block:
            return self._placed(array)
        repeated = np.repeat(array, self.block, axis=self.axis)
        return repeated.take(np.arange(self.integers.shape[self.axis]), axis=self.axis)


def _shape_after(step: Turned | Reshaped | Narrowed, shape: tuple[int, ...]) -> tuple[int, ...]:
    match step:
        case Turned(axes):
            return tuple(shape[axis] for axis in axes)
        case Reshaped(new):
            return new
    return shape


def _range(dtype: DType) -> tuple[int, int]:
    """The least and the largest number of a type of integers, or of floats of 8 bits."""
    info = ml_dtypes.finfo if dtype.name.startswith("float8") else ml_dtypes.iinfo
    ends = info(dtype)
    return int(ends.min), int(ends.max)


def _fits(numbers: Float64Array, dtype: DType) -> NDArray[np.bool_]:
    """Which numbers a type has."""
    with np.errstate(invalid="ignore"):
        return np.equal(numbers.astype(dtype).astype(np.float64), numbers)


def _wide(tensor: Tensor) -> Float64Array:
    return tensor.read().astype(np.float64)


def _shrunk(array: Float64Array) -> Float64Array:
    """The same with size 1 along each axis along which it is constant."""
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis=axis) if size > 1 else array
        if size > 1 and (array == first).all():
            array = first
    return array
