"""The frozen linear transform that a BatchNorm layer is at inference, and its algebra.

    y = scale · x + shift        scale = gamma / sqrt(variance + epsilon)        shift = beta − scale · mean

(Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2, steps 10 and 11.)

Scale and shift are float64 arrays, broadcastable against the value they act on: for a BN on NCHW both have shape
(1, C, 1, 1). Where an affine may go is decided on these arrays alone, so no axis is ever guessed from its size.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from bnfold.algebra.rounding import STORAGE_DTYPES, Array, Float64Array, loses_digits, round_once


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = scale · x + shift, with numpy's broadcasting.

    Attributes:
        scale: float64, of the rank of the value it acts on, each dimension either 1 or that of the value.
        shift: float64, likewise; its shape may differ from that of `scale`.
    """

    scale: Float64Array
    shift: Float64Array

    def __post_init__(self) -> None:
        if self.scale.ndim != self.shift.ndim:
            message = f"scale of rank {self.scale.ndim} and shift of rank {self.shift.ndim} in one affine"
            raise ValueError(message)

    @classmethod
    def from_batch_norm(
        cls,
        gamma: Array,
        beta: Array,
        mean: Array,
        variance: Array,
        epsilon: float,
        *,
        rank: int,
        axis: int = 1,
    ) -> Self:
        """Builds the affine of a BN layer in inference mode.

        Args:
            gamma: Shape (C,), any floating-point dtype; so are the next three.
            beta: Shape (C,).
            mean: The running mean, shape (C,).
            variance: The running variance, shape (C,); variance + epsilon must be positive.
            epsilon: What is added to the variance under the root.
            rank: The rank of the value that the layer normalises.
            axis: Its channel axis, counted from the left.

        Returns:
            An affine whose arrays have shape (1, …, C, …, 1).
        """
        channels = (1,) * axis + (-1,) + (1,) * (rank - axis - 1)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
            shift = beta.astype(np.float64) - scale * mean.astype(np.float64)
        return cls(scale.reshape(channels), shift.reshape(channels))

    @property
    def rank(self) -> int:
        """The rank of the value that this affine acts on."""
        return self.scale.ndim

    @property
    def varying_axes(self) -> int:
        """Along how many axes it is not constant."""
        return len([size for size in np.broadcast_shapes(self.scale.shape, self.shift.shape) if size > 1])

    def then(self, following: "Affine") -> "Affine":
        """The affine that applies this one first and `following` to its result."""
        with np.errstate(over="ignore", invalid="ignore"):
            return Affine(following.scale * self.scale, following.scale * self.shift + following.shift)

    def chained(self, following: "Affine") -> "Affine | None":
        """As `then`; None where the two vary along several axes between them, and neither would be small in full."""
        shapes = (array.shape for affine in (self, following) for array in (affine.scale, affine.shift))
        if len([size for size in np.broadcast_shapes(*shapes) if size > 1]) > 1:
            return None
        return self.then(following)

    def fits(self, dtype_name: str) -> bool:
        """Whether both arrays can be stored in the dtype that numpy calls `dtype_name`: finite, and with its digits."""
        if not dtype_name or np.dtype(dtype_name) not in STORAGE_DTYPES:
            return False
        arrays = (round_once(array, np.dtype(dtype_name)) for array in (self.scale, self.shift))
        finite = all(bool(np.isfinite(array).all()) for array in arrays)
        return finite and not loses_digits(self.scale, np.dtype(dtype_name))

    def along(self, axis: int, size: int) -> "Affine | None":
        """The same affine as two vectors along one axis, or None where it varies along another one.

        Args:
            axis: Negative, counted from the right.
            size: The size of the value along `axis`.

        Returns:
            An affine of rank 1 with arrays of shape (size,).
        """
        if self.rank < -axis:
            return None
        vectors = []
        for array in (self.scale, self.shift):
            here = array.shape[axis]
            if array.size != here or here not in (1, size):
                return None
            vectors.append(np.broadcast_to(array.reshape(-1), (size,)))
        return Affine(vectors[0], vectors[1])


def batch_norm_defect(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> str | None:
    """Says why the parameters of a BN layer define no finite affine, or None if they do.

    Args:
        gamma: Shape (C,), any floating-point dtype; so are the next three.
        beta: Shape (C,).
        mean: Shape (C,).
        variance: Shape (C,).
        epsilon: What is added to the variance.

    Returns:
        A clause naming the parameter and the first channel at fault, such as "variance is nan in channel 3".
    """
    spread = variance.astype(np.float64) + epsilon
    affine = Affine.from_batch_norm(gamma, beta, mean, variance, epsilon, rank=1, axis=0)
    # What is not finite in gamma, beta or the mean would be in the affine, for 0 times infinity is no number.
    if ((spread > 0) & (spread < np.inf) & np.isfinite(affine.scale) & np.isfinite(affine.shift)).all():
        return None
    for name, array in (("gamma", gamma), ("beta", beta), ("mean", mean), ("variance", variance)):
        wide = array.astype(np.float64)
        wrong = ~np.isfinite(wide)
        if wrong.any():
            channel = int(np.flatnonzero(wrong)[0])
            return f"{name} is {wide[channel]} in channel {channel}"
    if not (spread > 0).all():
        channel = int(np.flatnonzero(~(spread > 0))[0])
        return f"variance + epsilon is {spread[channel]:.6g} in channel {channel}, which has no real root"
    for name, array in (("scale", affine.scale), ("shift", affine.shift)):
        if not np.isfinite(array).all():
            return f"{name} overflows float64 in channel {int(np.flatnonzero(~np.isfinite(array))[0])}"
    return None
