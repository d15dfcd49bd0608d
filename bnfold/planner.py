"""The search: where each affine of a graph can go, by the rules of `bnfold.rules`.

An affine first tries to go backward, into the linear map that computes its input, then forward, into everything that
reads its output; what neither takes is composed into the affines that follow. This repeats until nothing moves.

The graph is only read. What has moved so far is kept beside it: an affine that is gone makes its input and its output
one tensor, so producers and uses are looked up through the affines that are gone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bnfold.affine import Affine
from bnfold.errors import UsageError
from bnfold.graph import AffineNode, Graph, MapNode, Node, OpNode, Stop, StopCode, Value
from bnfold.plan import Direction, Fold, Left, Plan, Step
from bnfold.rules import TABLE
from bnfold.weights import Folding

_SAYS_LITTLE = frozenset(
    {StopCode.MODEL_INPUT, StopCode.MODEL_OUTPUT, StopCode.NO_RULE, StopCode.NONLINEAR, StopCode.UNUSED}
)


def plan(
    graph: Graph, *, skip: tuple[str, ...] = (), only: tuple[str, ...] = (), compose: bool = True
) -> Plan:
    """Decides what becomes of every affine of a graph.

    Args:
        graph: The lifted model; it is not changed.
        skip: Glob patterns (case-sensitive) of the names of affines that must stay as they are.
        only: Glob patterns; if given, every affine that matches none of them stays.
        compose: Whether an affine that stays may be merged into an affine behind it.

    Returns:
        The plan.

    Raises:
        UsageError: A pattern matches no affine.
    """
    names = [node.name for node in graph.affines]
    for option, patterns in (("skip", skip), ("only", only)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                message = f"{option} pattern '{pattern}' matches no BatchNorm of this model"
                raise UsageError(message, hint="`bnfold inspect` lists their names.")
    skipped = {
        node
        for node in graph.affines
        if any(fnmatchcase(node.name, pattern) for pattern in skip)
        or (only and not any(fnmatchcase(node.name, pattern) for pattern in only))
    }
    search = _Search(graph, skipped)
    while search.fold_all() or (compose and search.compose_all()):
        pass
    return search.result()


@dataclass(frozen=True, slots=True)
class _Move:
    """A way for an affine, all of it: what it passes and what its ends become."""

    direction: Direction
    passed: tuple[OpNode, ...] = ()
    foldings: tuple[tuple[MapNode, Folding], ...] = ()
    composed: tuple[tuple[AffineNode, Affine], ...] = ()

    def __add__(self, other: "_Move") -> "_Move":
        return _Move(
            self.direction,
            self.passed + other.passed,
            self.foldings + other.foldings,
            self.composed + other.composed,
        )

    @property
    def targets(self) -> tuple[Node, ...]:
        return tuple(node for node, _ in self.foldings) + tuple(node for node, _ in self.composed)


class _Search:
    def __init__(self, graph: Graph, skipped: set[AffineNode]) -> None:
        self._nodes = graph.affines
        self._skipped = skipped
        self._affines = {
            node: node.affine
            for node in self._nodes
            if node.affine is not None and node.stop is None and node not in skipped
        }
        self._foldings: dict[MapNode, Folding] = {}
        self._steps: dict[AffineNode, Step] = {}

    def fold_all(self) -> bool:
        """Moves every affine that can end in linear maps; says whether any did."""
        moved = False
        for node in [*self._affines]:
            move = self._backward(node)
            if isinstance(move, Stop):
                move = self._forward(node, compose=False)
            moved |= self._commit(node, move)
        return moved

    def compose_all(self) -> bool:
        """Merges affines into the affines that follow them; says whether any were."""
        moved = False
        for node in [*self._affines]:
            moved |= self._commit(node, self._forward(node, compose=True))
        return moved

    def result(self) -> Plan:
        """The plan for what has been decided."""
        left_with: dict[AffineNode, list[str]] = {node: [] for node in self._nodes if node not in self._steps}
        folds = []
        for node in self._nodes:
            ends = self._ends(node)
            stays_in = next((end for end in ends if isinstance(end, AffineNode)), None)
            if stays_in is not None:
                left_with[stays_in].append(node.name)
                continue
            step = self._steps[node]
            path = tuple(passed.name for passed in step.passed)
            targets = tuple(end.name for end in ends)
            folds.append(Fold((node.name,), node.kind, step.direction, path, targets))
        left = []
        for node, names in left_with.items():
            stop = self._why(node)
            left.append(Left(tuple(names), node.kind, stop.code, stop.reason))
        return Plan(
            tuple(folds), tuple(left), tuple(self._steps.values()), dict(self._foldings), dict(self._affines)
        )

    def _commit(self, node: AffineNode, move: "_Move | Stop") -> bool:
        if isinstance(move, Stop):
            return False
        self._steps[node] = Step(node, move.direction, move.passed, move.targets)
        self._foldings.update(move.foldings)
        self._affines.update(move.composed)
        del self._affines[node]
        return True

    def _ends(self, node: Node) -> list[Node]:
        """Where the affine of a node is now: the node itself, or the maps and affines that took it."""
        step = self._steps.get(node) if isinstance(node, AffineNode) else None
        if step is None:
            return [node]
        return [*dict.fromkeys(end for target in step.targets for end in self._ends(target))]

    def _why(self, node: AffineNode) -> Stop:
        """The reason that an affine stays."""
        if node.stop is not None:
            return node.stop
        if node in self._skipped:
            return Stop(StopCode.SKIPPED, "it was asked to stay (skip/only)")
        backward, forward = self._backward(node), self._forward(node, compose=False)
        if not (isinstance(backward, Stop) and isinstance(forward, Stop)):
            message = f"'{node.name}' can still move after the search has ended"
            raise AssertionError(message)
        vague = backward.code in _SAYS_LITTLE and forward.code not in _SAYS_LITTLE
        code = forward.code if vague else backward.code
        return Stop(code, f"backward: {backward.reason}; forward: {forward.reason}")

    def _root(self, value: Value) -> Value:
        """The first value of the tensor that `value` is part of, now that some affines are gone."""
        while isinstance(value.producer, AffineNode) and value.producer in self._steps:
            value = value.producer.inputs[0]
        return value

    def _members(self, root: Value) -> Iterator[Value]:
        """The values that are one tensor with `root`."""
        yield root
        for user in root.uses:
            if isinstance(user, AffineNode) and user in self._steps:
                yield from self._members(user.outputs[0])

    def _uses(self, value: Value) -> tuple[list[Node], Stop | None]:
        """The nodes that read the tensor of `value`, and who sees it from outside, if anybody."""
        members = list(self._members(self._root(value)))
        uses = [user for member in members for user in member.uses if user not in self._steps]
        return uses, next((member.observer for member in members if member.observer is not None), None)

    def _backward(self, node: AffineNode) -> "_Move | Stop":
        return self._into_producer(node.inputs[0], self._affines[node], node)

    def _into_producer(self, value: Value, affine: Affine, reader: Node) -> "_Move | Stop":
        """Moves an affine from a value, whose one reader is `reader`, into what computes the value."""
        root = self._root(value)
        uses, observer = self._uses(root)
        if root.producer is None:
            return root.source
        if observer is not None:
            return Stop(
                observer.code, f"'{root.name}', the output of '{root.producer.name}', {observer.reason}"
            )
        others = [user.name for user in uses if user is not reader]
        if others or len(uses) > 1:
            return Stop(
                StopCode.OTHER_CONSUMERS,
                f"the output of {root.producer.op_type} '{root.producer.name}' is also read by "
                + (_listed(others) if others else "the same node a second time"),
            )
        match root.producer:
            case MapNode() as linear:
                return self._absorb(linear, affine, Direction.BACKWARD)
            case OpNode() as passed:
                moved = TABLE[passed.op].backward(passed, affine)
                if isinstance(moved, Stop):
                    return moved
                total = _Move(Direction.BACKWARD, (passed,))
                for source, part in zip(passed.inputs, moved, strict=True):
                    move = self._into_producer(source, part, passed)
                    if isinstance(move, Stop):
                        return move
                    total += move
                return total
        return Stop(
            StopCode.NO_RULE,
            f"its input comes from {root.producer.op_type} '{root.producer.name}', which stays",
        )

    def _forward(self, node: AffineNode, *, compose: bool) -> "_Move | Stop":
        return self._into_readers(node.outputs[0], self._affines[node], compose=compose)

    def _into_readers(self, value: Value, affine: Affine, *, compose: bool) -> "_Move | Stop":
        """Moves an affine from a value into everything that reads the value."""
        uses, observer = self._uses(value)
        if observer is not None:
            return Stop(observer.code, f"'{value.name}' {observer.reason}")
        if not uses:
            return Stop(StopCode.UNUSED, "nothing reads its output")
        total = _Move(Direction.FORWARD)
        for user in uses:
            move = self._into_reader(user, affine, compose=compose)
            if isinstance(move, Stop):
                return move
            total += move
        return total

    def _into_reader(self, user: Node, affine: Affine, *, compose: bool) -> "_Move | Stop":
        match user:
            case MapNode():
                return self._absorb(user, affine, Direction.FORWARD)
            case AffineNode() if compose and user in self._affines:
                composed = affine.then(self._affines[user])
                if not composed.fits(user.inputs[0].dtype):
                    return Stop(StopCode.OVERFLOW, f"composed with '{user.name}' it cannot be stored")
                return _Move(Direction.FORWARD, composed=((user, composed),))
            case OpNode():
                moved = TABLE[user.op].forward(user, affine)
                if isinstance(moved, Stop):
                    return moved
                move = self._into_readers(user.outputs[0], moved, compose=compose)
                return move if isinstance(move, Stop) else _Move(Direction.FORWARD, (user,)) + move
        return Stop(StopCode.NO_RULE, f"its output goes to {user.op_type} '{user.name}', which stays")

    def _absorb(self, node: MapNode, affine: Affine, direction: Direction) -> "_Move | Stop":
        """Lets a linear map take an affine, if its weights can hold it."""
        linear = node.linear
        folding = self._foldings.get(node, Folding(linear))
        backward = direction is Direction.BACKWARD
        axis, size, side = (
            (linear.output_axis, linear.out_channels, "output")
            if backward
            else (linear.input_axis, linear.in_channels, "input")
        )
        vectors = affine.along(axis, size)
        if vectors is None:
            channels = f"{side} channels of {node.op_type} '{node.name}' (axis {axis}, size {size})"
            reason = f"it does not act on the {channels}"
            return Stop(StopCode.CHANNEL_AXIS, reason)
        folding = folding.absorb_output(vectors) if backward else folding.absorb_input(vectors)
        if folding.shift_is_lost():
            reason = f"{node.op_type} '{node.name}' {linear.partial_kernel}, and the shift is not zero"
            return Stop(StopCode.PADDED_SHIFT, reason)
        defect = folding.defect()
        if defect is not None:
            return Stop(StopCode.OVERFLOW, f"{node.op_type} '{node.name}': {defect}")
        return _Move(direction, foldings=((node, folding),))


def _listed(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
