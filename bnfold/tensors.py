"""The values of a graph while affines go away: such an affine makes its input and its output one tensor."""

from collections import Counter

from bnfold.graph import AffineNode, Node, Value


class Tensors:
    """Which values have become one tensor, and who reads it."""

    def __init__(self) -> None:
        self._parents: dict[Value, Value] = {}
        self._uses: dict[Value, Counter[Node]] = {}
        self._observed: dict[Value, Value | None] = {}

    def root(self, value: Value) -> Value:
        """The first value of the tensor that `value` is part of."""
        root = value
        while root in self._parents:
            root = self._parents[root]
        while value is not root:
            self._parents[value], value = root, self._parents[value]
        return root

    def uses(self, root: Value) -> Counter[Node]:
        """The nodes that read a tensor, and how many times each."""
        if root not in self._uses:
            self._uses[root] = Counter(root.uses)
        return self._uses[root]

    def observed(self, root: Value) -> Value | None:
        """The value as which a tensor is seen from outside the graph, if it is."""
        return self._observed.get(root, root if root.observer is not None else None)

    def remove(self, node: AffineNode) -> None:
        """Makes the input and the output of an affine one tensor."""
        source, target = self.root(node.inputs[0]), self.root(node.outputs[0])
        uses = self.uses(source)
        del uses[node]
        uses.update(self.uses(target))
        self._observed[source] = self.observed(source) or self.observed(target)
        self._parents[target] = source
