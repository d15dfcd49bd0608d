"""Which values have elements whenever the model runs.

A BN also runs on a value that is empty along an axis of the image, the convolution that is written in its place does
not. A convolution has no output that is empty there, and refuses an input without a single position for its kernel, so
that what lies before or behind one is known to have elements although its sizes are open. The batch may be empty.
"""

from collections.abc import Iterable

from bnfold.graph import AffineNode, Graph, MapNode, Node, Op, OpNode, Value
from bnfold.rules.table import is_elementwise

_BROADCASTS = frozenset({Op.ADD, Op.MEAN, Op.MUL, Op.DIV})


def never_empty(graph: Graph) -> set[Value]:
    """The values that have elements along all axes behind the first, in every run in which they are needed."""
    known: set[Value] = set()
    for node in reversed(graph.nodes):
        if _refuses_nothing(node) or (_keeps_shape(node) and _have_elements(node.outputs, known)):
            known.update(value for value in node.inputs if _same_rank(value, node))
    for node in graph.nodes:
        if _gives_elements(node, known):
            known.update(node.outputs)
    return known | {value for node in graph.nodes for value in node.inputs if _is_sized(value, 1)}


def _refuses_nothing(node: Node) -> bool:
    """Whether a node is a convolution that is needed, and has no output where its input is empty."""
    if not isinstance(node, MapNode) or node.linear.window is None or not node.linear.out_first:
        return False
    window, taps = node.linear.window, node.linear.weight.shape[2:]
    sides = zip(window.before, window.after, window.dilations, taps, strict=True)
    needed = any(value.uses or value.observer for value in node.outputs)
    return needed and all(before + after <= dilation * (size - 1) for before, after, dilation, size in sides)


def _keeps_shape(node: Node) -> bool:
    """Whether the output of a node is empty where an input is."""
    return isinstance(node, AffineNode) or (
        isinstance(node, OpNode) and (node.op in _BROADCASTS or is_elementwise(node))
    )


def _gives_elements(node: Node, known: set[Value]) -> bool:
    if isinstance(node, MapNode):
        return not node.linear.is_product or _have_elements(node.inputs, known)
    if isinstance(node, OpNode) and node.op is Op.CONCAT:
        return any(_have_elements([value], known) for value in node.inputs)
    return _keeps_shape(node) and all(
        _is_sized(value, 0) or (_have_elements([value], known) and _same_rank(value, node)) for value in node.inputs
    )


def _have_elements(values: Iterable[Value], known: set[Value]) -> bool:
    return all(value in known or _is_sized(value, 1) for value in values)


def _is_sized(value: Value, first: int) -> bool:
    """Whether all sizes from an axis on are known."""
    return value.shape is not None and all(isinstance(size, int) and size > 0 for size in value.shape[first:])


def _same_rank(value: Value, node: Node) -> bool:
    shapes = [value.shape, *(output.shape for output in node.outputs)]
    return None not in shapes and len({len(shape) for shape in shapes if shape is not None}) == 1
