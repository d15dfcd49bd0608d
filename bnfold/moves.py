"""How one part of an affine, the scale or the shift, gets from where it is into linear maps.

Backward, the region that it crosses is a tree, since nothing else may read what changes: each node offers ways to do to
its inputs what should be done to its output, and the first way whose inputs can all be served is taken. Forward, it is
one sweep in the order of the graph: everything that reads what changes has to pass it on or take it.
"""

import heapq
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from bnfold.affine import Affine
from bnfold.graph import AffineNode, Graph, MapNode, Node, Op, OpNode, Stop, StopCode, Value
from bnfold.rounding import Float64Array
from bnfold.rules import TABLE, Part
from bnfold.rules.row import Arrays
from bnfold.tensors import Tensors

_STOPS_SHIFT = frozenset({Op.RELU, Op.MUL, Op.DIV, Op.SUM, Op.ZERO_PAD, Op.OPAQUE})
_STOPS_SCALE = frozenset({Op.OPAQUE})


@dataclass(slots=True)
class Route:
    """Where a part of an affine ends up.

    Attributes:
        maps: The linear maps that take it, as a vector along their channels.
        affines: The affines that stay and take it, as an array on their output (backward) or input (forward).
        changed: The values that are no longer what they were.
        passed: The nodes that it moves past.
    """

    maps: dict[MapNode, Float64Array] = field(default_factory=dict)
    affines: dict[AffineNode, Float64Array] = field(default_factory=dict)
    changed: list[Value] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)

    def merge(self, other: "Route") -> None:
        """Adds another route, through other nodes."""
        self.maps.update(other.maps)
        self.affines.update(other.affines)
        self.changed += other.changed
        self.passed += other.passed


_Search = Generator["_Search", "Route | Stop", "Route | Stop"]


class Ends(Protocol):
    """Which affines that stay may be ends of a route."""

    def takes(self, node: AffineNode) -> bool:
        """Whether an affine takes another into itself."""

    def takes_shift(self, node: AffineNode, shape: tuple[int, ...]) -> bool:
        """Whether a node adds a constant that takes a shift of this shape, and is scaled where a scale passes."""


def pull(tensors: Tensors, node: AffineNode, array: Float64Array, part: Part, ends: Ends) -> Route | Stop:
    """Moves a part of an affine backward.

    Args:
        tensors: The present state of the graph.
        node: The affine.
        array: The part, on the input of the affine.
        part: Which part it is.
        ends: Which other affines may take it.

    Returns:
        The route, or the reason why there is none.
    """
    stack: list[_Search] = [_pull(tensors, node.inputs[0], node, array, part, ends)]
    result: Route | Stop | None = None
    while stack:
        try:
            stack.append(next(stack[-1]) if result is None else stack[-1].send(result))
            result = None
        except StopIteration as finished:
            stack.pop()
            result = finished.value
    assert result is not None  # noqa: S101 - every search returns
    return result


def _pull(
    tensors: Tensors,
    value: Value,
    reader: Node,
    array: Float64Array,
    part: Part,
    ends: Ends,
) -> _Search:
    root = tensors.root(value)
    if root.producer is None:
        return root.source
    stop = seen_by_others(tensors, root, reader)
    if stop is not None:
        return stop
    producer = root.producer
    route = Route(changed=[root], passed=[producer])
    match producer:
        case MapNode():
            vector = into_map(producer, producer.linear.output_axis, producer.linear.out_channels, array, "output")
            return vector if isinstance(vector, Stop) else Route(maps={producer: vector}, changed=[root])
        case AffineNode():
            return (yield from _past_affine(tensors, producer, route, array, part, ends))
        case OpNode():
            position = next(at for at, output in enumerate(producer.outputs) if output is root)
            # An output that nothing reads may change along with this one.
            idle = (output for output in producer.outputs if not output.uses and output.observer is None)
            route.changed += [output for output in idle if output is not root]
            ways = TABLE[producer.op].backward(producer, position, array, part)
            if isinstance(ways, Stop):
                return ways
            reasons: list[Stop] = []
            for way in ways:
                found = yield from _serve(tensors, producer, way, part, ends)
                if isinstance(found, Route):
                    route.merge(found)
                    return route
                reasons.append(found)
            return reasons[0]
    message = f"a {type(producer).__name__} is no node that anything moves past"
    raise TypeError(message)


