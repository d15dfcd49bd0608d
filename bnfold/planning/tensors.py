"""The values of a graph while nodes go away: such a node makes an input and its output one tensor."""

from collections import Counter
from collections.abc import Collection

from bnfold.algebra.linear_map import LinearMap
from bnfold.graph import MapNode, Node, Reading, Value, is_identity


class Tensors:
    """Which values have become one tensor, who reads it, and what the maps between them are now."""

    def __init__(self) -> None:
        self._parents: dict[Value, Value] = {}
        self._uses: dict[Value, Counter[Node]] = {}
        self._measures: dict[Value, tuple[Reading, ...]] = {}
        self._gone: set[Node] = set()
        self._observed: dict[Value, Value | None] = {}
        self._shapes: dict[Value, Value] = {}
        self._instead: dict[Value, Value] = {}
        self._linears: dict[MapNode, LinearMap] = {}

    def root(self, value: Value) -> Value:
        """The first value of the tensor that `value` is part of."""
        root = value
        while root in self._parents:
            root = self._parents[root]
        while value is not root:
            self._parents[value], value = root, self._parents[value]
        return root

    def origin(self, value: Value) -> Value:
        """The first tensor that holds the elements of a value, before all nodes that pass them on as they are."""
        root = self.root(value)
        while root.producer is not None and is_identity(root.producer):
            root = self.root(root.producer.inputs[0])
        return root

    def uses(self, root: Value) -> Counter[Node]:
        """The nodes that read a tensor, and how many times each."""
        if root not in self._uses:
            self._uses[root] = Counter(root.uses)
        return self._uses[root]

    def measures(self, root: Value, going: Collection[Node] = ()) -> tuple[str, ...]:
        """The names of the nodes that read the shape or the element type of a tensor, and no element.

        Args:
            root: The tensor.
            going: Nodes that go away now; what only serves them, and those that went before, is left out.
        """
        away = {*going, *self._gone}
        return tuple(read.name for read in self._readings(root) if not read.serves or not read.serves <= away)

    def _readings(self, root: Value) -> tuple[Reading, ...]:
        return self._measures.get(root, tuple(root.measured_by))

    def shape(self, root: Value) -> tuple[int | str | None, ...] | None:
        """The shape of a tensor."""
        return self._shapes.get(root, root).shape

    def instead(self, value: Value) -> Value:
        """What is read where a value was, of which only one operand is left; it may have a smaller shape."""
        while value in self._instead:
            value = self._instead[value]
        return value

    def observed(self, root: Value) -> Value | None:
        """The value as which a tensor is seen from outside the graph, if it is."""
        return self._observed.get(root, root if root.observer is not None else None)

    def linear(self, node: MapNode) -> LinearMap:
        """The map of a node, without what it has absorbed."""
        return self._linears.get(node, node.linear)

    def become(self, node: MapNode, linear: LinearMap) -> None:
        """Puts another map in the place of a node's."""
        self._linears[node] = linear

    def remove(self, node: Node, position: int = 0) -> None:
        """Makes one input of a node and its output one tensor; the node reads nothing any more."""
        source, target = self._join(node, position)
        self._shapes[source] = self._shapes.get(target, target)

    def bypass(self, node: Node, position: int) -> None:
        """The same for a node of which one operand is left, and the output with it."""
        self._join(node, position)
        self._instead[node.outputs[0]] = node.inputs[position]

    def _join(self, node: Node, position: int) -> tuple[Value, Value]:
        source, target = self.root(node.inputs[position]), self.root(node.outputs[0])
        self.drop(node)
        self.uses(source).update(self.uses(target))
        self._measures[source] = self._readings(source) + self._readings(target)
        self._observed[source] = self.observed(source) or self.observed(target)
        self._parents[target] = source
        return source, target

    def drop(self, node: Node) -> None:
        """Takes away a node that nothing reads."""
        self._gone.add(node)
        for value in (*node.inputs, *node.also_reads):
            self.uses(self.root(value)).pop(node, None)
