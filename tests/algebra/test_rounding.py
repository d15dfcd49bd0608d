"""Rounding to a storage dtype, against the definition: nearest, ties to even.

The bit patterns of a positive IEEE format, read as integers, are its values in order. So the correct result is known
without any arithmetic: between pattern n and n + 1 the midpoint goes to the even one, and what is below or above it
to n or n + 1. bfloat16 and float16 are walked from end to end, float32 is sampled.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from exact import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, nearest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnfold.algebra.rounding import STORAGE_DTYPES, largest_finite, round_once

QUICK = settings(deadline=None, derandomize=True)
BITS = {FLOAT16: np.dtype(np.uint16), BFLOAT16: np.dtype(np.uint16), FLOAT32: np.dtype(np.uint32)}
INFINITY_BITS = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80, FLOAT32: 0x7F800000}
# What infinity would be if the exponent had one more value: 2 ** (largest exponent + 1).
BEYOND = {FLOAT16: 2.0**16, BFLOAT16: 2.0**128, FLOAT32: 2.0**128}
DTYPES = sorted(STORAGE_DTYPES, key=str)
NARROW = sorted(BITS, key=str)


def finite_patterns(dtype: np.dtype) -> np.ndarray:
    """The patterns of the positive finite values: all of them, or for float32 every corner and a large sample."""
    if dtype != FLOAT32:
        return np.arange(INFINITY_BITS[dtype], dtype=np.int64)
    top = INFINITY_BITS[dtype]
    corners = [0, 1, 2, 3, 0x007FFFFE, 0x007FFFFF, 0x00800000, 0x00800001, top - 2, top - 1]
    powers = (np.arange(1, 255, dtype=np.int64) << 23)[:, None] + np.array([-1, 0, 1])
    sample = np.random.default_rng(0).integers(0, top, 200_000)
    return np.unique(np.concatenate([corners, powers.reshape(-1), sample]))


def values(patterns: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What the patterns stand for, as float64; the pattern of infinity stands for the next power of two."""
    finite = patterns.astype(BITS[dtype]).view(dtype).astype(np.float64)
    return np.where(patterns == INFINITY_BITS[dtype], BEYOND[dtype], finite)


