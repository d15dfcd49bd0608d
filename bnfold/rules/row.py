"""What a line of the table is.

An affine y = s·x + t moves in two parts, the scale s and the shift t, each an array that broadcasts against the value
it acts on. They move independently of each other: for every operator f of the table, f(s·x + t) = s'·f(x) + t',
where s' depends on s alone and t' on t alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import OpNode
from bnfold.reasons import Stop


class Part(StrEnum):
    """A part of an affine."""

    SCALE = "scale"
    SHIFT = "shift"

    @property
    def neutral(self) -> float:
        """The number that changes nothing."""
        return 1.0 if self is Part.SCALE else 0.0


Arrays = tuple[Float64Array | None, ...]
"""One array for each input or output of an operator; None where nothing has to happen."""

Backward = Callable[[OpNode, int, Float64Array, Part], Sequence[Arrays] | Stop]
Forward = Callable[[OpNode, Arrays, Part], Arrays | Stop]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        backward: (node, position of an output, array on it, part) → ways to do the same to the inputs, best first: one
            array for each input, all of which are needed.
        forward: (node, arrays on its inputs, part) → the arrays on its outputs. At least one input has an array.
    """

    backward: Backward
    forward: Forward
