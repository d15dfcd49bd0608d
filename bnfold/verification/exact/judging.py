"""What two results on small numbers say: equal, wrong, or not exact after all; and what all of them say together."""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from bnfold.algebra.rounding import STORAGE_DTYPES, Array, DType
from bnfold.report.records import Exact, Unproved, Verdict

_ROUNDED = 1e-5
"""Differences below this share of the largest element are taken for rounding: a wrong term is a whole number. Where
weights are stored in a narrower type, two steps of that are."""


class NotCutError(Exception):
    """Why a region cannot stand alone: a clause.

    Args:
        message: The clause.
        broken: Whether it could not run in the folded model either.
    """

    def __init__(self, message: str, *, broken: bool = False) -> None:
        super().__init__(message)
        self.broken = broken


def judge(expected: Array, found: Array, dtypes: Iterable[DType] = (), *, exact: bool = True) -> tuple[Verdict, str]:
    """Compares what the original gives with what the folded model gives.

    Args:
        expected: What the original gives.
        found: What the folded model gives.
        dtypes: What its weights are stored in.
        exact: Whether no sum on the way was too large to be exact.

    Returns:
        PASS for equal elements (zeros of either sign are equal); FAIL; or INCONCLUSIVE where the difference is as small
        as rounding is, which an exact computation does not have; and a clause on the difference.
    """
    if expected.shape != found.shape:
        return Verdict.FAIL, f"has shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.dtype != found.dtype:
        return Verdict.FAIL, f"is {found.dtype} instead of {expected.dtype}"
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    if same.all():
        return Verdict.PASS, ""
    finite = np.isfinite(wide) & np.isfinite(other)
    with np.errstate(invalid="ignore"):
        worst = np.abs(np.where(finite, other - wide, 0)).max()
    largest = np.abs(np.where(finite, wide, 0)).max()
    rounded = max([_ROUNDED, *(2 * _step(dtype) for dtype in dtypes if dtype in STORAGE_DTYPES)])
    if not exact or ((finite | same).all() and worst <= rounded * largest):
        return Verdict.INCONCLUSIVE, f"differs by {worst:.3g} beside {largest:.3g}: the sums were not exact"
    place = np.argwhere(~same)[0]
    at = tuple(int(index) for index in place)
    return Verdict.FAIL, f"gives {found[at]:g} instead of {expected[at]:g} at {list(at)} on small integers"


def _step(dtype: DType) -> float:
    """The distance of the numbers above 1 that a type has."""
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def summed_up(unproved: Iterable[Unproved], regions: int, sizes: int) -> Exact:
    """What all regions together say."""
    worst = tuple(sorted(unproved, key=lambda region: not region.wrong))
    verdict, reason = Verdict.PASS, ""
    if worst:
        first = worst[0]
        verdict = Verdict.FAIL if first.wrong else Verdict.INCONCLUSIVE
        where = f"{_listed(first.nodes)} (value {first.value!r})" if first.value else _listed(first.nodes)
        same = sum(region.wrong is first.wrong for region in worst)
        reason = f"{where} {first.reason}" + (f" (and {same - 1} more regions)" if same > 1 else "")
    return Exact(verdict, reason, regions, regions - len(worst), sizes, worst)


def _listed(nodes: tuple[str, ...]) -> str:
    return " + ".join(map(repr, nodes)) if len(nodes) <= 3 else f"a region of {len(nodes)} nodes from {nodes[0]!r}"
