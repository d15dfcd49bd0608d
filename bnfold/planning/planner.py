"""The search: where each affine of a graph can go, by the rules of `bnfold.rules`.

An affine first tries to go backward, into the linear maps that compute its input, then with its scale backward and its
shift forward, then forward, into everything that reads its output. What stays is composed into what
follows it. Branches that add up to one map become one (see `bnfold.planning.merging`). This repeats until nothing
moves.

The graph is only read; what has moved so far is kept beside it, in `bnfold.planning.tensors`.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import Folding
from bnfold.algebra.rounding import Float64Array
from bnfold.errors import UsageError, perhaps
from bnfold.graph import AffineNode, ConstantNorm, Graph, Kind, MapNode, Node, Value
from bnfold.planning.absorbing import Holding
from bnfold.planning.backward import pull
from bnfold.planning.destinations import Staying
from bnfold.planning.forward import Forward
from bnfold.planning.merging.search import Found, Merging
from bnfold.planning.outcome import Outcome
from bnfold.planning.plan import Apart, Direction, Plan, Step
from bnfold.planning.recognised import spelled_out_stop
from bnfold.planning.route import Route
from bnfold.planning.together.equal import Together, passed_on
from bnfold.planning.together.shifts import shares
from bnfold.reasons import Stop, StopCode
from bnfold.rules import Part


def plan(
    graph: Graph,
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    compose: bool = True,
    merge: bool = False,
) -> Plan:
    """Decides what becomes of every affine of a graph.

    Args:
        graph: The lifted model; it is not changed.
        skip: Glob patterns (case-sensitive) of the names of affines that must stay as they are.
        only: Glob patterns; if given, every affine that matches none of them stays.
        compose: Whether an affine that stays may be merged into an affine behind it.
        merge: Whether branches may become one map; the front-end must know how to carry out the plan's junctions.

    Returns:
        The plan.

    Raises:
        UsageError: A pattern matches no affine.
    """
    norms: list[ConstantNorm | AffineNode] = [*graph.constant_norms, *graph.affines]
    names = [node.name for node in norms]
    for option, patterns in (("skip", skip), ("only", only)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                message = f"{option} pattern '{pattern}' matches no BatchNorm of this model"
                hint = f"{perhaps(pattern, names)} `bnfold inspect` lists their names.".lstrip()
                raise UsageError(message, hint=hint)
    skipped = {
        node
        for node in norms
        if any(fnmatchcase(node.name, pattern) for pattern in skip)
        or (only and not any(fnmatchcase(node.name, pattern) for pattern in only))
    }
    search = _Search(graph, skipped, compose=compose, merge=merge)
    while search.fold_all() or search.merge_all() or search.compose_all():
        pass
    return search.outcome.plan()


@dataclass(frozen=True, slots=True)
class _Move:
    """A way for an affine, all of it: the routes of its parts, and what becomes of their ends."""

    routes: tuple[Route, ...]
    foldings: dict[MapNode, Folding]
    affines: dict[AffineNode, Affine]


class _Search:
    def __init__(
        self, graph: Graph, skipped: Container[AffineNode | ConstantNorm], *, compose: bool, merge: bool
    ) -> None:
        self.outcome = Outcome(graph, skipped)
        self._compose = compose
        self._graph = graph
        self._affines = self.outcome.affines
        self._foldings = self.outcome.foldings
        self._tensors = self.outcome.tensors
        self._forward = Forward(graph, self._tensors)
        self._holding = Holding(self._tensors, self._foldings, self._affines)
        self._parts_of: dict[AffineNode, tuple[Affine, dict[Part, Float64Array]]] = {}
        merging = Merging(graph, self._tensors, self._foldings, self._affines, compose=compose)
        self._merging = merging if merge else None

    def fold_all(self) -> bool:
        """Moves every affine that can end in linear maps; says whether any did."""
        moved = False
        for node in [*self._affines]:
            moved |= self._try(node, Direction.BACKWARD)
        moved |= self._split_together()
        moved |= self._move_together()
        # What is read last goes first, so that a chain in front of a map needs one round.
        for node in reversed([*self._affines]):
            # A scale for each output of a layer costs its quantised weight nothing, one for each input does.
            moved |= self._try(node, Direction.BOTH) or self._try(node, Direction.FORWARD)
        return moved

    def _split_together(self) -> bool:
        """Moves the shifts of all BNs on a residual stream forward in one sweep, and their scales backward.

        One by one would take the square of their number: each shift travels down the whole stream.
        """
        ends = Staying(self._affines, compose=False)
        shifts: dict[AffineNode, Float64Array] = {}
        scales: dict[AffineNode, Route] = {}
        for node in self._affines:
            parts = self._parts(node)
            leaves = Part.SHIFT in parts and self._forward.may_leave(node, Part.SHIFT)
            if node.kind is not Kind.BATCH_NORM or not leaves:
                continue
            scale = parts.get(Part.SCALE)
            route = Route() if scale is None else pull(self._tensors, node, scale, Part.SCALE, ends)
            if isinstance(route, Route):
                shifts[node], scales[node] = parts[Part.SHIFT], route
        sweep = self._forward.push(shifts, Part.SHIFT, ends) if len(shifts) > 1 else None
        if not isinstance(sweep, Route) or sweep.affines:
            return False
        foldings: dict[MapNode, Folding] = {}
        for route in scales.values():
            self._holding.absorb(foldings, {Part.SCALE: route}, Direction.BACKWARD)
        self._holding.absorb(foldings, {Part.SHIFT: sweep}, Direction.FORWARD)
        scaled = any(route.affines for route in scales.values())
        if scaled or self._holding.defect(foldings, more_work=len(shifts)) is not None:
            return False
        self._foldings.update(foldings)
        own = shares(self._tensors, shifts, sweep)
        for node, route in scales.items():
            share = own[node]
            direction = Direction.BOTH if route.maps else Direction.FORWARD
            changed, passed = (*route.changed, *share.changed), (*route.passed, *share.passed)
            self._take_away(Step(node, direction, changed, passed, (*route.maps, *share.targets)))
        return True

    def _move_together(self) -> bool:
        """Moves affines that only go together: equal ones behind a value backward, those before an operator forward."""
        parts = {node: self._parts(node) for node in self._affines}
        ends = Staying(self._affines, compose=False)

        def may_go(nodes: Iterable[AffineNode], *, forward: bool) -> bool:
            return all(
                node in self._affines
                and self._parts(node) is parts[node]
                and spelled_out_stop(self._tensors, self._affines, node, forward=forward) is None
                for node in nodes
            )

        moved = False
        together = Together(self._tensors, parts, ends, may_go)
        for joint in chain(together.backward(), together.forward(self._graph.nodes, self._forward)):
            forward = joint.direction is Direction.FORWARD
            routes = ({}, joint.routes) if forward else (joint.routes, {})
            move = self._ended([*joint.paths], *routes)
            if not isinstance(move, Stop):
                self._carry_out(move, joint.direction, joint.paths, joint.changed)
                moved = True
        return moved

    def merge_all(self) -> bool:
        """Makes one map of every sum of branches that can be one; says whether any could."""
        if self._merging is None:
            return False
        count = len(self.outcome.merges)
        self.outcome.apart.clear()
        for place in self._merging.places:
            found = self._merging.at(place)
            while isinstance(found, Found):
                self._join(found)
                found = self._merging.at(place)
            if found is not None:
                self.outcome.apart.append(Apart((place.name,), found.code, found.reason))
        return len(self.outcome.merges) > count

    def compose_all(self) -> bool:
        """Merges affines into the affines next to them; says whether any were."""
        if not self._compose:
            return False
        moved = [self._try(node, Direction.FORWARD, compose=True) for node in [*self._affines]]
        if not any(moved):
            moved = [self._try(node, Direction.BACKWARD, compose=True) for node in [*self._affines]]
        return any(moved)

    def _join(self, found: Found) -> None:
        """Carries out a merge."""
        assert self._merging is not None  # it has found the merge
        junction = replace(found.junction, after=len(self.outcome.steps))
        target = junction.target
        replaced = [node for node, _ in (*junction.collapsed, *junction.bypassed)]
        for node in (*junction.gone, *replaced):
            self._merging.gone.add(node)
            if isinstance(node, MapNode):
                self._foldings.pop(node, None)
            elif isinstance(node, AffineNode):
                del self._affines[node]
        for node in junction.gone:
            self._tensors.drop(node)
        for node, position in junction.collapsed:
            self._tensors.remove(node, position)
        for node, position in junction.bypassed:
            self._tensors.bypass(node, position)
        if found.folding is not None and isinstance(target, MapNode):
            self._foldings[target] = found.folding
            self._tensors.become(target, found.folding.linear)
        if found.affine is not None and isinstance(target, AffineNode):
            self._affines[target] = found.affine
        self.outcome.junctions.append(junction)
        self.outcome.merges.append(found.merge)

    def _try(self, node: AffineNode, direction: Direction, *, compose: bool = False) -> bool:
        """Moves an affine if it can go; says whether it did."""
        move = self._move(node, direction, compose=compose)
        if isinstance(move, Stop):
            # What is said of an affine that stays: what stops it when nothing moves any more.
            if direction is Direction.FORWARD or not compose:
                self.outcome.stops[node, direction] = move
            return False
        self._carry_out(move, direction, {node: passed_on(move.routes)})
        return True

    def _carry_out(
        self,
        move: _Move,
        direction: Direction,
        paths: Mapping[AffineNode, tuple[Node, ...]],
        changed: Sequence[Value] = (),
    ) -> None:
        """Makes a move, with which some affines go; the first step names all that changes."""
        changed = tuple(dict.fromkeys((*(value for route in move.routes for value in route.changed), *changed)))
        self._foldings.update(move.foldings)
        self._affines.update(move.affines)
        for node, passed in paths.items():
            self._take_away(Step(node, direction, changed, passed, (*move.foldings, *move.affines)))
            changed = ()

    def _take_away(self, step: Step) -> None:
        self.outcome.steps[step.source] = step
        del self._affines[step.source]
        self._tensors.remove(step.source)

    def _parts(self, node: AffineNode) -> dict[Part, Float64Array]:
        """The parts of an affine that do anything."""
        affine = self._affines[node]
        known = self._parts_of.get(node)
        if known is not None and known[0] is affine:
            return known[1]
        # The shift first: fewer operators let it pass, so its reason says more.
        parts = {Part.SHIFT: affine.shift, Part.SCALE: affine.scale}
        active = {part: array for part, array in parts.items() if (array != part.neutral).any()}
        active = active or {Part.SCALE: affine.scale}
        self._parts_of[node] = affine, active
        return active

    def _move(self, node: AffineNode, direction: Direction, *, compose: bool = False) -> "_Move | Stop":
        """How an affine can go, all of it, or why it cannot."""
        parts = self._parts(node)
        if direction is not Direction.BOTH:
            stop = spelled_out_stop(self._tensors, self._affines, node, forward=direction is Direction.FORWARD)
            if stop is not None:
                return stop
        elif len(parts) < 2 or node.kind is not Kind.BATCH_NORM:
            return Stop(StopCode.NO_RULE, "it has one part only")
        ends = Staying(self._affines, compose=compose)
        backward: dict[Part, Route] = {}
        forward: dict[Part, Route] = {}
        for part, array in parts.items():
            back = direction is Direction.BACKWARD or (direction is Direction.BOTH and part is Part.SCALE)
            if back:
                route = pull(self._tensors, node, array, part, ends)
            else:
                route = self._forward.push({node: array}, part, ends)
            if isinstance(route, Stop):
                return route
            (backward if back else forward)[part] = route
        return self._ended([node], backward, forward)

    def _ended(
        self, nodes: Sequence[AffineNode], backward: dict[Part, Route], forward: dict[Part, Route]
    ) -> "_Move | Stop":
        """What the ends of the routes hold then, if they can hold it."""
        foldings: dict[MapNode, Folding] = {}
        self._holding.absorb(foldings, backward, Direction.BACKWARD)
        self._holding.absorb(foldings, forward, Direction.FORWARD)
        fair = [node for node in nodes if node.kind is Kind.BATCH_NORM or node.operations > 1]
        stop = self._holding.defect(foldings, more_work=len(fair))
        affines = self._holding.composed(backward, forward) if stop is None else stop
        if isinstance(affines, Stop):
            return affines
        return _Move((*backward.values(), *forward.values()), foldings, affines)
