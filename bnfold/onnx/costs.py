"""What one run of a model takes: multiply-adds, and memory for what it computes on the way.

    Conv             output elements · elements of one filter
    ConvTranspose    input elements · elements of one filter
    Gemm, MatMul     output elements · length of the sum
    BatchNorm, Mul   one an output element

Memory is what a runtime needs that computes node after node and gives a value's memory back after its last use; one
that fuses nodes, or computes in place, needs less. Weights and what follows from them alone are not in it.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import ValueTypes, dtype_in, shape_in, value_types
from bnfold.onnx.proto.names import DEFAULT_DOMAINS, int_attribute, is_standard, subgraphs

_UNCOUNTED = frozenset(
    "Attention ConvInteger DeformConv Einsum GRU LSTM MatMulInteger QLinearConv QLinearMatMul RNN".split()
)
"""Operators with multiply-adds that are not counted here."""

_ONE_EACH = ("BatchNormalization", "Mul")


def run_costs(model: OnnxModel) -> tuple[int, int] | None:
    """Counts what one run takes, with 1 for the first dimension of each input where that is open.

    Args:
        model: A checked model; it is not changed.

    Returns:
        Multiply-adds, and the bytes of all values that are alive at a time; None if a size, a type or an operator is
        not known, or there are graphs in nodes, for what these do depends on the run.
    """
    single = model.copy()
    for value in single.proto.graph.input:
        for dim in value.type.tensor_type.shape.dim[:1]:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    graph = with_inferred_shapes(single).graph
    constant = {tensor.name for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain not in DEFAULT_DOMAINS or node.op_type in _UNCOUNTED or any(subgraphs(node)):
            return None
        if constant.issuperset(filter(None, node.input)):
            constant.update(node.output)
        else:
            nodes.append(node)
    types = value_types(graph)
    try:
        return sum(_multiply_adds(node, types) for node in nodes), _peak_nbytes(graph, nodes, constant, types)
    except _UnknownSizeError:
        return None


class _UnknownSizeError(Exception):
    """A size or an element type is not known."""


def _multiply_adds(node: onnx.NodeProto, types: ValueTypes) -> int:
    if is_standard(node, *_ONE_EACH):
        return _elements(node.output[0], types)
    if is_standard(node, "Conv"):
        return _elements(node.output[0], types) * math.prod(_sizes(node.input[1], types)[1:])
    if is_standard(node, "ConvTranspose"):
        return _elements(node.input[0], types) * math.prod(_sizes(node.input[1], types)[1:])
    if is_standard(node, "MatMul"):
        return _elements(node.output[0], types) * _sizes(node.input[0], types)[-1]
    if is_standard(node, "Gemm"):
        summed = 0 if int_attribute(node, "transA", 0) else 1
        return _elements(node.output[0], types) * _sizes(node.input[0], types)[summed]
    return 0


def _peak_nbytes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], constant: set[str], types: ValueTypes) -> int:
    last_use = {name: place for place, node in enumerate(nodes) for name in node.input}
    last_use.update((value.name, len(nodes)) for value in graph.output)
    alive = {value.name: _nbytes(value.name, types) for value in graph.input if value.name not in constant}
    total = peak = sum(alive.values())
    for place, node in enumerate(nodes):
        made = {name: _nbytes(name, types) for name in node.output if name}
        alive.update(made)
        total += sum(made.values())
        peak = max(peak, total)
        done = {name for name in (*node.input, *made) if last_use.get(name, place) == place}
        total -= sum(alive.pop(name, 0) for name in done)
    return peak


def _elements(name: str, types: ValueTypes) -> int:
    return math.prod(_sizes(name, types))


def _nbytes(name: str, types: ValueTypes) -> int:
    dtype = dtype_in(types, name)
    if not dtype:
        raise _UnknownSizeError
    return _elements(name, types) * np.dtype(dtype).itemsize


def _sizes(name: str, types: ValueTypes) -> list[int]:
    shape = shape_in(types, name)
    sizes = [size for size in shape or () if isinstance(size, int)]
    if shape is None or len(sizes) < len(shape):
        raise _UnknownSizeError
    return sizes
