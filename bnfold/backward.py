"""How one part of an affine, the scale or the shift, gets backward into the linear maps that compute its input.

The region that it crosses is a tree, since nothing else may read what changes: each node offers ways to do to its
inputs what should be done to its output, and the first way whose inputs can all be served is taken.
"""

from collections.abc import Generator

from bnfold.graph import AffineNode, MapNode, Node, OpNode, Stop, StopCode, Value
from bnfold.rounding import Float64Array
from bnfold.route import Ends, Route, into_map, seen_by_others
from bnfold.rules import TABLE, Part
from bnfold.rules.row import Arrays
from bnfold.tensors import Tensors

_Search = Generator["_Search", "Route | Stop", "Route | Stop"]


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
            linear = tensors.linear(producer)
            vector = into_map(producer, linear.output_axis, linear.out_channels, array, "output")
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
                    route.merge(found, part)
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
        route.merge(found, part)
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
    route.merge(found, part)
    return route
