"""Rounding float64 results once, to the storage dtype of the weight they land in.

numpy converts float64 to float32 and float16 with one correct rounding (IEEE 754 round to nearest, ties to even).
ml_dtypes converts float64 to bfloat16 through float32, which rounds twice: 1 + 2**-8 + 2**-40 becomes a tie on the
way and then 1.0, where the nearest bfloat16 is 1 + 2**-7. Rounding to odd in float32 first removes the second
rounding (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
odd", IEEE Transactions on Computers 57(4), 2008): float32 has 16 more bits than bfloat16, and 2 are enough.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DType = np.dtype[np.generic]
Array = NDArray[np.generic]
Float64Array = NDArray[np.float64]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STORAGE_DTYPES = frozenset({np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)})
"""The floating-point dtypes that a folded weight may be stored in."""


def round_once(exact: Float64Array, dtype: DType) -> Array:
    """Rounds float64 values to `dtype`, to nearest and ties to even.

    Args:
        exact: Values of any shape. Values beyond the range of `dtype` become infinite.
        dtype: One of `STORAGE_DTYPES`.

    Returns:
        An array of the same shape (0-d stays 0-d) in `dtype`.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == BFLOAT16:
            return _round_to_odd_float32(exact).astype(dtype)
        return exact.astype(dtype)


def round_into(target: Array, exact: Float64Array) -> None:
    """Rounds float64 values into an array of a storage dtype, as `round_once` does."""
    if target.dtype == BFLOAT16:
        target[...] = round_once(exact, target.dtype)
        return
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.copyto(target, exact, casting="same_kind")


def largest_finite(dtype: DType) -> float:
    """The largest finite value of a storage dtype."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def loses_digits(exact: Float64Array, dtype: DType) -> bool:
    """Whether numbers are all below the normal ones of a storage dtype, where each has fewer digits the smaller it is.

    That is asked of float16 alone, which begins at 6e-5; the others begin at 1e-38, or before.
    """
    if dtype != np.float16:
        return False
    return 0 < float(np.abs(exact).max(initial=0)) < float(np.finfo(np.float16).smallest_normal)


def has_every_number_of(wide: DType, narrow: DType) -> bool:
    """Whether a storage dtype has every number of another, and more."""
    if wide == narrow or not {wide, narrow} <= STORAGE_DTYPES:
        return False
    more, less = (ml_dtypes.finfo(dtype) for dtype in (wide, narrow))  # type: ignore[no-untyped-call]
    return bool(more.nmant > less.nmant and float(np.log2(float(more.max))) >= float(np.log2(float(less.max))))


def _round_to_odd_float32(exact: Float64Array) -> NDArray[np.float32]:
    nearest = exact.astype(np.float32)
    finite = np.isfinite(exact)
    inexact = finite & (nearest.astype(np.float64) != exact)
    away_from_zero = inexact & (np.abs(nearest.astype(np.float64)) > np.abs(exact))
    bits = nearest.reshape(-1).view(np.uint32).reshape(nearest.shape)
    truncated = bits - away_from_zero.astype(np.uint32)
    odd = (truncated | inexact.astype(np.uint32)).astype(np.uint32)
    rounded: NDArray[np.float32] = odd.reshape(-1).view(np.float32).reshape(nearest.shape)
    return rounded
