"""Names, attributes and nesting of ONNX graphs."""

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import defs

GraphLike = onnx.GraphProto | onnx.FunctionProto

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Both spellings of the domain of the standard operators."""

_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS  # looked up once: every node is asked often


def label(node: onnx.NodeProto) -> str:
    """What a report calls a node: its name, or its operator and first output where it has none."""
    return node.name or f"{node.op_type}({next(iter(node.output), '')})"


def is_standard(node: onnx.NodeProto, *op_types: str) -> bool:
    """Whether a node is one of these operators of the default domain."""
    return node.op_type in op_types and node.domain in DEFAULT_DOMAINS


def opset_version(imports: Sequence[onnx.OperatorSetIdProto]) -> int:
    """The version of the default domain that runtimes take: the last one that is imported.

    Where others are imported but not this one, it is the newest; the files of before there were imports are of opset 1.
    """
    if not imports:
        return 1
    versions = [entry.version for entry in imports if entry.domain in DEFAULT_DOMAINS]
    return versions[-1] if versions else defs.onnx_opset_version()


def find_attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """The attribute of that name, or None."""
    return next((given for given in node.attribute if given.name == name), None)


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    given = find_attribute(node, name)
    return default if given is None else given.i


def float_attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A float attribute, exactly as stored (float32)."""
    given = find_attribute(node, name)
    return default if given is None else given.f


def string_attribute(node: onnx.NodeProto, name: str, default: str) -> str:
    """A string attribute."""
    given = find_attribute(node, name)
    return default if given is None else given.s.decode("utf-8", "replace")


def ints_attribute(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    """A list of integers, empty where it is absent."""
    given = find_attribute(node, name)
    return () if given is None else tuple(given.ints)


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in the attributes of a node (the branches of If, the bodies of Loop and Scan), with their names."""
    for given in node.attribute:
        kind = given.type
        if kind == _GRAPH:
            yield given.name, given.g
        elif kind == _GRAPHS:
            for index, graph in enumerate(given.graphs):
                yield f"{given.name}_{index}", graph


def nested(graph: GraphLike) -> Iterator[GraphLike]:
    """A graph or function, and every graph inside it."""
    yield graph
    for node in graph.node:
        for _, inner in subgraphs(node):
            yield from nested(inner)


def all_graphs(model: onnx.ModelProto) -> Iterator[GraphLike]:
    """The main graph, the functions, and every graph inside them."""
    yield from nested(model.graph)
    for function in model.functions:
        yield from nested(function)


def count_ops(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator a model has, nested graphs and functions included, sorted by name."""
    counts: dict[str, int] = {}
    for graph in all_graphs(model):
        for node in graph.node:
            name = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


class FreshNames:
    """Gives out names that no value and no node of a model has.

    Args:
        model: The model; every name in it, in nested graphs and functions too, counts as taken.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}
        for graph in all_graphs(model):
            self._taken.update(_value_names(graph))
            for node in graph.node:
                self._taken.add(node.name)
                self._taken.update(node.input)
                self._taken.update(node.output)

    def fresh(self, base: str) -> str:
        """A new name that begins with `base`."""
        name = base
        while name in self._taken:
            self._numbers[base] = self._numbers.get(base, 1) + 1
            name = f"{base}_{self._numbers[base]}"
        self._taken.add(name)
        return name


def interface(graph: GraphLike) -> Iterator[str]:
    """The names of the inputs and outputs of a graph or function."""
    for values in (graph.input, graph.output):
        yield from (value if isinstance(value, str) else value.name for value in values)


def defined_names(graph: GraphLike) -> Iterator[str]:
    """The names of the values that a graph or function computes, holds or is given."""
    yield from (value if isinstance(value, str) else value.name for value in graph.input)
    yield from (name for node in graph.node for name in node.output)
    if isinstance(graph, onnx.GraphProto):
        yield from (tensor.name for tensor in graph.initializer)
        yield from (sparse.values.name for sparse in graph.sparse_initializer)


def reads_from_outside(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of the values around a nested graph that it reads, one entry for each use."""
    own = {*defined_names(graph), ""}
    for node in graph.node:
        yield from (name for name in node.input if name not in own)
        for _, inner in subgraphs(node):
            yield from (name for name in reads_from_outside(inner) if name not in own)
    yield from (value.name for value in graph.output if value.name not in own)


def rename_reads(graph: GraphLike, renamed: Mapping[str, str]) -> None:
    """Calls values something else wherever the nodes of a graph read or compute them.

    The graphs in these nodes read them too, except where a name is that of a value of their own.
    """
    for node in graph.node if renamed else ():
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in renamed:
                    names[position] = renamed[name]
        for _, inner in subgraphs(node):
            own = {*defined_names(inner)}
            rename_reads(inner, {old: new for old, new in renamed.items() if old not in own})


def rename_own(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Calls values of a nested graph something else, its inputs and outputs too: nobody knows these by name."""
    rename_reads(graph, renamed)
    tensors = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    for item in (*graph.input, *graph.output, *graph.value_info, *tensors):
        item.name = renamed.get(item.name, item.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = renamed.get(annotation.tensor_name, annotation.tensor_name)


def _value_names(graph: GraphLike) -> Iterator[str]:
    yield from (value.name for value in graph.value_info)
    yield from interface(graph)
    if isinstance(graph, onnx.FunctionProto):
        return
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
