"""Linear maps with constant weights, and the affines that they absorb.

A map computes y = alpha · W ⋆ x + beta · b, where ⋆ is a convolution, a transposed convolution or a matrix product.
With an affine (s_i, t_i) on its input channels and one (s_o, t_o) on its output channels,

    s_o · (alpha · W ⋆ (s_i · x + t_i) + beta · b) + t_o  =  alpha · W' ⋆ x + b'

    W' = s_o · W · s_i          b' = s_o · (beta · b + alpha · Σ W · t_i) + t_o

where Σ runs over the input channels and the taps of the kernel. The sum is what every output gets only if every output
sums the whole kernel: with zero padding the outputs at the border miss some taps, and a shift on the input is not
absorbed (see `LinearMap.partial_kernel`).

Everything is computed in float64 and rounded once, at the end, however many affines were absorbed. With n affines the
float64 value of a weight is within 3.5·n·2**-53, relative, of the exact one, so what is stored is the correctly rounded
exact value unless that lies so close to the middle between two neighbours; then it is one of the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.quantised import QuantisedTensor
from bnfold.algebra.rounding import Array, DType, Float64Array, largest_finite, loses_digits, round_into, round_once
from bnfold.algebra.tensor import ArrayTensor, Tensor, rows_of

PADS_WITH_ZEROS = "pads its input with zeros, so its border outputs miss part of the kernel"
"""What `LinearMap.partial_kernel` says of a convolution with padding."""

IS_TRANSPOSED = "is transposed, so its outputs do not each sum the whole kernel"
"""What it says of a transposed convolution with outputs that miss some taps."""

_BLOCK_ELEMENTS = 1 << 16
"""How many weights are widened to float64 at a time: a block stays in the cache of a core."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution slides, each number for each spatial axis.

    Attributes:
        strides: The distance between two outputs, in inputs; transposed, the other way round.
        dilations: The distance between two taps.
        before: How many zeros stand before the input; transposed, how many outputs are cut off there.
        after: The same at the end; transposed, less the output padding.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def leaves_whole_sums(self, kernel: tuple[int, ...]) -> bool:
        """Whether a transposed convolution gives only outputs that sum its whole kernel, where others are cut off.

        With stride 1, output o sums the taps j for which o + before − dilation·j is a place of the input.

        Args:
            kernel: The size of the kernel.
        """
        reaches = [dilation * (size - 1) for dilation, size in zip(self.dilations, kernel, strict=True)]
        cut = [min(pair) for pair in zip(self.before, self.after, strict=True)]
        return set(self.strides) == {1} and all(less >= reach for less, reach in zip(cut, reaches, strict=True))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LinearMap:
    """A convolution, transposed convolution or matrix product with constant weights.

    Attributes:
        weight: Any shape whose first two dimensions are channels: (out, in/groups, *kernel) if `out_first`, else
            (in, out/groups, *kernel). A product of batches of matrices has one for each index of the others.
        bias: None, or what broadcasts against the output: (out,) for a convolution, up to (M, N) for Gemm.
        groups: The number of groups.
        out_first: Which of the two layouts the weight has.
        output_axis: The channel axis of the output, negative.
        input_axis: The channel axis of the input, negative.
        alpha: What multiplies the product (Gemm).
        beta: What multiplies the bias (Gemm).
        partial_kernel: Empty if every output sums the whole kernel, else a clause saying why not.
        window: How a convolution slides; None for a matrix product, and where that depends on the size of the input.
        bias_is_extra: Whether a bias is an operation of its own (an Add behind a MatMul).
        keeps_axes: Whether the axes of the output beside its channels are those of the input, in their order.
        order: Which dimension of the stored weight each dimension of the above is; empty if they are the same.
        broadcasts_input: Whether the input may have one channel, which counts as all of them.
    """

    weight: Tensor
    bias: Tensor | None = None
    groups: int = 1
    out_first: bool = True
    output_axis: int = -1
    input_axis: int = -1
    alpha: float = 1.0
    beta: float = 1.0
    partial_kernel: str = ""
    window: Window | None = None
    bias_is_extra: bool = False
    keeps_axes: bool = True
    order: tuple[int, ...] = ()
    broadcasts_input: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, its channels first."""
        stored = self.weight.shape
        return tuple(stored[axis] for axis in self.order) or stored

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        rows, columns = self.shape[:2]
        return rows if self.out_first else columns * self.groups

    @property
    def in_channels(self) -> int:
        """The number of input channels."""
        rows, columns = self.shape[:2]
        return columns * self.groups if self.out_first else rows

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, whose channels may be any axis."""
        return self.bias_is_extra or len(self.weight.shape) == 2

    def channels_first(self, stored: Array) -> Array:
        """A stored weight with its channels first."""
        return stored.transpose(self.order) if self.order else stored

    def stored(self, weight: Array) -> Array:
        """A weight with its channels first as it is stored."""
        shaped = weight.reshape(self.shape)
        return shaped.transpose(np.argsort(self.order)) if self.order else shaped


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """A linear map with the affines that it has absorbed.

    Attributes:
        linear: The map as it was.
        inner: What acts on its input channels, arrays of shape (in,).
        outer: What acts on its output channels, arrays of shape (out,).
    """

    linear: LinearMap
    inner: Affine | None = None
    outer: Affine | None = None

    def absorb_output(self, affine: Affine) -> "Folding":
        """Adds an affine, with arrays of shape (out,), that acts on the present output."""
        return replace(self, outer=affine if self.outer is None else self.outer.then(affine))

    def absorb_input(self, affine: Affine) -> "Folding":
        """Adds an affine, with arrays of shape (in,), whose result is the present input."""
        return replace(self, inner=affine if self.inner is None else affine.then(self.inner))

    def adds_work(self) -> bool:
        """Whether the map needs an operation that it did not have."""
        return self.linear.bias_is_extra and self.linear.bias is None and self.bias() is not None

    def shift_is_lost(self) -> bool:
        """Whether an input shift would reach only part of the outputs."""
        return bool(self.linear.partial_kernel) and self.inner is not None and bool(self.inner.shift.any())

    def weight(self) -> Array:
        """The new weight, in the shape and dtype of the old one; each value rounded once."""
        return self._scaled(self.linear.weight.dtype)

    def weight_rows(self) -> Iterator[Array]:
        """The same in parts of any shape, each good until the next is asked for."""
        if self.linear.order:
            yield self.weight()
            return
        narrow = np.empty(0, self.linear.weight.dtype)
        for _, exact in self._exact_rows():
            if len(narrow) < len(exact):
                narrow = np.empty(exact.shape, narrow.dtype)
            round_into(narrow[: len(exact)], exact)
            yield narrow[: len(exact)]

    def weight_key(self) -> tuple[object, ...]:
        """What the new weight depends on besides the old one: maps with one weight and equal keys get one again."""
        scales = (None if affine is None else affine.scale.tobytes() for affine in (self.inner, self.outer))
        return (self.linear.groups, self.linear.out_first, self.linear.order, *scales)

    def quantised(self) -> QuantisedTensor | str | None:
        """The new weight of a map whose weight is quantised, or why it cannot be; None for any other map."""
        weight = self.linear.weight
        if not isinstance(weight, QuantisedTensor):
            return None
        rows, columns = self._scales()
        factor = np.ones((1, 1))
        for scale in (rows, columns):
            factor = factor if scale is None else factor * scale[:, :, 0]
        return weight.scaled(factor, self.linear.order)

    def exact_weight(self) -> Float64Array:
        """The new weight in the shape of the old one, not rounded to its dtype; `alpha` is not in it."""
        return self._scaled(np.dtype(np.float64)).astype(np.float64, copy=False)

    def _scaled(self, dtype: DType) -> Array:
        new = np.empty(self.linear.shape, dtype)
        rows = _as_rows(self.linear, new)
        for block, exact in self._exact_rows():
            round_into(rows[block], exact)
        return self.linear.stored(new)

    def _exact_rows(self) -> Iterator[tuple[slice, Float64Array]]:
        """Which rows of the weight, and their new values as (rows, columns, taps), good until the next ones are."""
        row_scale, column_scale = self._scales()
        wide = np.empty(0)
        for block, old in _row_blocks(self.linear):
            if len(wide) < len(old):
                wide = np.empty(old.shape)
            exact = wide[: len(old)]
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                np.copyto(exact, old)
                if row_scale is not None:
                    exact *= row_scale[block]
                if column_scale is not None:
                    exact *= column_scale if len(column_scale) == 1 else column_scale[block]
            yield block, exact

    def bias(self) -> Array | None:
        """The new bias, rounded once, or None where the map had none and needs none.

        Its shape is (out,), followed by a 1 for each axis behind the channels of a matrix product from the left; for
        a Gemm whose bias varies along the rows it is (M, N). It multiplies no `beta` any more.
        """
        exact = self.exact_bias()
        bias = self.linear.bias
        return None if exact is None else round_once(exact, self.linear.weight.dtype if bias is None else bias.dtype)

    def exact_bias(self) -> Float64Array | None:
        """The new bias as `bias` gives it, not rounded to its dtype."""
        linear = self.linear
        vector = (-1,) + (1,) * (-linear.output_axis - 1 if linear.is_product else 0)
        exact = np.zeros((linear.out_channels,)).reshape(vector)
        with np.errstate(over="ignore", invalid="ignore"):
            if linear.bias is not None:
                exact = exact + linear.beta * linear.bias.read().astype(np.float64)
            if self.inner is not None and self.inner.shift.any():
                exact = exact + (linear.alpha * _kernel_sums(linear, self.inner.shift)).reshape(vector)
            if self.outer is not None:
                exact = exact * self.outer.scale.reshape(vector) + self.outer.shift.reshape(vector)
        return None if linear.bias is None and not exact.any() else exact

    def defect(self) -> str | None:
        """Says why the new weights cannot be stored, or None if they can.

        Returns:
            A clause naming the first output channel at fault, such as "the weight overflows float16 in output
            channel 3".
        """
        linear = self.linear
        clause = None if isinstance(linear.weight, QuantisedTensor) else self._defect_of_weight()
        if clause is not None:
            return clause
        bias = self.bias()
        if bias is None:
            return None
        axis = linear.output_axis if linear.is_product else -1
        by_channel = bias if bias.ndim == 1 else np.moveaxis(bias, axis, 0)
        return _first_not_finite(by_channel.reshape(len(by_channel), prod(by_channel.shape[1:])), "bias", linear.bias)

    def _defect_of_weight(self) -> str | None:
        linear, dtype = self.linear, self.linear.weight.dtype
        if prod(linear.shape) == 0:
            return None
        largest, bound = self._largest_by_row()
        if loses_digits(bound, dtype) and bound.max() < largest.max():
            return f"the new weight is too small for the digits of {dtype}, whose smallest normal number is larger"
        if (bound < 0.999 * largest_finite(dtype)).all():
            return None
        new = _as_rows(linear, linear.channels_first(self.weight()))
        by_channel = new.reshape(linear.groups, -1, *new.shape[1:])
        by_channel = by_channel if linear.out_first else np.swapaxes(by_channel, 1, 2)
        return _first_not_finite(by_channel.reshape(linear.out_channels, -1), "weight", linear.weight)

    def _scales(self) -> tuple[Float64Array | None, Float64Array | None]:
        """Scales for the rows, shape (R, 1, 1), and the columns, (1, C, 1) or (R, C, 1), of the weight."""
        linear = self.linear
        along_rows, along_columns = (self.outer, self.inner) if linear.out_first else (self.inner, self.outer)
        rows = None if along_rows is None else along_rows.scale.reshape(-1, 1, 1)
        if along_columns is None:
            return rows, None
        columns = along_columns.scale.reshape(linear.groups, -1, 1)
        if linear.groups > 1:
            columns = np.repeat(columns, linear.shape[0] // linear.groups, axis=0)
        return rows, columns

    def _largest_by_row(self) -> tuple[Float64Array, Float64Array]:
        """The largest old weight of each row, and a bound for the new ones: one pass over the old ones, no copy."""
        row_scale, column_scale = self._scales()
        highest = np.empty(self.linear.shape[0], self.linear.weight.dtype)
        lowest = np.empty_like(highest)
        with np.errstate(over="ignore", invalid="ignore"):
            for block, old in _row_blocks(self.linear):
                by_row = old.reshape(len(old), -1)
                highest[block], lowest[block] = by_row.max(axis=1), by_row.min(axis=1)
            largest = np.maximum(np.abs(highest), np.abs(lowest)).astype(np.float64)
            bound = largest
            if row_scale is not None:
                bound = bound * np.abs(row_scale.reshape(-1))
            if column_scale is not None:
                bound = bound * np.abs(column_scale).max()
        return largest, bound


def _as_rows(linear: LinearMap, weight: Array) -> Array:
    """A weight with its channels first, or some rows of it, as (rows, columns, taps)."""
    _, columns, *taps = linear.shape
    return weight.reshape(len(weight), columns, prod(taps))


def _row_blocks(linear: LinearMap) -> Iterator[tuple[slice, Array]]:
    """Which rows of the weight, and their values as (rows, columns, taps), good until the next are asked for."""
    step = max(1, _BLOCK_ELEMENTS // max(1, prod(linear.shape[1:])))
    weight = ArrayTensor(linear.channels_first(linear.weight.read())) if linear.order else linear.weight
    start = 0
    for rows in rows_of(weight, step):
        yield slice(start, start + len(rows)), _as_rows(linear, rows)
        start += len(rows)


def _kernel_sums(linear: LinearMap, shift: Float64Array) -> Float64Array:
    """Σ W · shift over input channels and taps, shape (out,)."""
    rows, columns = linear.shape[:2]
    group_of_row = np.arange(rows) // max(1, rows // linear.groups)
    sums = np.zeros((rows, 1) if linear.out_first else (linear.groups, columns))
    for block, weight in _row_blocks(linear):
        taps = weight.sum(axis=2, dtype=np.float64)
        if linear.out_first:
            by_row = shift.reshape(linear.groups, columns)[group_of_row[block]]
            sums[block, 0] = (taps * by_row).sum(axis=1)
        else:
            np.add.at(sums, group_of_row[block], taps * shift[block, None])
    return sums.reshape(-1)


def _first_not_finite(by_channel: Array, name: str, original: Tensor | None) -> str | None:
    """Names the first row of `by_channel` that holds a value which is not finite."""
    wrong = ~np.isfinite(by_channel).all(axis=1)
    if not wrong.any():
        return None
    channel = int(np.flatnonzero(wrong)[0])
    if original is not None and not np.isfinite(original.read()).all():
        return f"the {name} holds values that are not finite (output channel {channel})"
    return f"the new {name} overflows {by_channel.dtype} in output channel {channel}"
