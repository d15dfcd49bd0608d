"""How one part of affines, the scale or the shift, gets forward into the linear maps that read their outputs.

It is one sweep in the order of the graph: everything that reads what changes has to pass it on or take it.
"""

import heapq
from collections.abc import Mapping

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, Graph, MapNode, Node, Op, OpNode, Value
from bnfold.planning.route import Ends, Route, changes_type, into_map
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode
from bnfold.rules import TABLE, Part

_STOPS_SHIFT = frozenset({Op.RELU, Op.MUL, Op.DIV, Op.SUM, Op.ZERO_PAD, Op.OPAQUE})
_STOPS_SCALE = frozenset({Op.OPAQUE})


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
            case MapNode():
                linear = self._tensors.linear(reader)
                array = arrays[self._tensors.root(reader.inputs[0])]
                vector = into_map(reader, linear.input_axis, linear.in_channels, array, "input")
                stop = vector if isinstance(vector, Stop) else changes_type(reader.inputs[0], reader)
                if isinstance(vector, Stop) or stop is not None:
                    return stop
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
                return self._past(reader, arrays, part, route, waiting)
        return None

    def _past(
        self, reader: OpNode, arrays: Mapping[Value, Float64Array], part: Part, route: Route, waiting: "_Waiting"
    ) -> Stop | None:
        """Past an operator, to all that reads what it passes on."""
        if any(self._tensors.root(value) in arrays for value in reader.also_reads):
            reason = f"{reader.op_type} '{reader.name}' reads it as a parameter"
            return Stop(StopCode.NO_RULE, reason)
        given = tuple(arrays.get(self._tensors.root(source)) for source in reader.inputs)
        results = TABLE[reader.op].forward(reader, given, part)
        if isinstance(results, Stop):
            return results
        for source, moved in zip(reader.inputs, given, strict=True):
            retyped = None if moved is None else changes_type(source, reader)
            if retyped is not None:
                return retyped
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
