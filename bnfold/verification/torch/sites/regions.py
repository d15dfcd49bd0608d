"""One region of a program, run by itself: its result, and how large its rounding error may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from bnfold.torch.fx.nodes import all_reads, display_name, operator_name
from bnfold.verification.judging.metrics import ROUNDOFF
from bnfold.verification.judging.sites import NoBoundError
from bnfold.verification.torch.run.traced import Traced
from bnfold.verification.torch.sites.bounds import (
    LAST_AXIS_MAPS,
    MAPS,
    Magnitude,
    Operand,
    edge_magnitude,
    magnitude_of,
)


class UnreachedError(Exception):
    """Why a region is not measured: a clause."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Nodes that lead to one value.

    Attributes:
        traced: The program that they are in.
        end: The last of them.
        nodes: All of them, in their order, those that make constants among them.
        edges: The nodes before them, whose values are given.
    """

    traced: Traced
    end: fx.Node
    nodes: tuple[fx.Node, ...]
    edges: tuple[fx.Node, ...]

    @property
    def computing(self) -> tuple[fx.Node, ...]:
        """Those that depend on inputs."""
        return tuple(node for node in self.nodes if node in self.traced.varies)

    @property
    def roundoff(self) -> float:
        """The largest unit roundoff of what is computed or read."""
        values = [node.meta.get("val") for node in (*self.computing, *self.edges)]
        values += [self.traced.stored[node] for node in self.stored]
        dtypes = {str(value.dtype).removeprefix("torch.") for value in values if isinstance(value, torch.Tensor)}
        return max((ROUNDOFF.get(dtype, 0.0) for dtype in dtypes), default=0.0)

    def channel_axis(self, rank: int) -> int | None:
        """The axis of the channels of the end; None if it has none."""
        names = [operator_name(node) for node in self.computing]
        maps = [name for name in names if name in MAPS or name in LAST_AXIS_MAPS]
        if rank < 2:
            return None
        return rank - 1 if maps and maps[-1] in LAST_AXIS_MAPS else 1

    def run(self, given: Mapping[fx.Node, object], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The value of the end, and its magnitude.

        Args:
            given: The values of the edges; they are not changed.
            device: Where the values are, and where stored tensors go; those are not changed either.

        Raises:
            NoBoundError: No rounding bound is known for one of the nodes.
            UnreachedError: A node does not run by itself.
        """
        writes = any(isinstance(node.target, OpOverload) and node.target._schema.is_mutable for node in self.nodes)
        operands = {node: Operand(_copied(value) if writes else value, None) for node, value in given.items()}
        operands = {node: Operand(one.value, edge_magnitude(one.value)) for node, one in operands.items()}
        for node in self.stored:
            held = self.traced.stored[node]
            operands[node] = _stored(_copied(held) if writes else held, device)
        for node in self.nodes:
            operands[node] = self._step(node, operands, device)
        result, magnitude = operands[self.end].value, operands[self.end].magnitude
        if not isinstance(result, torch.Tensor) or not isinstance(magnitude, torch.Tensor):
            raise UnreachedError("it is no tensor")
        return result, magnitude

    def _step(self, node: fx.Node, operands: Mapping[fx.Node, Operand], device: torch.device) -> Operand:
        if isinstance(node.target, HigherOrderOperator):
            raise UnreachedError(f"it is inside of {display_name(node)} {node.name!r}")
        result = call(node, lambda read: operands[read].value, device)
        if node not in self.traced.varies:
            return Operand(result, edge_magnitude(result, is_constant=True), is_constant=True)
        return Operand(result, _magnitude(node, operands, result))

    @property
    def stored(self) -> list[fx.Node]:
        """The stored tensors that the nodes read."""
        read = dict.fromkeys(read for node in self.nodes for read in all_reads(node))
        return [node for node in read if node in self.traced.stored]


def region_to(traced: Traced, end: fx.Node, shared: Callable[[fx.Node], bool], order: Mapping[fx.Node, int]) -> Region:
    """The nodes that lead from shared values to `end`.

    Args:
        traced: The program.
        end: The last node.
        shared: Whether the value of a node is one of both programs.
        order: The position of each node.
    """
    found: set[fx.Node] = set()
    edges: dict[fx.Node, None] = {}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for read in all_reads(node):
            if read in traced.varies and (read.op == "placeholder" or shared(read)):
                edges[read] = None
            elif read not in traced.stored:
                waiting.append(read)
    return Region(traced, end, tuple(sorted(found, key=order.__getitem__)), tuple(edges))


def call(node: fx.Node, value: Callable[[fx.Node], object], device: torch.device) -> object:
    """Run one node.

    Args:
        node: A call of a function.
        value: Gives what it reads.
        device: What counts for every device that the node names.
    """

    def argument(given: fx.node.Argument) -> fx.node.Argument:
        if isinstance(given, fx.Node):
            return cast(fx.node.Argument, value(given))
        return device if isinstance(given, torch.device) else given

    args = cast(Sequence[object], fx.node.map_aggregate(node.args, argument))
    kwargs = cast(Mapping[str, object], fx.node.map_aggregate(node.kwargs, argument))
    return cast(Callable[..., object], node.target)(*args, **kwargs)


def moved(stored: object, device: torch.device) -> object:
    """What is stored, where it is needed."""
    return stored.detach().to(device) if isinstance(stored, torch.Tensor) else stored


def _magnitude(node: fx.Node, operands: Mapping[fx.Node, Operand], result: object) -> Magnitude:
    try:
        return magnitude_of(node, operands.__getitem__, result)
    except (RuntimeError, TypeError) as error:  # what its operation says to magnitudes
        raise NoBoundError(operator_name(node) or node.name) from error


def _stored(value: object, device: torch.device) -> Operand:
    there = moved(value, device)
    return Operand(there, edge_magnitude(there, is_constant=True), is_constant=True)


def _copied(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(_copied(item) for item in cast(Iterable[object], value))
    return value.clone() if isinstance(value, torch.Tensor) else value
