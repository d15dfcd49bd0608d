"""Which nodes read the parameters and buffers of a program, those of nested graphs among them."""

from collections import Counter
from collections.abc import Iterator

from torch import fx
from torch.export import ExportedProgram

from bnfold.torch.fx.graph_copy import attribute
from bnfold.torch.fx.higher_order import nested_graphs, operands


def readers_by_name(program: ExportedProgram) -> dict[str, Counter[fx.Node]]:
    """For the name of each tensor that a program takes: the nodes that read it, with how many times each."""
    found: dict[str, Counter[fx.Node]] = {}
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    for spec, node in zip(program.graph_signature.input_specs, placeholders, strict=True):
        if spec.target is not None:
            found.setdefault(spec.target, Counter()).update(_readers(program.graph_module, node))
    return found


def _readers(module: fx.GraphModule, value: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a value, one entry for each time."""
    for user in value.users:
        graphs = nested_graphs(user)
        if not graphs:
            yield from [user] * _count(user, value)
            continue
        given = operands(user)
        outside = _count(user, value) - given.count(value)
        yield from [user] * outside
        for target in graphs:
            nested = attribute(module, target)
            assert isinstance(nested, fx.GraphModule)  # what these operators run
            inner = [node for node in nested.graph.nodes if node.op == "placeholder"]
            for operand, placeholder in zip(given, inner, strict=True):
                if operand is value:
                    yield from _readers(nested, placeholder)


def _count(user: fx.Node, value: fx.Node) -> int:
    """How many times a node has a value among its arguments."""
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return found.count(value)
