"""The distance between two arrays that should be one: in float64, over elements that are finite in both."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from bnfold.input_spec import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Unit roundoff of the floating-point types: half the distance from 1 to the next number."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one sample, original against folded.

    Attributes:
        dtype: NumPy name of the original's element type; "" if it is no tensor.
        shape: Shape of the original.
        mismatch: What can never be a rounding error (a missing output, another dtype): the end of a sentence.
        change: What noise might explain (another shape or integer, NaN elsewhere): the end of a sentence.
        finite: Elements that were compared as numbers.
        difference: ‖folded − original‖.
        signal: ‖original‖.
        max_abs: Largest absolute difference.
        cosine: Cosine of the angle between the two; None where one of them is zero.
        top1_same: Rows (last axis) whose largest elements are at the same place.
        top1_rows: Rows; 0 where the last axis has one element or the output is not floating-point.
        roundoff: Unit roundoff u of the dtype: half the distance from 1 to the next number.
        nonfinite_original: NaN and Inf elements of the original.
        nonfinite_folded: NaN and Inf elements of the folded.
    """

    dtype: str = ""
    shape: tuple[int, ...] = ()
    mismatch: str = ""
    change: str = ""
    finite: int = 0
    difference: float = 0.0
    signal: float = 0.0
    max_abs: float = 0.0
    cosine: float | None = None
    top1_same: int = 0
    top1_rows: int = 0
    roundoff: float = 0.0
    nonfinite_original: int = 0
    nonfinite_folded: int = 0


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether `dtype` is a floating-point type that a model computes in."""
    return np.issubdtype(dtype, np.floating) or dtype == _BFLOAT16


def compare(original: object, folded: object) -> Comparison:
    """Compare one output.

    Args:
        original: What the original gave.
        folded: What the folded model gave for the same output.
    """
    if not isinstance(original, np.ndarray):
        return Comparison(change="" if _equal(original, folded) else "has another value")
    shape, dtype = tuple(original.shape), original.dtype.name
    if not isinstance(folded, np.ndarray) or folded.dtype != original.dtype:
        found = folded.dtype.name if isinstance(folded, np.ndarray) else "not a tensor"
        return Comparison(dtype, shape, mismatch=f"is {found} instead of {dtype}")
    if folded.shape != original.shape:
        return Comparison(dtype, shape, change=f"has shape {_text(folded.shape)} instead of {_text(shape)}")
    if not is_float(original.dtype):
        return _compare_discrete(original, folded)
    return _compare_floats(original, folded)


def within_tolerance(original: object, folded: object, rtol: float, atol: float) -> bool:
    """Whether |folded − original| ≤ atol + rtol·|original| everywhere; NaN equals NaN, integers are equal."""
    if not isinstance(original, np.ndarray) or not isinstance(folded, np.ndarray):
        return _equal(original, folded)
    if original.shape != folded.shape or original.dtype != folded.dtype:
        return False
    if not is_float(original.dtype):
        return bool(np.array_equal(original, folded))
    first, second = original.astype(np.float64), folded.astype(np.float64)
    return bool(np.allclose(second, first, rtol=rtol, atol=atol, equal_nan=True))


def _compare_discrete(original: Array, folded: Array) -> Comparison:
    differing = int(np.count_nonzero(original != folded))
    change = f"differs in {differing} of {original.size} elements" if differing else ""
    largest = 0.0
    if differing and np.issubdtype(original.dtype, np.number):
        largest = float(np.max(np.abs(folded.astype(np.float64) - original.astype(np.float64))))
    return Comparison(original.dtype.name, tuple(original.shape), change=change, finite=original.size, max_abs=largest)


def _compare_floats(original: Array, folded: Array) -> Comparison:
    first, second = original.astype(np.float64), folded.astype(np.float64)
    finite_first, finite_second = np.isfinite(first), np.isfinite(second)
    finite = finite_first & finite_second
    change = ""
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        change = "has NaN or Inf in other places or of another sign"
    rows = first.size // first.shape[-1] if first.ndim and first.shape[-1] > 1 else 0
    same = int(np.count_nonzero(first.argmax(-1) == second.argmax(-1))) if rows else 0
    if not finite.all():
        first, second = first[finite], second[finite]
    difference = second - first
    signal, other = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    return Comparison(
        dtype=original.dtype.name,
        shape=tuple(original.shape),
        change=change,
        finite=int(np.count_nonzero(finite)),
        difference=float(np.linalg.norm(difference)),
        signal=signal,
        max_abs=float(np.max(np.abs(difference), initial=0.0)),
        cosine=float(np.vdot(first / signal, second / other)) if signal and other else None,
        top1_same=same,
        top1_rows=rows,
        roundoff=ROUNDOFF[original.dtype.name],
        nonfinite_original=int(np.count_nonzero(~finite_first)),
        nonfinite_folded=int(np.count_nonzero(~finite_second)),
    )


def _equal(first: object, second: object) -> bool:
    """Equality of what is no tensor: an optional that is empty, a text."""
    return not isinstance(first, np.ndarray) and not isinstance(second, np.ndarray) and first == second


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"
