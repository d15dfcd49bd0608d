"""How one part of an affine, the scale or the shift, gets backward into the linear maps that compute its input.

The region that it crosses is a tree, since nothing else may read what changes: each node offers ways to do to its
inputs what should be done to its output, and the first way whose inputs can all be served is taken.
"""

from collections.abc import Generator
from typing import TypeVar

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, MapNode, Node, OpNode, Value
from bnfold.planning.route import Ends, Route, changes_type, into_map, seen_by_others
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode
from bnfold.rules import TABLE, Part
from bnfold.rules.row import Arrays
from bnfold.rules.shapes import narrowed

_EndT = TypeVar("_EndT", MapNode, AffineNode)
_Search = Generator["_Search", "Stop | None", "Stop | None"]
"""Goes on from one value; returns why it cannot, or None once all is on the trail."""


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
    search = _Pull(tensors, part, ends)
    return _found(search, search.into(node.inputs[0], node, array))


def pull_for_all(tensors: Tensors, root: Value, array: Float64Array, part: Part, ends: Ends) -> Route | Stop:
    """Moves a part of equal affines backward, into what computes a tensor all of whose readers ask for it.

    Args:
        tensors: The present state of the graph.
        root: The tensor.
        array: The part, on that tensor.
        part: Which part it is.
        ends: Which other affines may take it.

    Returns:
        The route, or the reason why there is none.
    """
    search = _Pull(tensors, part, ends)
    return _found(search, search.behind(root, array))


def _found(pull_: "_Pull", first: _Search) -> Route | Stop:
    stack = [first]
    started, stop = False, None
    while stack:
        try:
            stack.append(stack[-1].send(stop) if started else next(stack[-1]))
            started, stop = False, None
        except StopIteration as finished:
            stack.pop()
            started, stop = True, finished.value
    return pull_.route() if stop is None else stop


class _Pull:
    """One search, with the trail of what it has found; a way that leads nowhere takes its part of the trail back.

    Args:
        tensors: The present state of the graph.
        part: Which part moves.
        ends: Which other affines may take it.
    """

    def __init__(self, tensors: Tensors, part: Part, ends: Ends) -> None:
        self._tensors, self._part, self._ends = tensors, part, ends
        self._maps: list[tuple[MapNode, Float64Array]] = []
        self._affines: list[tuple[AffineNode, Float64Array]] = []
        self._changed: list[Value] = []
        self._passed: list[Node] = []

    def route(self) -> Route:
        """The trail as a route; where it ends twice, as behind a Split, the end takes what both bring."""
        maps, affines = _joined(self._maps, self._part), _joined(self._affines, self._part)
        return Route(maps, affines, self._changed, self._passed)

    def into(self, value: Value, reader: Node, array: Float64Array) -> _Search:
        """Does to a value what its reader asks for."""
        root = self._tensors.root(value)
        if root.producer is None:
            return root.source
        stop = seen_by_others(self._tensors, root, reader)
        if stop is not None:
            return stop
        left = self._tensors.instead(value)
        if left is not value:
            narrow = narrowed(array, left.shape)
            if narrow is None:
                reason = f"'{left.name}' is broadcast, or may be, along an axis along which the affine varies"
                return Stop(StopCode.BROADCAST, reason)
            array = narrow
        return (yield from self.behind(root, array))

    def behind(self, root: Value, array: Float64Array) -> _Search:
        """Does to a tensor what is asked of it, whoever reads it."""
        producer = root.producer
        self._changed.append(root)
        match producer:
            case None:
                return root.source
            case MapNode():
                linear = self._tensors.linear(producer)
                vector = into_map(producer, linear.output_axis, linear.out_channels, array, "output")
                if isinstance(vector, Stop):
                    return vector
                self._maps.append((producer, vector))
                return None
            case AffineNode():
                return (yield from self._past_affine(producer, array))
            case OpNode():
                return (yield from self._past(producer, root, array))
        message = f"a {type(producer).__name__} is no node that anything moves past"
        raise TypeError(message)

    def _past(self, node: OpNode, root: Value, array: Float64Array) -> _Search:
        """Past an operator, the first way that leads to ends."""
        self._passed.append(node)
        if len(node.outputs) > 1:
            # An output that nothing reads may change along with this one.
            idle = (output for output in node.outputs if not output.uses and output.observer is None)
            self._changed += [output for output in idle if output is not root]
        ways = TABLE[node.op].backward(node, node.outputs.index(root), array, self._part)
        if isinstance(ways, Stop):
            return ways
        before = len(self._maps), len(self._affines), len(self._changed), len(self._passed)
        reasons: list[Stop] = []
        for way in ways:
            stop = yield from self._serve(node, way)
            if stop is None:
                return None
            reasons.append(stop)
            self._go_back(*before)
        return reasons[0]

    def _go_back(self, maps: int, affines: int, changed: int, passed: int) -> None:
        del self._maps[maps:], self._affines[affines:], self._changed[changed:], self._passed[passed:]

    def _serve(self, node: OpNode, way: Arrays) -> _Search:
        """Does to the inputs of a node what one way asks for."""
        for source, array in zip(node.inputs, way, strict=True):
            if array is None or (array == self._part.neutral).all():
                continue
            stop = changes_type(source, node) or (yield self.into(source, node, array))
            if stop is not None:
                return stop
        return None

    def _past_affine(self, node: AffineNode, array: Float64Array) -> _Search:
        """Into an affine that stays, or past an Add of a constant that varies along more than the channels.

        Such a constant, a position embedding for instance, takes the shift, and is scaled where the scale passes:
        s·(x + c) + t = s·x + (s·c + t).
        """
        takes = self._ends.takes(node)
        if not takes and not self._ends.takes_shift(node, array.shape):
            return Stop(StopCode.NO_RULE, f"its input comes from {node.op_type} '{node.name}', which stays")
        self._affines.append((node, array))
        if takes or self._part is Part.SHIFT:
            return None
        self._passed.append(node)
        return (yield self.into(node.inputs[0], node, array))


def _joined(found: list[tuple[_EndT, Float64Array]], part: Part) -> dict[_EndT, Float64Array]:
    ends: dict[_EndT, Float64Array] = {}
    for node, array in found:
        if node not in ends:
            ends[node] = array
        else:
            ends[node] = ends[node] * array if part is Part.SCALE else ends[node] + array
    return ends