def _serve(tensors: Tensors, node: OpNode, way: Arrays, part: Part, ends: Ends) -> _Search:
    """Does to the inputs of a node what one way asks for."""
    route = Route()
    for source, array in zip(node.inputs, way, strict=True):
        if array is None or (array == part.neutral).all():
            continue
        found = yield _pull(tensors, source, node, array, part, ends)
        if isinstance(found, Stop):
            return found
        route.merge(found)
    return route


def _past_affine(
    tensors: Tensors,
    node: AffineNode,
    route: Route,
    array: Float64Array,
    part: Part,
    ends: Ends,
) -> _Search:
    """Into an affine that stays, or past an Add of a constant that varies along more than the channels.

    Such a constant, a position embedding for instance, takes the shift, and is scaled where the scale passes:
    s·(x + c) + t = s·x + (s·c + t).
    """
    if ends.takes(node):
        return Route(affines={node: array}, changed=route.changed)
    if not ends.takes_shift(node, array.shape):
        return Stop(StopCode.NO_RULE, f"its input comes from {node.op_type} '{node.name}', which stays")
    if part is Part.SHIFT:
        return Route(affines={node: array}, changed=route.changed)
    found = yield _pull(tensors, node.inputs[0], node, array, part, ends)
    if isinstance(found, Stop):
        return found
    route.affines[node] = array
    route.merge(found)
    return route


def seen_by_others(tensors: Tensors, root: Value, reader: Node) -> Stop | None:
    """Why a tensor must keep its value: somebody reads it besides one use by `reader`."""
    assert root.producer is not None  # noqa: S101 - the caller has looked
    seen = tensors.observed(root)
    if seen is not None and seen.observer is not None:
        output = f"'{seen.name}', the output of '{root.producer.name}',"
        return Stop(seen.observer.code, f"{output} {seen.observer.reason}")
    uses = tensors.uses(root)
    if len(uses) == 1 and uses[reader] == 1:
        return None
    others = (user.name for user in uses if user is not reader)
    who = listed(others, len(uses) - 1) if len(uses) > 1 else "the same node a second time"
    of = f"the output of {root.producer.op_type} '{root.producer.name}'"
    return Stop(StopCode.OTHER_CONSUMERS, f"{of} is also read by {who}")


def into_map(node: MapNode, axis: int, channels: int, array: Float64Array, side: str) -> Float64Array | Stop:
    """The part as a vector along the channels of a linear map, or why it is none."""
    vector = Affine(array, array).along(axis, channels)
    if vector is not None:
        return vector.scale
    where = f"{side} channels of {node.op_type} '{node.name}' (axis {axis}, size {channels})"
    return Stop(StopCode.CHANNEL_AXIS, f"it does not act on the {where}")


