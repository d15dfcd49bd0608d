"""What the nodes of a lifted program are called in plans and reports."""

from collections import Counter

from bnfold.graph import AffineNode, Graph, Kind, MapNode, Node
from bnfold.torch.lift.provenance import Handle


def give_names(graph: Graph, start: int, inputs: str = "") -> None:
    """Names the nodes of a graph, uniquely.

    A batch norm or a linear map that is the only one of its module has the path of the module; everything else that
    path and the name of its node in the program, behind the region for a nested graph.

    Args:
        graph: The graph.
        start: The position of the first node that has no name of its own yet.
        inputs: What names that are taken have in brackets.
    """
    taken = {node.name for node in graph.nodes[:start]}
    calls: dict[str, str | None] = {}
    count: Counter[tuple[str, str | None]] = Counter()
    for node in graph.nodes[start:]:
        if _is_layer(node) and isinstance(node.handle, Handle) and node.handle.module is not None:
            calls.setdefault(node.handle.module, node.handle.call)
            count[node.handle.module, node.handle.call] += 1
    numbers: Counter[str] = Counter()
    for node in graph.nodes[start:]:
        name = node.name
        if isinstance(node.handle, Handle):
            name = _long_name(node.handle)
            module, call = node.handle.module, node.handle.call
            if _is_layer(node) and module and calls[module] == call and count[module, call] == 1:
                name = module if inputs or module not in taken else name
        if inputs and name in taken:
            name = f"{name} ({inputs})"
        node.name = name
        while node.name in taken:
            numbers[name] += 1
            node.name = f"{name}#{numbers[name] + 1}"
        taken.add(node.name)


def _is_layer(node: Node) -> bool:
    return isinstance(node, MapNode) or (isinstance(node, AffineNode) and node.kind is Kind.BATCH_NORM)


def _long_name(handle: Handle) -> str:
    parts = (handle.scope.prefix if handle.module is None else handle.module, handle.scope.region, handle.node.name)
    return "/".join(part for part in parts if part)
