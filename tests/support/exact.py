"""Exact arithmetic: what a rounded number ought to be, from rational numbers alone.

Nothing here rounds with numpy, torch or ml_dtypes. A square root is the one irrational operation that a BatchNorm
needs; it is taken to 240 bits, which is exact for the purpose of a format of 53.
"""

from fractions import Fraction
from math import inf, isqrt

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

UNIT = Fraction(1, 2**53)
"""The unit roundoff of float64: the largest relative error of one operation."""

# IEEE 754-2019 table 3.5 (bfloat16: float32 with 8 significant bits): significant bits, smallest and largest exponent.
_FORMATS = {
    FLOAT16: (11, -14, 15),
    BFLOAT16: (8, -126, 127),
    FLOAT32: (24, -126, 127),
    FLOAT64: (53, -1022, 1023),
}

_ROOT_BITS = 240


def fraction(number: object) -> Fraction:
    """The rational number that a scalar of any floating-point dtype stands for."""
    return Fraction(float(number))  # type: ignore[arg-type]


def root(square: Fraction) -> Fraction:
    """The square root, to 240 significant bits; exact where it is rational."""
    product = square.numerator * square.denominator
    bits = max(0, 2 * _ROOT_BITS - product.bit_length())
    bits += bits % 2
    return Fraction(isqrt(product << bits), square.denominator << (bits // 2))


def nearest(value: Fraction, dtype: np.dtype) -> float:
    """The value of a storage dtype that is nearest, ties to even; infinite beyond its range."""
    largest_exponent = _FORMATS[dtype][2]
    quantum = _quantum(value, dtype)
    # Python rounds a Fraction to the nearest integer, ties to even.
    rounded = round(value / quantum) * quantum
    if abs(rounded) >= Fraction(2) ** (largest_exponent + 1):
        return inf if rounded > 0 else -inf
    return float(rounded)


def distance_to_tie(value: Fraction, dtype: np.dtype) -> Fraction:
    """How far a value is from the nearest number halfway between two neighbours of a storage dtype."""
    quantum = _quantum(value, dtype)
    steps = value / quantum
    return abs(steps - steps.__floor__() - Fraction(1, 2)) * quantum


def distance_to_float(value: Fraction, dtype: np.dtype) -> Fraction:
    """Half the distance between neighbours of a storage dtype: the most that rounding once can move a value."""
    return _quantum(value, dtype) / 2


def _quantum(value: Fraction, dtype: np.dtype) -> Fraction:
    """The distance between neighbours of a storage dtype at a value."""
    significant_bits, smallest_exponent, _ = _FORMATS[dtype]
    exponent = smallest_exponent if value == 0 else max(_exponent(abs(value)), smallest_exponent)
    return Fraction(2) ** (exponent - significant_bits + 1)


def _exponent(value: Fraction) -> int:
    """The whole part of the logarithm to base 2 of a positive number."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= Fraction(2) ** guess else guess - 1
