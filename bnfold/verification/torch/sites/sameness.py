"""Whether what two programs store, and what they make of it, is the same, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from bnfold.torch.fx.graph_copy import attribute
from bnfold.verification.torch.run.traced import Traced


class Constants:
    """Constants of two programs, compared; each pair once.

    Args:
        original: The original.
        folded: The folded program.
    """

    def __init__(self, original: Traced, folded: Traced) -> None:
        self._original, self._folded = original, folded
        self._known: dict[tuple[fx.Node, fx.Node], bool] = {}

    def equal(self, ours: fx.Node, theirs: fx.Node) -> bool:
        """Whether a constant of the folded program equals one of the original."""
        pair = ours, theirs
        if pair not in self._known:
            self._known[pair] = self._compare(ours, theirs)
        return self._known[pair]

    def _compare(self, ours: fx.Node, theirs: fx.Node) -> bool:
        if ours in self._folded.varies or theirs in self._original.varies:
            return False
        if ours in self._folded.stored or theirs in self._original.stored:
            return _same(self._folded.stored.get(ours), self._original.stored.get(theirs))
        return ours.target == theirs.target and same_arguments(ours, theirs, self.equal)


def same_arguments(ours: fx.Node, theirs: fx.Node, same_read: Callable[[fx.Node, fx.Node], bool]) -> bool:
    """Whether two calls have the same arguments.

    Args:
        ours: A call of the folded program.
        theirs: A call of the original.
        same_read: Says whether a node that the one reads stands for a node that the other reads.
    """
    first, shape = pytree.tree_flatten((tuple(ours.args), dict(ours.kwargs)))
    second, other_shape = pytree.tree_flatten((tuple(theirs.args), dict(theirs.kwargs)))
    if shape != other_shape:
        return False
    for mine, yours in zip(first, second, strict=True):
        if isinstance(mine, fx.Node) != isinstance(yours, fx.Node):
            return False
        if isinstance(mine, fx.Node):
            if not same_read(mine, cast(fx.Node, yours)):
                return False
        elif type(mine) is not type(yours) or mine != yours:
            return False
    return True


def _same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return _same_tensor(first, second)
    if isinstance(first, fx.GraphModule) and isinstance(second, fx.GraphModule):
        return _same_graph(first, second)
    return first is second


def _same_tensor(first: torch.Tensor, second: torch.Tensor) -> bool:
    """The same type, shape and bits: NaN equals itself, and 0 is not −0."""
    if first is second:
        return True
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    here, there = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(here, there)


def _same_graph(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    if first.code != second.code:
        return False
    targets = [str(node.target) for node in first.graph.nodes if node.op == "get_attr"]
    return all(_same(attribute(first, target), attribute(second, target)) for target in targets)