def patterns_of(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    assert array.dtype == dtype
    return array.view(BITS[dtype]).astype(np.int64)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_value_midpoint_and_their_neighbours_go_where_they_belong(dtype: np.dtype, sign: float) -> None:
    patterns = finite_patterns(dtype)
    below, above = values(patterns, dtype), values(patterns + 1, dtype)
    midpoint = (below + above) / 2
    assert ((below < midpoint) & (midpoint < above)).all(), "float64 holds every midpoint"
    even = patterns + patterns % 2
    sign_bit = 1 << (8 * BITS[dtype].itemsize - 1) if sign < 0 else 0

    expectations = [
        (below, patterns),
        (np.nextafter(below, np.inf), patterns),
        (np.nextafter(midpoint, -np.inf), patterns),
        (midpoint, even),
        (np.nextafter(midpoint, np.inf), patterns + 1),
        (np.nextafter(above, -np.inf), patterns + 1),
    ]
    for exact, expected in expectations:
        got = patterns_of(round_once(sign * exact, dtype), dtype)
        np.testing.assert_array_equal(got, expected | sign_bit)


def test_every_bfloat16_pattern_survives() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # Half of the NaNs are signalling ones.
        wide = patterns.view(BFLOAT16).astype(np.float64)
    got = round_once(wide, BFLOAT16)
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(got.view(np.uint16)[number], patterns[number])
    assert np.isnan(got.astype(np.float64)[~number]).all()


def test_the_two_conversions_that_are_avoided_do_round_twice() -> None:
    """Without this the walk above would prove nothing: the plain conversions must fail it."""
    exact = np.array([1 + 2**-8 + 2**-40])
    assert float(nearest(Fraction(exact[0]), BFLOAT16)) == 1 + 2**-7
    assert float(exact.astype(ml_dtypes.bfloat16)[0]) == 1.0
    assert float(round_once(exact, BFLOAT16)[0]) == 1 + 2**-7

    patterns = finite_patterns(BFLOAT16)
    midpoint = (values(patterns, BFLOAT16) + values(patterns + 1, BFLOAT16)) / 2
    with np.errstate(over="ignore"):
        plain = np.nextafter(midpoint, np.inf).astype(ml_dtypes.bfloat16)
    wrong = patterns_of(plain, BFLOAT16) != patterns + 1
    assert wrong.mean() > 0.4


@QUICK
@given(number=st.floats(allow_nan=False, allow_infinity=False), dtype=st.sampled_from(DTYPES))
@example(number=-0.0, dtype=BFLOAT16)
@example(number=5e-324, dtype=BFLOAT16)
@example(number=-5e-324, dtype=FLOAT32)
@example(number=2.0**-134, dtype=BFLOAT16)
@example(number=2.0**-25, dtype=FLOAT16)
@example(number=1.7976931348623157e308, dtype=BFLOAT16)
@example(number=1.7976931348623157e308, dtype=FLOAT64)
def test_any_number_goes_to_the_nearest(number: float, dtype: np.dtype) -> None:
    got = round_once(np.array([number]), dtype)
    assert got.dtype == dtype
    assert float(got[0]) == nearest(Fraction(number), dtype)
    assert np.signbit(float(got[0])) == np.signbit(number)


@QUICK
@given(
    pattern=st.integers(min_value=0, max_value=INFINITY_BITS[FLOAT32] - 1),
    offset=st.integers(min_value=-3, max_value=3),
    dtype=st.sampled_from(NARROW),
)
def test_near_a_midpoint_rational_arithmetic_agrees(pattern: int, offset: int, dtype: np.dtype) -> None:
    """Ties the bit patterns of the walk to the rational oracle that other tests use."""
    below, above = (
        Fraction(float(value)) for value in values(np.array([pattern, pattern + 1]) % INFINITY_BITS[dtype], dtype)
    )
    number = float((below + above) / 2)
    for _ in range(abs(offset)):
        number = float(np.nextafter(number, np.inf if offset > 0 else -np.inf))
    assert float(round_once(np.array([number]), dtype)[0]) == nearest(Fraction(number), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_what_it_is(dtype: np.dtype) -> None:
    got = round_once(np.array([np.inf, -np.inf, np.nan, -np.nan]), dtype).astype(np.float64)
    assert got[0] == np.inf
    assert got[1] == -np.inf
    assert np.isnan(got[2:]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (2, 0, 3), (2, 3)], ids=str)
def test_the_shape_is_kept_also_without_dimensions(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    got = round_once(np.full(shape, 0.1), dtype)
    assert isinstance(got, np.ndarray)
    assert got.shape == shape
    assert got.dtype == dtype
    assert (got.astype(np.float64) == nearest(Fraction(0.1), dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_order_does_not_matter_and_the_argument_is_not_touched(dtype: np.dtype) -> None:
    plain = np.random.default_rng(1).normal(size=(6, 8)) * 2.0 ** np.arange(-20, 28, 6)
    expected = round_once(plain.copy(), dtype).astype(np.float64)
    for view, back in (
        (plain.T, expected.T),
        (plain[::-1, ::-2], expected[::-1, ::-2]),
        (np.asfortranarray(plain), expected),
        (plain[2:5, 1:7], expected[2:5, 1:7]),
        (np.broadcast_to(plain[:1], (6, 8)), np.broadcast_to(expected[:1], (6, 8))),
    ):
        before = view.copy()
        np.testing.assert_array_equal(round_once(view, dtype).astype(np.float64), back)
        np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_largest_finite_value_is_the_last_before_infinity(dtype: np.dtype) -> None:
    assert largest_finite(dtype) == values(np.array([INFINITY_BITS[dtype] - 1]), dtype)[0]


def test_the_largest_finite_float64() -> None:
    assert largest_finite(FLOAT64) == float.fromhex("0x1.fffffffffffffp+1023")
