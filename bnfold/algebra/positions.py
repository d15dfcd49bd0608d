"""Which elements operators take that crop or repeat a value, where the numbers that say so are known.

A size alone says nothing: as many elements may come out as went in, and each from another place.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MOST_POSITIONS = 1 << 24
"""Positions beyond this are not written out: a hostile file can ask for any number in a few bytes."""

Shape = tuple[int | str | None, ...]

Positions = dict[int, NDArray[np.int64] | None]
"""The elements taken along each axis that is not as it was, None where a size is not known."""


def run(start: int, stop: int, step: int = 1) -> NDArray[np.int64] | None:
    """The positions from one to another, as Python's `range` has them; None where they are too many."""
    positions = range(start, stop, step)
    return np.arange(start, stop, step) if len(positions) <= MOST_POSITIONS else None


def repeated(source: Shape, repeats: Mapping[int, int]) -> Positions:
    """Copies of a value one behind the other.

    Args:
        source: Its shape.
        repeats: How many there are along each axis; 1 along others.
    """
    cuts: Positions = {}
    for axis, count in repeats.items():
        size = source[axis]
        if count != 1:
            known = isinstance(size, int) and 0 <= size * count <= MOST_POSITIONS
            cuts[axis] = np.tile(np.arange(size), count) if known and isinstance(size, int) else None
    return cuts


def crop(source: Shape, pads: Mapping[int, tuple[object, object]]) -> Positions | None:
    """What is left of a value that is padded by nothing, or by less than that; None where it may be padded.

    Args:
        source: Its shape.
        pads: What is put before and behind each axis; 0 for others.
    """
    cuts: Positions = {}
    for axis, (before, after) in pads.items():
        if not isinstance(before, int) or not isinstance(after, int) or before > 0 or after > 0:
            return None
        size = source[axis]
        if before or after:
            cuts[axis] = run(-before, size + after) if isinstance(size, int) else None
    return cuts
