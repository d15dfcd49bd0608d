"""How far rounding carries a sum whose terms have one sign.

The partial sums of n such terms grow evenly up to the sum s. Rounding the k-th is off by at most u · |s| · k/n, evenly
spread, so that one result is off by

    √(Σ (u · |s| · k/n)² / 3)  ≈  u · |s| · √n / 3

as its standard deviation: the 1-norm bound u · Σ |terms| is met at n = 9, and is forgotten growth beyond (Higham and
Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019). A runtime rounds fewer of the partial sums of
short pieces that it adds up at the end; a quarter in place of a third is what it is counted with. Sums of float16 and
bfloat16 are kept in float32, and do not drift.

Elements that are equal are all rounded to the same side, and so are those that differ by less than the last place of
the partial sums has. Over a blank image, or the blank border of one, that carries a sum to one side: by up to

    u · |s| · e/16

where a runtime keeps eight partial sums, for the e elements that are like their neighbour. Zeros round nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

UNNOTICED = 4.0
"""A drift up to this is what the limits of the gates allow anyway."""


BLANK_SPREAD = 1 / 4
"""Terms that differ by less than n times this, in units of their own rounding, are like each other in a sum of n."""


def drift(terms: int) -> float:
    """The factor of |s| in the rounding bound of a sum of so many terms."""
    return math.sqrt(terms) / 4


def blank_drift(equal: float) -> float:
    """What so many terms that are like each other add to that factor."""
    return equal / 16


def terms_of_transposed(weight: Sequence[int], groups: int, strides: Sequence[int]) -> int:
    """How many products of a transposed convolution meet in an element of its result, at most.

    Args:
        weight: The shape of its weight: channels of the input, channels of the output in a group, window.
        groups: The number of groups.
        strides: One for each spatial axis.
    """
    meeting = [-(-size // stride) for size, stride in zip(weight[2:], strides, strict=True)]
    return weight[0] // groups * math.prod(meeting)
