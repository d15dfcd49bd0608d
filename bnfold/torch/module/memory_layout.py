"""What the memory layout of tensors becomes when affines go away.

A batch norm may write its output in another layout than its input has (channels first again, after a transposition).
Without it the input's layout goes on, and a `view` further on may not be able to work with that. Values never change by
this, but a module that fails is not folded right.
"""

from collections.abc import Iterator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from bnfold.graph import AffineNode
from bnfold.planning.plan import Plan
from bnfold.torch.fx.higher_order import nested_graphs
from bnfold.torch.fx.nodes import fake_tensor, same_strides
from bnfold.torch.lift.provenance import Scope
from bnfold.torch.module.module_calls import handle


def broken_views(plan: Plan) -> Iterator[tuple[AffineNode, str]]:
    """The affines without which something would not work, or would return another layout.

    Args:
        plan: A plan for a module.

    Yields:
        Such an affine that the plan removes, and the name of the node of the program that needs it.
    """
    scopes: dict[Scope, list[AffineNode]] = {}
    for step in plan.steps:
        scopes.setdefault(handle(step.source).scope, []).append(step.source)
    for scope, sources in scopes.items():
        if not all(handle(source).keeps_layout for source in sources):
            yield from _broken_in(scope, sources)


def _broken_in(scope: Scope, sources: list[AffineNode]) -> Iterator[tuple[AffineNode, str]]:
    gone = {handle(source).last: source for source in sources}
    names = {node.name: node for node in scope.graph.nodes}
    fakes: dict[fx.Node, object] = {}
    causes: dict[fx.Node, set[AffineNode]] = {}
    for node in scope.graph.nodes:
        source = gone.get(node)
        read = [names[source.inputs[0].name]] if source is not None else [*node.all_input_nodes]
        cause = set[AffineNode]().union(*(causes.get(other, ()) for other in read))
        if source is not None:
            now: object = fakes.get(read[0], fake_tensor(read[0]))
            cause |= {source}
        elif not cause:
            continue
        elif node.op == "output" or nested_graphs(node):
            yield from ((affine, node.name) for affine in cause)
            continue
        else:
            try:
                now = _result(node, fakes)
            except Exception:  # noqa: BLE001 - whatever an operator raises when a layout does not suit it
                yield from ((affine, node.name) for affine in cause)
                continue
        before = fake_tensor(node)
        if isinstance(now, torch.Tensor) and before is not None and same_strides(now, before):
            continue
        fakes[node], causes[node] = now, cause


def _result(node: fx.Node, fakes: dict[fx.Node, object]) -> object:
    """What a node computes now, without values."""
    example = next(fake for fake in map(fake_tensor, node.all_input_nodes) if fake is not None)
    mode = getattr(example, "fake_mode", None)
    assert mode is not None
    assert callable(node.target)  # torch.export leaves nothing else
    given = (node.args, node.kwargs)
    args, kwargs = pytree.tree_map_only(fx.Node, lambda read: fakes.get(read, read.meta["val"]), given)
    with mode, torch.no_grad():
        result: object = node.target(*args, **kwargs)
    return result
