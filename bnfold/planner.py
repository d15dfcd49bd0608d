"""The search: where each affine of a graph can go, by the rules of `bnfold.rules`.

An affine first tries to go backward, into the linear map that computes its input, then forward, into everything that
reads its output; what neither takes is composed into the affines that follow. This repeats until nothing moves.

The graph is only read. What has moved so far is kept beside it: an affine that is gone makes its input and its output
one tensor, so producers and uses are looked up through the affines that are gone.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

from bnfold.affine import Affine
from bnfold.errors import UsageError
from bnfold.graph import AffineNode, Graph, MapNode, Node, OpNode, Stop, StopCode, Value
from bnfold.plan import Direction, Fold, Left, Plan, Step
from bnfold.rules import TABLE
from bnfold.weights import Folding

_SAYS_LITTLE = frozenset({StopCode.MODEL_INPUT, StopCode.MODEL_OUTPUT, StopCode.NO_RULE, StopCode.NONLINEAR})


def plan(graph: Graph, *, skip: tuple[str, ...] = (), only: tuple[str, ...] = (), compose: bool = True) -> Plan:
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
    search = _Search(graph, skipped, compose=compose)
    while search.fold_all() or search.compose_all():
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


class _Tensors:
    """The values of a graph as tensors: an affine that is gone makes its input and its output one tensor."""

    def __init__(self) -> None:
        self._parents: dict[Value, Value] = {}
        self._uses: dict[Value, Counter[Node]] = {}
        self._observed: dict[Value, Value | None] = {}

    def root(self, value: Value) -> Value:
        """The first value of the tensor that `value` is part of."""
        root = value
        while root in self._parents:
            root = self._parents[root]
        while value is not root:
            self._parents[value], value = root, self._parents[value]
        return root

    def uses(self, root: Value) -> Counter[Node]:
        """The nodes that read a tensor, and how many times each."""
        if root not in self._uses:
            self._uses[root] = Counter(root.uses)
        return self._uses[root]

    def observed(self, root: Value) -> Value | None:
        """The value as which a tensor is seen from outside the graph, if it is."""
        return self._observed.get(root, root if root.observer is not None else None)

    def remove(self, node: AffineNode) -> None:
        """Makes the input and the output of an affine one tensor."""
        source, target = self.root(node.inputs[0]), self.root(node.outputs[0])
        uses = self.uses(source)
        del uses[node]
        uses.update(self.uses(target))
        self._observed[source] = self.observed(source) or self.observed(target)
        self._parents[target] = source


class _Search:
    def __init__(self, graph: Graph, skipped: set[AffineNode], *, compose: bool) -> None:
        self._compose = compose
        self._nodes = graph.affines
        self._skipped = skipped
        self._affines = {
            node: node.affine
            for node in self._nodes
            if node.affine is not None and node.stop is None and node not in skipped
        }
        self._tensors = _Tensors()
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
        for node in [*self._affines] if self._compose else ():
            moved |= self._commit(node, self._forward(node, compose=True))
        return moved

    def result(self) -> Plan:
        """The plan for what has been decided."""
        ends = self._ends()
        left_with: dict[AffineNode, list[str]] = {node: [] for node in self._nodes if node not in self._steps}
        folds = []
        for node in self._nodes:
            stays_in = next((end for end in ends[node] if isinstance(end, AffineNode)), None)
            if stays_in is not None:
                left_with[stays_in].append(node.name)
                continue
            step = self._steps[node]
            path = tuple(passed.name for passed in step.passed)
            targets = tuple(end.name for end in ends[node])
            folds.append(Fold((node.name,), node.kind, step.direction, path, targets))
        left = []
        for node, names in left_with.items():
            stop = self._why(node)
            left.append(Left(tuple(names), node.kind, stop.code, stop.reason))
        return Plan(tuple(folds), tuple(left), tuple(self._steps.values()), dict(self._foldings), dict(self._affines))

    def _commit(self, node: AffineNode, move: "_Move | Stop") -> bool:
        if isinstance(move, Stop):
            return False
        self._steps[node] = Step(node, move.direction, move.passed, move.targets)
        self._foldings.update(move.foldings)
        self._affines.update(move.composed)
        del self._affines[node]
        self._tensors.remove(node)
        return True

    def _ends(self) -> dict[AffineNode, list[Node]]:
        """Where each affine is now: in its own node, or in the maps and affines that took it."""
        ends: dict[AffineNode, list[Node]] = {}
        for node in reversed(self._nodes):  # an affine is composed only into later ones
            step = self._steps.get(node)
            found: list[Node] = [node] if step is None else []
            for target in () if step is None else step.targets:
                found += ends[target] if isinstance(target, AffineNode) else [target]
            ends[node] = [*dict.fromkeys(found)]
        return ends

    def _why(self, node: AffineNode) -> Stop:
        """The reason that an affine stays."""
        if node.stop is not None:
            return node.stop
        if node in self._skipped:
            return Stop(StopCode.SKIPPED, "it was asked to stay (skip/only)")
        backward, forward = self._backward(node), self._forward(node, compose=self._compose)
        if not (isinstance(backward, Stop) and isinstance(forward, Stop)):
            message = f"'{node.name}' can still move after the search has ended"
            raise AssertionError(message)
        vague = backward.code in _SAYS_LITTLE and forward.code not in _SAYS_LITTLE
        code = forward.code if vague else backward.code
        return Stop(code, f"backward: {backward.reason}; forward: {forward.reason}")

    def _backward(self, node: AffineNode) -> "_Move | Stop":
        """Moves an affine into what computes its input; the region that it crosses is a tree."""
        total = _Move(Direction.BACKWARD)
        waiting: list[tuple[Value, Affine, Node]] = [(node.inputs[0], self._affines[node], node)]
        while waiting:
            value, affine, reader = waiting.pop()
            root = self._tensors.root(value)
            stop = self._seen_by_others(root, reader)
            if stop is not None:
                return stop
            match root.producer:
                case None:
                    return root.source
                case MapNode() as linear:
                    move = self._absorb(linear, affine, Direction.BACKWARD)
                    if isinstance(move, Stop):
                        return move
                    total += move
                case OpNode() as passed:
                    parts = TABLE[passed.op].backward(passed, affine)
                    if isinstance(parts, Stop):
                        return parts
                    total += _Move(Direction.BACKWARD, (passed,))
                    waiting += [(*pair, passed) for pair in zip(passed.inputs, parts, strict=True)]
                case Node() as other:
                    return Stop(StopCode.NO_RULE, f"its input comes from {other.op_type} '{other.name}', which stays")
        return total

    def _seen_by_others(self, root: Value, reader: Node) -> Stop | None:
        """Why a tensor must keep its value: somebody reads it besides one use by `reader`."""
        if root.producer is None:
            return None
        seen = self._tensors.observed(root)
        if seen is not None and seen.observer is not None:
            output = f"'{seen.name}', the output of '{root.producer.name}',"
            return Stop(seen.observer.code, f"{output} {seen.observer.reason}")
        uses = self._tensors.uses(root)
        if len(uses) == 1 and uses[reader] == 1:
            return None
        others = (user.name for user in uses if user is not reader)
        who = _listed(others, len(uses) - 1) if len(uses) > 1 else "the same node a second time"
        of = f"the output of {root.producer.op_type} '{root.producer.name}'"
        return Stop(StopCode.OTHER_CONSUMERS, f"{of} is also read by {who}")

    def _forward(self, node: AffineNode, *, compose: bool) -> "_Move | Stop":
        """Moves an affine into everything that reads its output."""
        total = _Move(Direction.FORWARD)
        waiting: list[tuple[Value, Affine]] = [(node.outputs[0], self._affines[node])]
        while waiting:
            value, affine = waiting.pop()
            root = self._tensors.root(value)
            seen = self._tensors.observed(root)
            if seen is not None and seen.observer is not None:
                return Stop(seen.observer.code, f"'{seen.name}' {seen.observer.reason}")
            if not self._tensors.uses(root):
                return Stop(StopCode.UNUSED, "nothing reads its output")
            for user in self._tensors.uses(root):
                if isinstance(user, OpNode):
                    moved = TABLE[user.op].forward(user, affine)
                    if isinstance(moved, Stop):
                        return moved
                    total += _Move(Direction.FORWARD, (user,))
                    waiting.append((user.outputs[0], moved))
                    continue
                move = self._into_end(user, affine, compose=compose)
                if isinstance(move, Stop):
                    return move
                total += move
        more = [node.name for node, folding in total.foldings if folding.adds_work() and not self._has_worked(node)]
        if len(more) > 1:
            reason = f"{_listed(iter(more), len(more))} would each need an Add, {len(more)} for one that goes"
            return Stop(StopCode.MORE_WORK, reason)
        return total

    def _has_worked(self, node: MapNode) -> bool:
        """Whether a map has been given an operation of its own already."""
        folding = self._foldings.get(node)
        return folding is not None and folding.adds_work()

    def _into_end(self, user: Node, affine: Affine, *, compose: bool) -> "_Move | Stop":
        if isinstance(user, MapNode):
            return self._absorb(user, affine, Direction.FORWARD)
        if compose and isinstance(user, AffineNode) and user in self._affines:
            composed = affine.then(self._affines[user])
            if not composed.fits(user.inputs[0].dtype):
                return Stop(StopCode.OVERFLOW, f"composed with '{user.name}' it cannot be stored")
            return _Move(Direction.FORWARD, composed=((user, composed),))
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


def _listed(names: Iterator[str], count: int, limit: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in islice(names, limit))
    return shown if count <= limit else f"{shown} and {count - limit} more"
