"""What the terms of a sum are: each is something of the value before it, and of the value before that."""

from collections.abc import Mapping
from dataclasses import dataclass

from bnfold.algebra.affine import Affine
from bnfold.algebra.joining import chain
from bnfold.algebra.kernels import Kernel, of_affine, of_map, of_pool
from bnfold.algebra.linear_map import Folding
from bnfold.graph import AffineNode, Along, MapNode, Node, Op, OpNode, Value, is_identity
from bnfold.planning.merging.sums import Leaf
from bnfold.planning.route import seen_by_others
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode

_LONGEST = 2
"""A branch is read as at most this many maps in a row."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A leaf of a sum as something of a value before it.

    Attributes:
        leaf: The leaf.
        source: The value.
        path: The nodes between that value and the leaf, first to last.
        what: A kernel, an affine, or None for the value itself.
    """

    leaf: Leaf
    source: Value
    path: tuple[Node, ...]
    what: Kernel | Affine | None


class Branches:
    """Reads branches in the present state of a graph.

    Args:
        tensors: Which of its values are one tensor by now.
        foldings: What its maps have absorbed.
        affines: The affines that are still there and may move.
    """

    def __init__(
        self, tensors: Tensors, foldings: Mapping[MapNode, Folding], affines: Mapping[AffineNode, Affine]
    ) -> None:
        self._tensors, self._foldings, self._affines = tensors, foldings, affines

    def terms(self, leaf: Leaf, blocked: dict[Value, Stop]) -> list[Term]:
        """Reads one branch.

        Args:
            leaf: Where it ends.
            blocked: Takes the values that it would be something of, if that were known or nobody else read it.

        Returns:
            What it is of each value before it, the leaf itself first.
        """
        terms = [Term(leaf, self._tensors.origin(leaf.value), self._idle(leaf), None)]
        value = leaf.value
        reader: Node = leaf.node
        path: tuple[Node, ...] = ()
        kernel: Kernel | None = None
        affine: Affine | None = None
        length = 0
        while length < _LONGEST:
            root = self._tensors.root(value)
            producer = root.producer
            if producer is None or not (is_identity(producer) or self._takes_part(producer)):
                return terms
            stop = seen_by_others(self._tensors, root, reader)
            if stop is not None:
                if not is_identity(producer):
                    blocked.setdefault(self._tensors.origin(producer.inputs[0]), stop)
                return terms
            value, reader, path = producer.inputs[0], producer, (producer, *path)
            if is_identity(producer):
                continue
            if isinstance(producer, AffineNode) and kernel is None:
                if affine is not None:
                    return terms
                affine = self._affines[producer]
                terms.append(Term(leaf, self._tensors.origin(value), path, affine))
                continue
            length += 1
            step = self.kernel(producer, kernel)
            if step is None:
                if not isinstance(producer, AffineNode):
                    reason = f"the padding of {producer.op_type} '{producer.name}' depends on the size of its input"
                    blocked.setdefault(self._tensors.origin(value), Stop(StopCode.PADDING, reason))
                return terms
            if affine is not None:  # behind a pool that counts zeros, or it would have been absorbed
                kernel, affine = of_affine(affine, step), None
                if kernel is None:
                    return terms
            joined = step if kernel is None else chain(step, kernel)
            if isinstance(joined, Stop):
                return terms
            kernel = joined
            terms.append(Term(leaf, self._tensors.origin(value), path, kernel))
        return terms

    def _takes_part(self, node: Node) -> bool:
        return isinstance(node, MapNode) or node in self._affines or pool_of(node) is not None

    def kernel(self, node: Node, behind: Kernel | None = None) -> Kernel | None:
        """What a map or an average pool is, or an affine before another kernel; None if that is not known."""
        if isinstance(node, MapNode):
            return of_map(self._foldings.get(node, Folding(self._tensors.linear(node))))
        if isinstance(node, AffineNode):
            return None if behind is None else of_affine(self._affines[node], behind)
        along, shape = pool_of(node), node.inputs[0].shape
        channels = None if shape is None else shape[1]
        if along is None or along.window is None or not isinstance(channels, int):
            return None
        return of_pool(along.kernel, along.window, channels)

    def _idle(self, leaf: Leaf) -> tuple[Node, ...]:
        """The identities that nobody would read without the sum."""
        root = self._tensors.root(leaf.value)
        reader: Node = leaf.node
        path: tuple[Node, ...] = ()
        while root.producer is not None and is_identity(root.producer):
            if seen_by_others(self._tensors, root, reader) is not None:
                break
            reader = root.producer
            path = (reader, *path)
            root = self._tensors.root(reader.inputs[0])
        return path


def pool_of(node: Node) -> Along | None:
    """The window of an average pool whose outputs all sum over the same one."""
    if isinstance(node, OpNode) and node.op is Op.AVERAGE and isinstance(node.parameters, Along):
        return node.parameters if node.parameters.window is not None else None
    return None
