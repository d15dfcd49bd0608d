"""Copies of the fx graphs of a program, nested ones included, in which every node keeps its name.

`copy.deepcopy` of a GraphModule copies the tensors that nested graphs hold, and renames placeholders called like a
builtin ("input" becomes "input_1"), which the signature of the program does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from bnfold.torch.fx.higher_order import nested_graphs, operands, set_operands


@dataclass(slots=True, eq=False)
class GraphCopy:
    """A copy of one graph.

    Attributes:
        original: The module of the graph that was copied.
        graph: The copy; its get_attr nodes have the targets of the original's.
        nested: The copies of nested graphs, by the targets that they are found under.
        outer: The copy that this one is nested in.
        callers: The nodes there that run this graph with operands.
    """

    original: fx.GraphModule
    graph: fx.Graph
    nested: "dict[str, GraphCopy]" = field(default_factory=dict)
    outer: "GraphCopy | None" = None
    callers: list[fx.Node] = field(default_factory=list)

    @property
    def placeholders(self) -> list[fx.Node]:
        """The placeholders, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def attributes(self) -> dict[str, object]:
        """What the get_attr nodes find, by target: new modules of the nested graphs, the old tensors."""
        found: dict[str, object] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr":
                nested = self.nested.get(node.target)
                found[node.target] = attribute(self.original, node.target) if nested is None else nested.module()
        return found

    def module(self) -> fx.GraphModule:
        """A new module of the graph."""
        module = fx.GraphModule(self.attributes(), self.graph, type(self.original).__name__)
        module.meta.update(self.original.meta)
        module.train(self.original.training)
        return module

    def walk(self) -> "Iterator[GraphCopy]":
        """This copy, and those of all graphs inside."""
        yield self
        for nested in self.nested.values():
            yield from nested.walk()

    def together(self) -> "tuple[list[fx.Node], list[GraphCopy]]":
        """The nodes that run this graph, and all graphs that they run, which must agree about their placeholders."""
        callers: list[fx.Node] = []
        graphs = [self]
        for graph in graphs:
            for caller in (node for node in graph.callers if node not in callers):
                callers.append(caller)
                around = graph.outer
                assert around is not None  # a graph with callers is a nested one
                run = (around.nested[target] for target in nested_graphs(caller))
                graphs += [sibling for sibling in dict.fromkeys(run) if sibling not in graphs]
        return callers, graphs

    def take_in(self, given: fx.Node, name: str) -> fx.Node:
        """Makes a value of the graph around this one an operand of it, and of what is run together with it.

        Args:
            given: The value, in `outer`.
            name: What the new placeholders are called.

        Returns:
            The one of this graph.
        """
        callers, graphs = self.together()
        for caller in callers:
            set_operands(caller, (*operands(caller), given))
        for graph in graphs:
            with graph.graph.inserting_after(graph.placeholders[-1]):
                placeholder = graph.graph.placeholder(name)
            placeholder.name = placeholder.target = name
            placeholder.meta["val"] = given.meta["val"]
        return self.placeholders[-1]

    def idle_placeholders(self, placeholder: fx.Node) -> list[fx.Node]:
        """A placeholder and those of the graphs run together that get the same operand; empty if one is read."""
        position = self.placeholders.index(placeholder)
        together = [graph.placeholders[position] for graph in self.together()[1]]
        return [] if any(node.users for node in together) else together

    def stop_taking(self, position: int) -> list[fx.Node]:
        """Drops an operand whose placeholders are gone; what it was, once for each node that gave it."""
        dropped = []
        for caller in self.together()[0]:
            given = [*operands(caller)]
            operand = given.pop(position)
            set_operands(caller, given)
            if isinstance(operand, fx.Node):
                dropped.append(operand)
        return dropped


def copy_graphs(module: fx.GraphModule) -> tuple[GraphCopy, dict[fx.Node, fx.Node]]:
    """Copies a graph with all graphs inside it; tensors are shared.

    Args:
        module: The module of the graph.

    Returns:
        The copy, and for each node of the original that of the copy.
    """
    nodes: dict[fx.Node, fx.Node] = {}
    return _copy(module, nodes, None), nodes


def attribute(module: fx.GraphModule, target: str) -> object:
    """What a get_attr node with a dotted target finds."""
    found: object = module
    for name in target.split("."):
        found = getattr(found, name)
    return found


def _copy(module: fx.GraphModule, nodes: dict[fx.Node, fx.Node], outer: GraphCopy | None) -> GraphCopy:
    copy = GraphCopy(module, fx.Graph(), outer=outer)
    for node in module.graph.nodes:
        copied = copy.graph.node_copy(node, nodes.__getitem__)
        copied.name = node.name
        if node.op == "placeholder":
            copied.target = node.target
        nodes[node] = copied
        if node.op == "get_attr":
            inner = attribute(module, node.target)
            if isinstance(inner, fx.GraphModule) and node.target not in copy.nested:
                copy.nested[node.target] = _copy(inner, nodes, copy)
    for node in copy.graph.nodes:
        for target in nested_graphs(node):
            copy.nested[target].callers.append(node)
    return copy
