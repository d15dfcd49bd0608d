"""Initializers as onnxruntime wants them: read by something, and inputs where they are fed."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper, numpy_helper

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.names import nested, subgraphs
from bnfold.onnx.proto.walk import all_nodes


def drop_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing reads: onnxruntime forgets them, and then refuses a value for them."""
    read = {value.name for value in graph.output}
    read.update(name for inner in nested(graph) for node in inner.node for name in node.input)
    read.update(value.name for inner in nested(graph) for value in inner.output)
    unused = {tensor.name for tensor in graph.initializer} - read
    if unused:
        used = [tensor for tensor in graph.initializer if tensor.name not in unused]
        inputs = [value for value in graph.input if value.name not in unused]
        rest = onnx.GraphProto(initializer=used, input=inputs)
        del graph.initializer[:], graph.input[:]
        graph.initializer.MergeFrom(rest.initializer)
        graph.input.MergeFrom(rest.input)


def referred_initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The initializers whose values are not in the graph."""
    return [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


def embed_attributes(model: OnnxModel) -> None:
    """Put the values of tensors in attributes in place: onnxruntime takes only initializers from outside."""
    for node in all_nodes(model.proto.graph.node):
        held = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        held += [tensor for _, graph in subgraphs(node) for tensor in graph.initializer]
        for tensor in held:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(model.array(tensor), tensor.name))


def initializers_to_inputs(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Make inputs of some initializers, which must then be fed: onnxruntime copies initializers, and reads inputs."""
    inputs = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in graph.initializer
        if tensor.name in names
    ]
    rest = onnx.GraphProto(
        initializer=[tensor for tensor in graph.initializer if tensor.name not in names],
        input=[value for value in graph.input if value.name not in names],
    )
    del graph.initializer[:], graph.input[:]
    graph.initializer.MergeFrom(rest.initializer)
    graph.input.MergeFrom(rest.input)
    graph.input.extend(inputs)
