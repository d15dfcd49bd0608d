"""The values of one graph of a program."""

from torch import fx

from bnfold.graph import Value
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import dtype_of, fake_tensor, fake_tensors, is_tuple_item, shape_of
from bnfold.torch.lift.constants import Constants
from bnfold.torch.lift.memory.aliases import Memory


class Values:
    """What the nodes of a graph compute, as values of the neutral graph, called like the nodes.

    Args:
        constants: The constants of the graph, which are no values.
        memory: Who shares memory in it; what is changed under its readers is seen from outside.
    """

    def __init__(self, constants: Constants, memory: Memory) -> None:
        self._constants = constants
        self._memory = memory
        self._values: dict[fx.Node, Value] = {}
        self._items: dict[fx.Node, dict[int, Value]] = {}

    def new(self, node: fx.Node) -> Value:
        """A value for what a node computes."""
        fake = fake_tensor(node)
        value = Value(node.name, shape_of(fake), dtype_of(fake))
        value.observer = self._memory.stop(node)
        self._values[node] = value
        return value

    def of(self, node: fx.Node) -> Value:
        """The value of a node, a new one if nothing computes it while the graph runs."""
        if node not in self._values:
            constant = self._constants.is_constant(node)
            reason = "its input is a constant" if constant else f"nothing is known about its input '{node.name}'"
            self.new(node).source = Stop(StopCode.MODEL_INPUT, reason)
        return self._values[node]

    def find(self, node: fx.Node) -> Value | None:
        """The value of a node, if it has one."""
        return self._values.get(node)

    def nodes(self) -> dict[Value, fx.Node]:
        """Which node computes each value."""
        return {value: node for node, value in self._values.items()}

    def new_items(self, node: fx.Node) -> dict[int, Value]:
        """Values for a node that computes several, called like the nodes that take them."""
        takers: dict[int, fx.Node] = {}
        for user in node.users:
            if is_tuple_item(user) and isinstance(user.args[1], int):
                takers.setdefault(user.args[1], user)
        values: dict[int, Value] = {}
        for index, fake in enumerate(fake_tensors(node) or ()):
            taker = takers.get(index)
            values[index] = Value(taker.name if taker else f"{node.name}[{index}]", shape_of(fake), dtype_of(fake))
            values[index].observer = self._memory.stop(taker or node)
        self._items[node] = values
        return values

    def take(self, node: fx.Node) -> Value | None:
        """The value that a getitem takes, None if there is none; the first that takes it is its name."""
        source, index = node.args
        items = self._items.get(source) if isinstance(source, fx.Node) else None
        value = None if items is None or not isinstance(index, int) else items.get(index)
        if value is not None and value.name == node.name:
            self._values[node] = value
        return value
