"""Which part of a sweep that moves the shifts of many affines at once belongs to which of them.

On a residual stream the shift of each block travels down all that follows. Where it meets the shift of an earlier
block the two go on as one, and what is passed from there on is the earlier one's: so every node is passed once, and
all shares together are no longer than the sweep.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bnfold.graph import AffineNode, MapNode, Node, Value
from bnfold.planning.route import Route
from bnfold.planning.tensors import Tensors


@dataclass(slots=True)
class Share:
    """What a sweep does for one affine.

    Attributes:
        changed: The values that are no longer what they were, where no earlier affine changes them as well.
        passed: The nodes that the affine moves past, nearest first, to the one where it meets an earlier affine.
        targets: The maps that take it in the end, those behind such a meeting among them.
    """

    changed: list[Value] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)
    targets: tuple[MapNode, ...] = ()


def shares(tensors: Tensors, starts: Iterable[AffineNode], sweep: Route) -> dict[AffineNode, Share]:
    """Divides a sweep among the affines that start it.

    Args:
        tensors: The present state of the graph.
        starts: The affines, in the order of the graph.
        sweep: Where their shifts go, all of them; no affine is among its ends.
    """
    order = {node: position for position, node in enumerate(starts)}
    found = {node: Share() for node in order}
    owners = {tensors.root(node.outputs[0]): node for node in order}
    changed = {*sweep.changed}
    for node in sweep.passed:
        roots = map(tensors.root, node.inputs)
        arriving = sorted({owners[root] for root in roots if root in owners}, key=order.__getitem__)
        for affine in arriving:
            found[affine].passed.append(node)
        for output in node.outputs:
            if output in changed:
                found[arriving[0]].changed.append(output)
                owners[tensors.root(output)] = arriving[0]
    targets = _targets(tensors, sweep)
    for node, share in found.items():
        share.targets = _behind(tensors, node.outputs[0], targets)
    return found


def _targets(tensors: Tensors, sweep: Route) -> dict[Node, tuple[MapNode, ...]]:
    """The maps behind every node that a sweep reaches; what is the same is one object."""
    targets: dict[Node, tuple[MapNode, ...]] = {node: (node,) for node in sweep.maps}
    changed = {*sweep.changed}
    for node in reversed(sweep.passed):
        outputs = [output for output in node.outputs if output in changed]
        targets[node] = _union([_behind(tensors, output, targets) for output in outputs])
    return targets


def _behind(tensors: Tensors, value: Value, targets: dict[Node, tuple[MapNode, ...]]) -> tuple[MapNode, ...]:
    return _union([targets[reader] for reader in tensors.uses(tensors.root(value))])


def _union(parts: list[tuple[MapNode, ...]]) -> tuple[MapNode, ...]:
    different = {id(part): part for part in parts if part}
    if len(different) == 1:
        return next(iter(different.values()))
    return tuple(dict.fromkeys(target for part in different.values() for target in part))
