"""What the lifting of moves knows about one node of a graph."""

from collections.abc import Iterable
from math import prod

import numpy as np
import onnx

from bnfold.graph import Op, Parameters
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.types import Shape
from bnfold.onnx.proto.names import find_attribute, ints_attribute

Lifted = tuple[Op, Parameters | None]

_LARGEST = {dtype.__name__: float(np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64)}
"""What no finite number exceeds; of other element types infinity alone."""


class NoAxisError(Exception):
    """A node names an axis that its first input is not known to have: nothing is known of how affines pass it."""


class NodeView:
    """A node with what is known about its values.

    Args:
        node: The node.
        constants: The constants of its graph.
        source: The shape of its first input, None if the rank is not known.
        targets: The shapes of its outputs, None where the rank is not known.
        extra_is_read: Whether anything reads an output besides the first.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        constants: Constants,
        source: Shape | None,
        targets: tuple[Shape | None, ...],
        *,
        extra_is_read: bool,
    ) -> None:
        self.node = node
        self.source = source
        self.targets = targets
        self.extra_is_read = extra_is_read
        self._constants = constants

    def integers(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """Integers from a constant input, or from an attribute; empty if absent, None if not known."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            return ints_attribute(self.node, attribute)
        found = self._constants.find(name)
        if found is None or found.overridable:
            return None
        return tuple(int(number) for number in found.read().reshape(-1))

    def numbers(self, position: int, attribute: str) -> tuple[float, ...] | None:
        """Numbers from a constant input, or from an attribute; empty if absent, None if not known."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            given = find_attribute(self.node, attribute)
            return () if given is None else tuple(given.floats)
        found = self._constants.find(name)
        if found is None or found.overridable:
            return None
        return tuple(float(number) for number in found.read().reshape(-1))

    def last_size(self, position: int) -> int | None:
        """The size of the last axis of an input, None if it is not known."""
        known = self._constants.type_of(self.node.input[position])
        return known[0][-1] if known is not None and known[0] else None

    def bound(self, position: int, attribute: str, side: int) -> tuple[float, ...] | None:
        """A bound of a Clip from a constant input, or before opset 11 from an attribute.

        Args:
            position: The input.
            attribute: The attribute.
            side: 1 for an upper bound, -1 for a lower one.

        Returns:
            The bound; empty if there is none that a finite number exceeds, None if it is not known.
        """
        given = find_attribute(self.node, attribute)
        numbers = self.numbers(position, "") if given is None else (given.f,)
        if not numbers:
            return numbers
        found = None if given is not None else self._constants.find(self.node.input[position])
        largest = _LARGEST.get("float32" if found is None else found.dtype.name, np.inf)
        return () if side * numbers[0] >= largest else numbers[:1]

    def flows(self, position: int) -> bool:
        """Whether an input is computed while the model runs."""
        return not self._constants.is_constant(self.node.input[position])

    def is_constant(self, position: int) -> bool:
        """Whether an input is a constant that nobody overrides."""
        found = self._constants.find(self.node.input[position])
        return found is not None and not found.overridable

    def is_zero(self, position: int) -> bool:
        """Whether an optional input is absent or a constant zero."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            return True
        found = self._constants.find(name)
        return found is not None and not found.overridable and not found.read().any()

    def is_one_number(self, position: int) -> bool:
        """Whether an input is constant, and broadcasts to the shape of the first value that is none."""
        known = self._constants.type_of(self.node.input[position])
        return known is not None and len(known[0]) <= len(self.source or ()) and prod(known[0]) == 1

    def axis(self, number: int) -> int:
        """An axis of the first input, counted from the left.

        Raises:
            NoAxisError: The input has no such axis, or its rank is not known.
        """
        rank = len(self.source or ())
        if not -rank <= number < rank:
            raise NoAxisError
        return number % rank

    def axes(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """Axes of the first input, counted from the left, in the order that they are given in.

        Raises:
            NoAxisError: See `axis`.
        """
        return tuple(map(self.axis, numbers))