class Forward:
    """Moves parts of affines forward.

    Args:
        graph: The graph.
        tensors: The present state of it.
    """

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self._tensors = tensors
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._leaves = {part: _values_that_can_leave(graph, part) for part in Part}

    def may_leave(self, node: AffineNode, part: Part) -> bool:
        """Whether it is worth while to try."""
        return node.outputs[0] in self._leaves[part]

    def push(self, starts: Mapping[AffineNode, Float64Array], part: Part, ends: Ends) -> Route | Stop:
        """Moves a part of one affine, or of several in one sweep, forward.

        Args:
            starts: The affines, and the part on the output of each.
            part: Which part it is.
            ends: Which other affines may take it.

        Returns:
            The route, or the reason why there is none.
        """
        if not all(self.may_leave(node, part) for node in starts):
            # Something is likely to stop it: look there first, and only there.
            stop = self._sweep(starts, part, ends, Route(), _Waiting(self._order, nearest_stop=True))
            if stop is not None:
                return stop
        route = Route()
        stop = self._sweep(starts, part, ends, route, _Waiting(self._order, nearest_stop=False))
        return route if stop is None else stop

    def _sweep(
        self,
        starts: Mapping[AffineNode, Float64Array],
        part: Part,
        ends: Ends,
        route: Route,
        waiting: "_Waiting",
    ) -> Stop | None:
        stop = None
        for node, array in starts.items():
            stop = stop or self._reach(node.outputs[0], array, part, waiting)
        while stop is None and waiting:
            stop = self._into(waiting, part, ends, route)
        return stop

    def _reach(self, value: Value, array: Float64Array, part: Part, waiting: "_Waiting") -> Stop | None:
        """Lets every reader of a tensor know that it changes."""
        root = self._tensors.root(value)
        seen = self._tensors.observed(root)
        if seen is not None and seen.observer is not None:
            return Stop(seen.observer.code, f"'{seen.name}' {seen.observer.reason}")
        readers = [*self._tensors.uses(root)]
        if not readers:
            return Stop(StopCode.UNUSED, "nothing reads its output")
        if waiting.nearest_stop and value not in self._leaves[part]:
            blocking = [reader for reader in readers if not self._lets_through(reader, part)]
            readers = sorted(blocking, key=lambda reader: not _stops(reader, part))[:1] or readers
        for reader in readers:
            waiting.add(reader, root, array)
        return None

    def _lets_through(self, reader: Node, part: Part) -> bool:
        return not _stops(reader, part) and (
            not isinstance(reader, OpNode) or all(output in self._leaves[part] for output in reader.outputs)
        )

    def _into(self, waiting: "_Waiting", part: Part, ends: Ends, route: Route) -> Stop | None:
        """Moves into the next reader: its end, or what it passes on."""
        reader, arrays = waiting.pop()
        match reader:
            case MapNode(linear=linear):
                array = arrays[self._tensors.root(reader.inputs[0])]
                vector = into_map(reader, linear.input_axis, linear.in_channels, array, "input")
                if isinstance(vector, Stop):
                    return vector
                if part is Part.SHIFT and linear.partial_kernel and vector.any():
                    reason = f"{reader.op_type} '{reader.name}' {linear.partial_kernel}, and the shift is not zero"
                    return Stop(StopCode.PADDED_SHIFT, reason)
                route.maps[reader] = vector
                return None
            case AffineNode():
                if not ends.takes(reader):
                    return Stop(StopCode.NO_RULE, f"its output goes to {reader.op_type} '{reader.name}', which stays")
                route.affines[reader] = arrays[self._tensors.root(reader.inputs[0])]
                return None
            case OpNode():
                if any(self._tensors.root(value) in arrays for value in reader.also_reads):
                    reason = f"{reader.op_type} '{reader.name}' reads it as a parameter"
                    return Stop(StopCode.NO_RULE, reason)
                given = tuple(arrays.get(self._tensors.root(source)) for source in reader.inputs)
                results = TABLE[reader.op].forward(reader, given, part)
                if isinstance(results, Stop):
                    return results
                route.passed.append(reader)
                for output, result in zip(reader.outputs, results, strict=True):
                    if result is None or (result == part.neutral).all():
                        continue
                    route.changed.append(output)
                    root = self._tensors.root(output)
                    idle = not self._tensors.uses(root) and self._tensors.observed(root) is None
                    if idle and len(reader.outputs) > 1:
                        continue
                    stop = self._reach(output, result, part, waiting)
                    if stop is not None:
                        return stop
        return None


class _Waiting:
    """The nodes that a sweep still has to look at, in the order of the graph, with what arrives at their inputs.

    Args:
        order: The position of each node.
        nearest_stop: Whether the sweep only wants to know what stops it, and need not visit every reader.
    """

    def __init__(self, order: Mapping[Node, int], *, nearest_stop: bool) -> None:
        self.nearest_stop = nearest_stop
        self._order = order
        self._heap: list[int] = []
        self._nodes: dict[int, Node] = {}
        self._arrays: dict[Node, dict[Value, Float64Array]] = {}

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, node: Node, value: Value, array: Float64Array) -> None:
        if node not in self._arrays:
            self._arrays[node] = {}
            self._nodes[self._order[node]] = node
            heapq.heappush(self._heap, self._order[node])
        self._arrays[node][value] = array

    def pop(self) -> tuple[Node, dict[Value, Float64Array]]:
        node = self._nodes.pop(heapq.heappop(self._heap))
        return node, self._arrays.pop(node)


def _stops(node: Node, part: Part) -> bool:
    """Whether a node takes or passes nothing of this part, whatever the arrays are."""
    match node:
        case MapNode(linear=linear):
            return part is Part.SHIFT and bool(linear.partial_kernel)
        case OpNode(op=op):
            return op in (_STOPS_SHIFT if part is Part.SHIFT else _STOPS_SCALE)
    return False


def _values_that_can_leave(graph: Graph, part: Part) -> set[Value]:
    """The values whose part might be moved forward; without this look ahead, residual streams cost a square."""
    leaves: set[Value] = set()
    for node in reversed(graph.nodes):
        for value in node.outputs:
            if value.observer is None and all(
                not _stops(user, part)
                and (not isinstance(user, OpNode) or all(output in leaves for output in user.outputs))
                for user in value.uses
            ):
                leaves.add(value)
    return leaves


def listed(names: Iterator[str], count: int, limit: int = 3) -> str:
    """Some names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in islice(names, limit))
    return shown if count <= limit else f"{shown} and {count - limit} more"
