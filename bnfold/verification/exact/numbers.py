"""Small numbers in the place of parameters: signs, zeros, ones and equality stay, so that a plan stays what it is.

What a plan decides on, it decides by asking whether a number is 0, is 1, is negative, or equals another one. Numbers of
few bits answer the same, and sums of their products are exact in float32. The same number always becomes the same small
number, wherever it stands in the model. Where weights are stored in 16 bits, what affines leave in them has to fit
there as well, so there is less choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bnfold.algebra.rounding import STORAGE_DTYPES, Array, Float64Array
from bnfold.graph import AffineNode, Graph, MapNode, Node

_SCALES = np.array([halves / 2 for halves in range(1, 34) if halves != 2])
_SHIFTS = np.arange(1.0, 32.0)
_NARROW_SCALES = np.array([0.5, 1.5, 2])
_NARROW_SHIFTS = np.arange(1.0, 4.0)
_POWERS = np.array([2, 0.5, 4, 0.25, 8])
_EPSILON = 2.0**-7
_NARROW = frozenset(dtype.name for dtype in STORAGE_DTYPES if dtype.itemsize == 2)
_MIXER = np.uint64(0x9E3779B97F4A7C15)


def small_epsilon(epsilon: float) -> float:
    """What is added to a variance, which is a power of four with it; without it, it is none. Zero stays."""
    return _EPSILON if epsilon else 0.0


@dataclass(frozen=True, slots=True)
class Numbers:
    """The small numbers of one attempt.

    Attributes:
        seed: Another seed gives other numbers.
        narrow: Whether some are stored in 16 bits.
    """

    seed: int
    narrow: bool = False

    def for_graph(self, graph: Graph) -> Numbers:
        """Those for a lifted model."""
        return replace(self, narrow=any(map(_is_narrow, graph.nodes)))

    def scales(self, array: Array) -> Float64Array:
        """What multiplies: 0, 1 and −1 stay, all else has few bits and keeps its sign."""
        return self._keeping_one(array, _NARROW_SCALES if self.narrow else _SCALES)

    def divisors(self, array: Array) -> Float64Array:
        """What divides: 1 and −1 stay, all else becomes a power of two and keeps its sign."""
        return self._keeping_one(array, _POWERS)

    def shifts(self, array: Array) -> Float64Array:
        """What is added: 0 stays, all else becomes a small integer and keeps its sign."""
        return self._signed(np.asarray(array, np.float64), _NARROW_SHIFTS if self.narrow else _SHIFTS)

    def batch_norm(
        self, scale: Array, shift: Array, epsilon: float, *, has_gamma: bool = True, has_beta: bool = True
    ) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
        """Gamma, beta, mean and variance of a BN with a small scale and shift.

        Args:
            scale: The scale of the BN, any shape.
            shift: Its shift, of as many elements.
            epsilon: What is added to the variance, `epsilon` of that of the BN.
            has_gamma: Whether it has a gamma; else that of the result is 1.
            has_beta: Whether it has a beta; else that of the result is 0.
        """
        exact = has_gamma and has_beta
        small_scale = (self.scales(scale) if exact else self.divisors(scale)).reshape(-1)
        small_shift = self.shifts(shift).reshape(-1)
        channels = np.arange(small_scale.size)
        deviation = np.array([1, 0.5, 0.25])[(channels + self.seed) % 3] if has_gamma else 1 / small_scale
        gamma = small_scale * deviation if has_gamma else np.ones(small_scale.size)
        mean = np.array([1.0, -2, 3, -1, 2])[channels % 5]
        if has_beta:
            return gamma, small_shift + small_scale * mean, mean, deviation**2 - epsilon
        mean = np.divide(-small_shift, small_scale, out=mean, where=small_scale != 0)
        return gamma, np.zeros(small_scale.size), mean, deviation**2 - epsilon

    def weight(self, shape: tuple[int, ...], groups: int) -> Float64Array:
        """A weight of few non-zero taps: every output and every input channel has some, at any place of the kernel.

        Args:
            shape: Two channel dimensions, the second within a group, and the kernel.
            groups: The number of groups.
        """
        rows, columns = shape[:2]
        weight = np.zeros((rows, columns, int(np.prod(shape[2:]))))
        if weight.size == 0:
            return weight.reshape(shape)
        draw = np.random.default_rng([self.seed, *shape])
        rows_of_group = max(1, rows // groups)
        taps = max(2, -(-2 * columns // rows_of_group))
        row = np.repeat(np.arange(rows), taps)
        place = np.arange(taps)[None, :] + (np.arange(rows) % rows_of_group)[:, None] * taps
        column = (place.reshape(-1) + draw.integers(columns)) % columns
        tap = draw.integers(weight.shape[2], size=row.size)
        weight[row, column, tap] = draw.choice([1.0, -1, 2, -2, 3], size=row.size)
        return weight.reshape(shape)

    def _keeping_one(self, array: Array, choices: Float64Array) -> Float64Array:
        wide = np.asarray(array, np.float64)
        return np.where(np.abs(wide) == 1, wide, self._signed(wide, choices))

    def _signed(self, wide: Float64Array, choices: Float64Array) -> Float64Array:
        bits = np.abs(np.ascontiguousarray(wide)).reshape(-1).view(np.uint64).reshape(wide.shape)
        with np.errstate(over="ignore"):
            mixed = (bits ^ np.uint64(self.seed)) * _MIXER
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIXER
        picked = choices[(mixed >> np.uint64(33)) % np.uint64(len(choices))]
        small: Float64Array = np.sign(wide) * picked
        return small


def _is_narrow(node: Node) -> bool:
    """Whether a layer, or what an affine that stays is written as, is stored in 16 bits."""
    match node:
        case MapNode():
            return node.linear.weight.dtype.name in _NARROW
        case AffineNode():
            return node.inputs[0].dtype in _NARROW
    return False
