"""What the lifting of moves knows about one node of a program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from bnfold.graph import Op, Parameters
from bnfold.torch.fx.nodes import Shape, fake_tensor, shape_of
from bnfold.torch.lift.constants import Constants

Lifted = tuple[Op, Parameters | None]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A node with what is known about its values.

    Attributes:
        node: The node.
        given: Its arguments by name.
        constants: The constants of its graph.
        targets: The shapes of its results, None where the rank is not known.
        extra_is_read: Whether anything reads a result besides the first.
    """

    node: fx.Node
    given: Mapping[str, object]
    constants: Constants
    targets: tuple[Shape | None, ...]
    extra_is_read: bool

    @property
    def data(self) -> object:
        """Its first tensor."""
        return self.given.get("self", self.given.get("input"))

    @property
    def source(self) -> Shape:
        """The shape of its first tensor; `lift_move` asks for nothing where the rank is not known."""
        return (shape_of(fake_tensor(self.data)) if isinstance(self.data, fx.Node) else None) or ()

    @property
    def rank(self) -> int:
        """The rank of its first tensor."""
        return len(self.source)

    def integer(self, name: str, default: int | None = None) -> int | None:
        """An argument that is an integer, None if it is not known before the model runs."""
        found = self.given.get(name, default)
        found = default if found is None else found
        return found if isinstance(found, int) else None

    def flag(self, name: str) -> bool:
        """An argument that is true or false; false if absent."""
        return bool(self.given.get(name, False))

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """An argument that is an integer or a sequence of integers; empty if absent, None if one is not known."""
        found = self.given.get(name)
        if found is None:
            return ()
        listed = found if isinstance(found, Sequence) else (found,)
        known = tuple(number for number in listed if isinstance(number, int))
        return known if len(known) == len(listed) else None

    def axis(self, name: str = "dim", default: int = 0) -> int | None:
        """An argument that is an axis of the first tensor, counted from the left."""
        found = self.integer(name, default)
        return None if found is None or not self.rank else found % self.rank

    def axes(self, name: str = "dim") -> tuple[int, ...] | None:
        """An argument that is one or several axes of the first tensor, counted from the left."""
        found = self.numbers(name)
        return None if found is None or not self.rank else tuple(axis % self.rank for axis in found)

    def last_axes(self, count: int) -> frozenset[int]:
        """The last axes of the first tensor, which windows slide along."""
        return frozenset(range(self.rank - count, self.rank))
