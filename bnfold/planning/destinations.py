"""Where affines end: in linear maps, in affines that stay, in constants that take a shift."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, Kind, Node
from bnfold.planning.plan import Junction, Step


@dataclass(frozen=True, slots=True)
class Staying:
    """The affines that stay and may take others."""

    affines: Mapping[AffineNode, Affine]
    compose: bool

    def takes(self, node: AffineNode) -> bool:
        """Only a BN does: composing spelled-out affines makes no model smaller."""
        return self.compose and node.kind is Kind.BATCH_NORM and node in self.affines

    def takes_shift(self, node: AffineNode, shape: tuple[int, ...]) -> bool:
        """An Add of a constant that already varies wherever the shift does."""
        affine = self.affines.get(node)
        if affine is None or not varies_widely(node):
            return False
        return len(shape) == affine.rank and all(
            size in (1, have) for size, have in zip(shape, affine.shift.shape, strict=True)
        )


def where_affines_end(
    nodes: Iterable[AffineNode], steps: Mapping[AffineNode, Step], junctions: Sequence[Junction]
) -> dict[Node, list[Node]]:
    """Where each affine is in the end: in its own node, or in the maps and affines that took it.

    Args:
        nodes: The affines of a graph.
        steps: Those that went away, in order.
        junctions: What became one map, in order.
    """
    ends: dict[Node, list[Node]] = {node: [node] for node in nodes if node not in steps}
    later = [*junctions]
    for index, (node, step) in reversed([*enumerate(steps.items())]):
        # What took it is gone only later, if at all.
        while later and later[-1].after > index:
            _hand_over(later.pop(), ends)
        found = (end for target in step.targets for end in ends.get(target, [target]))
        ends[node] = [*dict.fromkeys(found)]
    return ends


def _hand_over(junction: Junction, ends: dict[Node, list[Node]]) -> None:
    """Notes that what was in the maps and affines of a junction is in its target."""
    target = ends.get(junction.target, [junction.target])
    for node in (*junction.gone, *(node for node, _ in junction.collapsed)):
        ends[node] = target


def grows(before: Affine, *arrays: Float64Array) -> bool:
    """Whether an affine that takes arrays varies along an axis along which it did not."""
    old = np.broadcast_shapes(before.scale.shape, before.shift.shape)
    new = np.broadcast_shapes(old, *(array.shape for array in arrays))
    return any(size > 1 and was == 1 for was, size in zip(old, new, strict=True))


def varies_widely(node: AffineNode) -> bool:
    """Whether a node adds a constant that varies along several axes, as a position embedding does."""
    if node.kind is Kind.BATCH_NORM or node.affine is None or not (node.affine.scale == 1).all():
        return False
    return node.affine.varying_axes > 1
