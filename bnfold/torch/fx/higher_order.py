"""Higher-order operators: nodes that run nested graphs with operands of the graph around them.

torch.cond                    (predicate, true graph, false graph, (operands, …))
wrap_with_autocast            (device type, dtype, enabled, cache enabled, graph, operands, …)
wrap_with_set_grad_enabled    (enabled, graph, operands, …)

The operands are the values of the placeholders of each nested graph, in order. Other operators of this kind (loops,
scans, …) have carried values as well and are left alone.
"""

from collections.abc import Sequence

from torch import fx
from torch._ops import HigherOrderOperator

_GRAPHS = {"cond": slice(1, 3), "wrap_with_autocast": slice(4, 5), "wrap_with_set_grad_enabled": slice(1, 2)}
"""Where the nested graphs are among the arguments."""


def nested_graphs(node: fx.Node) -> tuple[str, ...]:
    """The targets of the get_attr nodes of the graphs that a node runs, or () if it is no operator of this kind."""
    if not isinstance(node.target, HigherOrderOperator):
        return ()
    graphs = node.args[_GRAPHS.get(node.target.__name__, slice(0))]
    return tuple(str(graph.target) for graph in graphs if isinstance(graph, fx.Node) and graph.op == "get_attr")


def operands(node: fx.Node) -> tuple[fx.node.Argument, ...]:
    """What a node gives to the placeholders of the graphs that it runs."""
    if _in_one_argument(node):
        listed = node.args[-1]
        return tuple(listed) if isinstance(listed, Sequence) else ()
    return node.args[_graphs(node).stop :]


def set_operands(node: fx.Node, given: Sequence[fx.node.Argument]) -> None:
    """Makes a node give something else."""
    before = node.args[: _graphs(node).stop]
    node.args = (*before, tuple(given)) if _in_one_argument(node) else (*before, *given)


def _graphs(node: fx.Node) -> slice:
    assert isinstance(node.target, HigherOrderOperator)  # callers ask `nested_graphs` first
    return _GRAPHS[node.target.__name__]


def _in_one_argument(node: fx.Node) -> bool:
    return isinstance(node.target, HigherOrderOperator) and node.target.__name__ == "cond"
