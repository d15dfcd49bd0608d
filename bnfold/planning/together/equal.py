"""Equal affines behind everything that reads one value, and before everything that one operator reads.

    f_i(s·x + t) for all readers i of x  =  the readers behind  s·x + t

What is cut into pieces, each piece normalised alike, and put together again (ghost batch norm, a layer for each step of
a loop), has many affines that are one: no single one of them may change x, and all together may. Between x and an
affine there may be what only picks elements or moves them about, if it asks of x what all others ask.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, Gathered, Node, Op, OpNode, Picked, Value
from bnfold.planning.backward import pull_for_all
from bnfold.planning.forward import Forward
from bnfold.planning.plan import Direction
from bnfold.planning.route import Ends, Route, changes_type
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode
from bnfold.rules import TABLE, Part

_MOVES_ELEMENTS = frozenset({Op.IDENTITY, Op.TRANSPOSE, Op.RESHAPE, Op.PICK, Op.GATHER})
_JOINS = frozenset({Op.CONCAT, Op.ADD, Op.MEAN, Op.CHOICE})
_DEEPEST = 16
"""How many operators may stand between a value and its affines."""

Parts = Mapping[Part, Float64Array]


@dataclass(frozen=True, slots=True)
class Demand:
    """What all readers of a value ask of it.

    Attributes:
        parts: The affine, as arrays for the value.
        paths: The affines that ask for it, each with the operators before it, nearest first.
        changed: The values between.
    """

    parts: Parts
    paths: Mapping[AffineNode, tuple[Node, ...]]
    changed: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """A way for several affines.

    Attributes:
        direction: Backward or forward.
        routes: Where their parts go.
        paths: The affines in the order in which they go, each with what it passes.
        changed: Values that are no longer what they were, besides those of the routes.
    """

    direction: Direction
    routes: dict[Part, Route]
    paths: Mapping[AffineNode, tuple[Node, ...]]
    changed: tuple[Value, ...] = ()


class MayGo(Protocol):
    """Whether affines may move at all."""

    def __call__(self, nodes: Iterable[AffineNode], *, forward: bool) -> bool:
        """Asked right before they would."""


class Together:
    """Finds ways that affines have only together.

    Args:
        tensors: The present state of the graph; it may change between two ways.
        affines: The affines, with their parts.
        ends: Which other affines may take them.
        may_go: Whether some of them may move, as things are then.
    """

    def __init__(self, tensors: Tensors, affines: Mapping[AffineNode, Parts], ends: Ends, may_go: MayGo) -> None:
        self._tensors, self._affines, self._ends, self._may_go = tensors, affines, ends, may_go

    def backward(self) -> Iterator[Joint]:
        """The ways of equal affines behind all readers of a value, into what computes it."""
        for value, demand in _demands(self._tensors, self._affines):
            nodes = _named_last(self._tensors, demand.paths)
            if nodes is None or not self._may_go(nodes, forward=False):
                continue
            found = {
                part: pull_for_all(self._tensors, value, array, part, self._ends)
                for part, array in demand.parts.items()
            }
            routes = {part: route for part, route in found.items() if isinstance(route, Route)}
            if len(routes) == len(found):
                passed = passed_on(routes.values())
                paths = {node: (*demand.paths[node], *passed) for node in nodes}
                yield Joint(Direction.BACKWARD, routes, paths, demand.changed)

    def forward(self, nodes: Iterable[Node], sweep: Forward) -> Iterator[Joint]:
        """The ways of affines before all that an operator reads, into what reads its result.

        Args:
            nodes: The nodes of the graph.
            sweep: Moves parts forward.
        """
        for group in _before_one_operator(self._tensors, nodes, self._affines):
            if not self._may_go(group, forward=True):
                continue
            starts = {
                part: {node: self._affines[node][part] for node in group if part in self._affines[node]}
                for part in Part
            }
            found = {part: sweep.push(given, part, self._ends) for part, given in starts.items() if given}
            routes = {part: route for part, route in found.items() if isinstance(route, Route)}
            if len(routes) == len(found):
                passed = passed_on(routes.values())
                paths = {node: _behind(self._tensors, node, passed) for node in group}
                yield Joint(Direction.FORWARD, routes, paths)


def passed_on(routes: Iterable[Route]) -> tuple[Node, ...]:
    """The nodes that some routes pass."""
    return tuple(dict.fromkeys(node for route in routes for node in route.passed))


def _named_last(tensors: Tensors, nodes: Collection[AffineNode]) -> list[AffineNode] | None:
    """The same affines, those whose results are outputs last: what two of one tensor give has one name then.

    None if two outputs would be one, or if a result must not share its memory.
    """
    read = Counter(tensors.root(node.inputs[0]) for node in nodes)
    outputs: dict[AffineNode, Value] = {}
    for node in nodes:
        source, seen = tensors.root(node.inputs[0]), tensors.observed(tensors.root(node.outputs[0]))
        if seen is None or seen.observer is None:
            continue
        shares = read[source] > 1 and (source in outputs.values() or seen.observer.code is not StopCode.MODEL_OUTPUT)
        if shares or seen.observer.code is StopCode.MUTATED:
            return None
        outputs[node] = source
    return [*(node for node in nodes if node not in outputs), *outputs]


def _demands(tensors: Tensors, affines: Mapping[AffineNode, Parts]) -> Iterator[tuple[Value, Demand]]:
    """The values all of whose readers come to several equal affines, before those that are made of them."""
    seen: set[Value] = set()
    for node in affines:
        value = tensors.root(node.inputs[0])
        above = [value]
        while isinstance(producer := value.producer, OpNode) and producer.op in _MOVES_ELEMENTS:
            value = tensors.root(producer.inputs[0])
            above.append(value)
            if len(above) == _DEEPEST:
                break
        for candidate in reversed(above):
            if candidate in seen:
                continue
            seen.add(candidate)
            found = _demand(tensors, candidate, affines, _DEEPEST) if candidate.producer is not None else None
            if found is not None and len(found.paths) > 1:
                yield candidate, found


def _demand(tensors: Tensors, root: Value, affines: Mapping[AffineNode, Parts], depth: int) -> Demand | None:
    """What is asked of a value; None if its readers ask for different things, or somebody sees it."""
    readers = tensors.uses(root)
    if tensors.observed(root) is not None or not readers or depth == 0:
        return None
    found: list[Demand] = []
    for reader in readers:
        if any(tensors.instead(value) is not value for value in reader.inputs):
            return None
        if isinstance(reader, AffineNode) and reader in affines:
            found.append(Demand(affines[reader], {reader: ()}, ()))
            continue
        passed = _past(tensors, root, reader, affines, depth) if isinstance(reader, OpNode) else None
        if passed is None:
            return None
        found.append(passed)
    return _all_alike(found)


def _past(
    tensors: Tensors, root: Value, reader: OpNode, affines: Mapping[AffineNode, Parts], depth: int
) -> Demand | None:
    """What is asked of a value by all that reads what an operator makes of it."""
    if reader.op not in _MOVES_ELEMENTS or root in map(tensors.root, reader.also_reads):
        return None
    if changes_type(root, reader) is not None:
        return None
    found: list[Demand] = []
    idle: list[Value] = []
    for position, output in enumerate(reader.outputs):
        behind = tensors.root(output)
        if len(reader.outputs) > 1 and not tensors.uses(behind) and tensors.observed(behind) is None:
            idle.append(output)
            continue
        asked = _demand(tensors, behind, affines, depth - 1)
        parts = None if asked is None else _before(reader, position, asked.parts)
        if asked is None or parts is None:
            return None
        own = () if any(tensors.root(affine.inputs[0]) is behind for affine in asked.paths) else (output,)
        paths = {affine: (*path, reader) for affine, path in asked.paths.items()}
        found.append(Demand(parts, paths, (*own, *asked.changed)))
    together = _all_alike(found)
    return None if together is None else replace(together, changed=(*together.changed, *idle))


def _before(reader: OpNode, position: int, parts: Parts) -> Parts | None:
    """What is asked of the whole if this is asked of what one output takes of it."""
    moved: dict[Part, Float64Array] = {}
    for part, array in parts.items():
        if isinstance(reader.parameters, Picked):
            if any(array.shape[axis] != 1 for axis in reader.parameters.outputs[position]):
                return None
            moved[part] = array
            continue
        if isinstance(reader.parameters, Gathered):
            axis, rank = reader.parameters.axis, reader.parameters.rank
            if any(size != 1 for size in array.shape[axis : axis + rank]):
                return None
        ways = TABLE[reader.op].backward(reader, position, array, part)
        if isinstance(ways, Stop) or ways[0][0] is None:
            return None
        moved[part] = ways[0][0]
    return moved


def _all_alike(found: list[Demand]) -> Demand | None:
    """All demands as one, if they are for the same."""
    if not found or not all(_same(found[0].parts, demand.parts) for demand in found[1:]):
        return None
    return Demand(
        found[0].parts,
        {affine: path for demand in found for affine, path in demand.paths.items()},
        tuple(value for demand in found for value in demand.changed),
    )


def _same(first: Parts, second: Parts) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[part], second[part]) for part in first)


def _behind(tensors: Tensors, node: AffineNode, passed: Iterable[Node]) -> tuple[Node, ...]:
    """Those of the operators that a sweep passes that are behind an affine."""
    reached, path = {tensors.root(node.outputs[0])}, []
    for operator in passed:
        if not reached.isdisjoint(map(tensors.root, operator.inputs)):
            path.append(operator)
            reached.update(map(tensors.root, operator.outputs))
    return tuple(path)


def _before_one_operator(
    tensors: Tensors, nodes: Iterable[Node], affines: Mapping[AffineNode, Parts]
) -> Iterator[list[AffineNode]]:
    """Affines that all inputs of an operator come from, each once."""
    for node in nodes:
        if not isinstance(node, OpNode) or node.op not in _JOINS:
            continue
        sources = [_affine_before(tensors, value) for value in node.inputs]
        found = [source for source in dict.fromkeys(sources) if isinstance(source, AffineNode) and source in affines]
        if len(found) > 1 and all(source in affines for source in sources):
            yield found


def _affine_before(tensors: Tensors, value: Value) -> Node | None:
    producer = tensors.root(value).producer
    for _ in range(_DEEPEST):
        if not isinstance(producer, OpNode) or producer.op not in _MOVES_ELEMENTS:
            break
        producer = tensors.root(producer.inputs[0]).producer
    return producer
