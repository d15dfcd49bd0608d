"""Walks over everything in a model, nested graphs and functions included."""

import math
from collections.abc import Iterable, Iterator

import onnx

_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from all_nodes(graph.node)


def model_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All dense tensors of a model: initializers and attributes."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def count_parameters(proto: onnx.ModelProto) -> int:
    """How many floating-point numbers a model stores."""
    tensors = (tensor for tensor in model_tensors(proto) if tensor.data_type in _FLOATS)
    return sum(math.prod(tensor.dims) for tensor in tensors)


def is_text(proto: onnx.ModelProto) -> bool:
    """Whether all names are UTF-8: protobuf hands others out as bytes, which no code expects."""
    names: list[str] = []
    _collect_graph_names(proto.graph, names)
    for function in proto.functions:
        names += (function.name, function.domain, *function.input, *function.output)
        _collect_node_names(function.node, names)
    return set(map(type, names)) <= {str}


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in _subgraphs(node):
            yield from _graph_tensors(graph)


def _collect_graph_names(graph: onnx.GraphProto, names: list[str]) -> None:
    names.append(graph.name)
    for named in (graph.initializer, graph.input, graph.output, graph.value_info):
        names += [item.name for item in named]
    _collect_node_names(graph.node, names)


def _collect_node_names(nodes: Iterable[onnx.NodeProto], names: list[str]) -> None:
    for node in nodes:
        names += (node.name, node.op_type, node.domain)
        names += node.input
        names += node.output
        names += [attribute.name for attribute in node.attribute]
        for graph in _subgraphs(node):
            _collect_graph_names(graph, names)
