"""Adds, Subs, Sums and Means that belong together: a tree with inner results for nobody else, and what it adds up."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self, TypeGuard

from bnfold.graph import Node, Op, OpNode, Signs, Value
from bnfold.planning.route import changes_type, seen_by_others
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """Something that is added up.

    Attributes:
        value: What it is.
        node: The node of the tree that reads it.
        position: As which input.
        factor: What the whole sum multiplies it by: 1 or -1, divided by the operands of each Mean around it.
    """

    value: Value
    node: OpNode
    position: int
    factor: float


@dataclass(frozen=True, slots=True)
class Rewired:
    """A tree after some of its leaves have gone.

    Attributes:
        collapsed: Nodes with one operand left, which is the whole of what they added up, and which operand that is;
            operands first.
        bypassed: Nodes with one operand left, what else they added up being somewhere else, and which that is.
        gone: Nodes with none left.
        changed: The results of nodes that stay or go and no longer are what they were.
        smaller: Those of them that stay and may have a smaller shape: what is left of them may be broadcast.
        factor: What the sum multiplies the leaf by that stands for those that have gone.
    """

    collapsed: tuple[tuple[OpNode, int], ...]
    bypassed: tuple[tuple[OpNode, int], ...]
    gone: tuple[OpNode, ...]
    changed: tuple[Value, ...]
    smaller: tuple[Value, ...]
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A tree of Adds, Subs, Sums and Means.

    Attributes:
        nodes: Its nodes, each before those that compute its operands.
        inner: The operands of each that are nodes of the tree, by position.
        leaves: What it adds up.
    """

    nodes: tuple[OpNode, ...]
    inner: dict[OpNode, dict[int, OpNode]]
    leaves: tuple[Leaf, ...]

    @classmethod
    def at(cls, node: OpNode, tensors: Tensors) -> Self | None:
        """The tree that ends at a node; None if the node is inside one."""
        result = tensors.root(node.outputs[0])
        readers = tensors.uses(result)
        if tensors.observed(result) is None and len(readers) == 1 and readers.total() == 1:
            (reader,) = readers
            if is_sum(reader):
                return None
        nodes: list[OpNode] = []
        inner: dict[OpNode, dict[int, OpNode]] = {}
        leaves: list[Leaf] = []
        waiting = [(node, 1.0)]
        while waiting:
            node, factor = waiting.pop()
            assert node not in inner, f"'{node.name}' adds up its own result"
            nodes.append(node)
            inner[node] = {}
            for position, (value, own) in enumerate(zip(node.inputs, _factors(node), strict=True)):
                root = tensors.root(value)
                operand = root.producer
                if is_sum(operand) and seen_by_others(tensors, root, node) is None:
                    inner[node][position] = operand
                    waiting.append((operand, factor * own))
                else:
                    leaves.append(Leaf(value, node, position, factor * own))
        return cls(tuple(nodes), inner, tuple(leaves))

    def without(self, gone: Collection[Leaf], heir: Leaf) -> Rewired | Stop:
        """The tree after some leaves have gone and another stands for all of them, or why it cannot be."""
        dropped = {(leaf.node, leaf.position) for leaf in gone}
        members = dropped | {(heir.node, heir.position)}
        lost: set[OpNode] = set()
        line: set[tuple[OpNode, int]] = {(heir.node, heir.position)}
        holders: set[OpNode] = set()
        covered: dict[OpNode, int] = {}
        collapsed: list[tuple[OpNode, int]] = []
        bypassed: list[tuple[OpNode, int]] = []
        changed: list[Value] = []
        smaller: list[Value] = []
        factor = heir.factor
        heirs: set[OpNode] = set()
        for node in reversed(self.nodes):
            inner, count = self.inner[node], len(node.inputs)
            covered[node] = len([at for at in range(count) if (node, at) in members])
            covered[node] += sum(covered[operand] for operand in inner.values())
            if node is heir.node or not holders.isdisjoint(inner.values()):
                holders.add(node)
            live = [at for at in range(count) if (node, at) not in dropped and inner.get(at) not in lost]
            if not live:
                lost.add(node)
                continue
            if len(live) < count:
                if len(live) > 1:
                    reason = f"{node.op_type} '{node.name}' would add up fewer values, but more than one"
                    return Stop(StopCode.NO_RULE, reason)
                (at,) = live
                is_heir = (node, at) in line or inner.get(at) in heirs
                if is_heir:
                    factor /= _factors(node)[at]
                    heirs.add(node)
                elif _factors(node)[at] != 1:
                    reason = f"{node.op_type} '{node.name}' would have to negate or divide what is left"
                    return Stop(StopCode.NO_RULE, reason)
                (collapsed if node in holders else bypassed).append((node, at))
            elif covered[node] and node not in holders:
                smaller.append(node.outputs[0])
            if 0 < covered[node] < len(members):
                changed.append(node.outputs[0])
        order = {node: index for index, node in enumerate(reversed(self.nodes))}
        gone_nodes = tuple(sorted(lost, key=order.__getitem__))
        return Rewired(tuple(collapsed), tuple(bypassed), gone_nodes, tuple(changed), tuple(smaller), factor)


def is_sum(node: Node | None) -> TypeGuard[OpNode]:
    """Whether a node adds up values of one element type, or takes their mean."""
    if not isinstance(node, OpNode) or node.op not in (Op.ADD, Op.MEAN):
        return False
    return not any(changes_type(value, node) for value in node.inputs)


def _factors(node: OpNode) -> tuple[float, ...]:
    if node.op is Op.MEAN:
        return (1 / len(node.inputs),) * len(node.inputs)
    assert isinstance(node.parameters, Signs)  # the front-end's contract, see graph.py
    return node.parameters.signs
