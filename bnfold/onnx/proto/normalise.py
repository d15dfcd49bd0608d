"""One way of writing down what runtimes take in several.

onnxruntime runs models whose nodes are not sorted, that spell the default domain `ai.onnx`, that import a domain not at
all or twice, whose branches have initializers by the name of a value around them, or whose sizes are -1, 0 or "?". What
is planned is planned on such a model as the standard would have it.
Nothing here changes what a model computes.
"""

import re
from collections.abc import Iterable, MutableSequence
from copy import deepcopy
from typing import TypeVar

import onnx
from onnx import defs, helper

from bnfold.onnx.proto.names import (
    DEFAULT_DOMAINS,
    GraphLike,
    all_graphs,
    defined_names,
    is_standard,
    nested,
    reads_from_outside,
    subgraphs,
)
from bnfold.onnx.proto.order import execution_order

_LISTS_INITIALIZERS_BEFORE = 4
"""In older IR versions every initializer is also an input of its graph."""

Item = TypeVar("Item")

_PLACEHOLDER = re.compile(r"[^A-Za-z]*|none|null|nan|unk|unknown|any|dyn|dynamic", re.IGNORECASE)


def is_placeholder(symbol: str) -> bool:
    """Whether the name of a size says no more than that it is not known: "?", "", "-1", "None" and the like."""
    return _PLACEHOLDER.fullmatch(symbol) is not None


def normalise(proto: onnx.ModelProto) -> None:
    """Writes a model as the standard asks for, in place.

    Args:
        proto: A checked model.

    Raises:
        ModelLoadError: A value of it depends on itself.
    """
    drop_overridden(proto)
    drop_nameless_statistics(proto)
    for scope in (proto, *proto.functions):
        _name_domains(scope.opset_import, scope.graph if isinstance(scope, onnx.ModelProto) else scope)
    for graph in all_graphs(proto):
        order = execution_order(graph)
        if order != [*range(len(order))]:
            nodes = [graph.node[index] for index in order]
            _replace(graph.node, nodes)
        if isinstance(graph, onnx.GraphProto):
            _tidy(graph)
    if proto.ir_version < _LISTS_INITIALIZERS_BEFORE:
        _list_initializers(proto.graph)


def _name_domains(imports: MutableSequence[onnx.OperatorSetIdProto], graph: GraphLike) -> None:
    """Spells the default domain as "", and imports each domain that is used once."""
    versions = {"" if entry.domain in DEFAULT_DOMAINS else entry.domain: entry.version for entry in imports}
    used: dict[str, set[str]] = {}
    for inner in nested(graph):
        for node in inner.node:
            node.domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
            used.setdefault(node.domain, set()).add(node.op_type)
    for domain, op_types in used.items():
        if domain not in versions:
            versions[domain] = _newest(domain, op_types) if imports else 1
    _replace(imports, [helper.make_opsetid(domain, version) for domain, version in versions.items()])


def _newest(domain: str, op_types: set[str]) -> int:
    """The first version of a domain in which some operators are what they are in the newest one."""
    return max((defs.get_schema(name, domain).since_version for name in op_types if defs.has(name, domain)), default=1)


def drop_overridden(proto: onnx.ModelProto) -> None:
    """Takes initializers out of branches that get a value of that name from outside, in place.

    onnxruntime hands all branches what one of them reads, and prefers that to what another has of its own.
    """
    for graph in all_graphs(proto):
        for node in graph.node:
            branches = [inner for _, inner in subgraphs(node)]
            reads = [{*reads_from_outside(inner)} for inner in branches] if len(branches) > 1 else []
            for index in range(len(reads)):
                given = set().union(*reads[:index], *reads[index + 1 :])
                own = branches[index].initializer
                _replace(own, [tensor for tensor in own if tensor.name not in given])


def drop_nameless_statistics(proto: onnx.ModelProto) -> bool:
    """Takes outputs without a name from BatchNormalizations that have no others but their first, in place.

    Without its optimisations, onnxruntime crashes where it is asked for them.

    Returns:
        Whether there were any.
    """
    found = [
        node
        for graph in all_graphs(proto)
        for node in graph.node
        if is_standard(node, "BatchNormalization") and len(node.output) > 1 and not any(node.output[1:])
    ]
    for node in found:
        del node.output[1:]
    return bool(found)


def _tidy(graph: onnx.GraphProto) -> None:
    graph.name = graph.name or "graph"
    _replace(graph.initializer, {tensor.name: tensor for tensor in graph.initializer if tensor.name}.values())
    known = {*defined_names(graph)} - {value.name for value in (*graph.input, *graph.output)}
    infos = {value.name: value for value in graph.value_info if value.name in known and value.HasField("type")}
    _replace(graph.value_info, infos.values())
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim if value.type.tensor_type.HasField("shape") else ():
                if is_unknown(dim):
                    dim.Clear()


def is_unknown(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a declared size says nothing: exporters write unknown ones as 0, as -1, or as a placeholder."""
    return dim.dim_value <= 0 if dim.HasField("dim_value") else is_placeholder(dim.dim_param)


def _list_initializers(graph: onnx.GraphProto) -> None:
    listed = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in listed
    )


def _replace(field: MutableSequence[Item], items: Iterable[Item]) -> None:
    kept = [*items]
    if len(kept) == len(field) and all(new is old for new, old in zip(kept, field, strict=True)):
        return
    copies = [deepcopy(item) for item in kept]
    del field[:]
    field.extend(copies)
