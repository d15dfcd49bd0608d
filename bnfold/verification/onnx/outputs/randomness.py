"""Nodes that draw random numbers: two runs of one model differ, so comparing two models says nothing."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import numpy_helper

from bnfold.onnx.proto.names import all_graphs, is_standard, label
from bnfold.onnx.proto.walk import all_nodes

_RANDOM_OPS = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)
_TRAINING_MODE_INPUT = 2  # of Dropout, from opset 12 on; before, Dropout is the identity


def find_random_node(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto] | None = None) -> str | None:
    """Finds what draws random numbers.

    Args:
        model: The model.
        nodes: Those of its nodes that are asked about; all of them if left out.

    Returns:
        What a message calls the first such node, nested ones included; or None.
    """
    asked = (node for graph in all_graphs(model) for node in graph.node) if nodes is None else all_nodes(nodes)
    for node in asked:
        if is_standard(node, *_RANDOM_OPS):
            return f"{node.op_type} {label(node)!r}"
        if is_standard(node, "Dropout") and _may_train(node, model):
            return f"Dropout {label(node)!r} in training mode"
    return None


def _may_train(dropout: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if len(dropout.input) <= _TRAINING_MODE_INPUT or not dropout.input[_TRAINING_MODE_INPUT]:
        return False
    name = dropout.input[_TRAINING_MODE_INPUT]
    values = []
    for graph in all_graphs(model):
        if isinstance(graph, onnx.GraphProto):
            values += [tensor for tensor in graph.initializer if tensor.name == name]
        for node in graph.node:
            if is_standard(node, "Constant") and name in node.output:
                values += [given.t for given in node.attribute if given.name == "value"]
    return not values or any(bool(numpy_helper.to_array(value).any()) for value in values)
