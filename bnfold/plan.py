"""What is to be done to a model: the result of `bnfold.planner`, carried out by a front-end, shown by reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bnfold.affine import Affine
from bnfold.graph import AffineNode, Kind, MapNode, Node, StopCode, Value
from bnfold.weights import Folding


class Direction(StrEnum):
    """Which way an affine went."""

    BACKWARD = "backward"
    FORWARD = "forward"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Fold:
    """An affine that ends up in the weights of its neighbours.

    Attributes:
        nodes: The name of the affine's node.
        kind: What it was in the model.
        direction: Backward, into what computes its input; forward, into what reads its output; both, with the scale
            backward and the shift forward.
        path: The names of the nodes it passes on the way, nearest first.
        targets: The names of the linear maps, or of larger constants, that hold it in the end.
    """

    nodes: tuple[str, ...]
    kind: Kind
    direction: Direction
    path: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """An affine that stays, and why.

    Attributes:
        nodes: The name of its node, after those of the affines that were composed into it.
        kind: What it was in the model.
        code: The reason, stable, for programs.
        reason: The reason, a sentence, for people.
        batch_norms: How many of the nodes are batch norms; spelled-out affines may be composed into one.
    """

    nodes: tuple[str, ...]
    kind: Kind
    code: StopCode
    reason: str
    batch_norms: int


@dataclass(frozen=True, slots=True)
class Step:
    """One affine that goes away, for the front-end that carries the plan out; steps count in their order.

    Its input and its output become one tensor. Going backward leaves that tensor with the value of the output, going
    forward with that of the input, going both ways with neither.

    Attributes:
        source: The node that goes away.
        direction: Where its affine goes.
        changed: Values, besides the affine's own, that are no longer what they were.
        passed: The nodes that it moves past.
        targets: The maps or affines that take it.
    """

    source: AffineNode
    direction: Direction
    changed: tuple[Value, ...]
    passed: tuple[Node, ...]
    targets: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every affine of a model. Each batch norm is in exactly one entry of `folds` or `left`.

    Attributes:
        folds: The affines that end up in weights.
        left: The affines that stay, each with its reason; spelled-out ones only next to a linear map.
        steps: What has to be rewired, in order.
        foldings: The maps whose weights change, with what they absorb.
        leftovers: The affines that stay as an operation of their own, with what was composed into them.
    """

    folds: tuple[Fold, ...]
    left: tuple[Left, ...]
    steps: tuple[Step, ...] = field(repr=False)
    foldings: Mapping[MapNode, Folding] = field(repr=False)
    leftovers: Mapping[AffineNode, Affine] = field(repr=False)

    @property
    def batch_norms(self) -> int:
        """How many batch norms the model had."""
        return self.batch_norms_folded + self.batch_norms_left

    @property
    def batch_norms_folded(self) -> int:
        """How many of them end up in weights."""
        return len([fold for fold in self.folds if fold.kind is Kind.BATCH_NORM])

    @property
    def batch_norms_left(self) -> int:
        """How many of them stay."""
        return sum(left.batch_norms for left in self.left)
