"""The original with its stored parameters as open values, so that copies of it can run with other ones.

A parameter is a stored floating-point tensor of rank 1 or more that enters the arithmetic: initializers,
Constant nodes, ConstantOfShape of a known shape, and initializers and Constant nodes in subgraphs and
functions. Left as they are: scalars (exponents, thresholds) and constants that decide on shapes and branches;
see `deciding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.input_spec import Array
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.names import GraphLike, find_attribute, is_standard, nested
from bnfold.verification.onnx.outputs.deciding import Deciding, deciding_values
from bnfold.verification.onnx.outputs.long_sums import open_long_sums
from bnfold.verification.onnx.outputs.reaching import reached_outputs
from bnfold.verification.runtime.initializers import drop_unused_initializers, initializers_to_inputs

MOVABLE_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)


@dataclass(slots=True)
class OpenTensor:
    """A tensor whose value is given anew for each session.

    Attributes:
        name: Name of the value.
        movable: Whether it is a parameter.
        nbytes: Its size.
        read: Gives the stored value.
        place: Where a nested graph holds it; None for a tensor of the main graph, which is fed if it is movable (an
            input is read in place, and may change from run to run) and otherwise injected.
    """

    name: str
    movable: bool
    nbytes: int
    read: Callable[[], Array]
    place: onnx.TensorProto | None = None


@dataclass(slots=True)
class OpenModel:
    """The original, ready to be run with other parameters.

    Attributes:
        proto: The graph; what is to be fed is among its inputs, what is to be injected is declared as external data.
        tensors: Every tensor whose value has to be given.
        reached: Graph outputs that depend on a movable tensor.
        signs: Inputs that take 1 or -1: which way long sums move, see `long_sums`.
    """

    proto: onnx.ModelProto
    tensors: list[OpenTensor] = field(default_factory=list)
    reached: frozenset[str] = frozenset()
    signs: tuple[str, ...] = ()

    @property
    def holds_parameters(self) -> bool:
        """Whether a nested graph holds a parameter, so that every draw needs a session of its own."""
        return any(tensor.movable and tensor.place is not None for tensor in self.tensors)


def open_model(original: OnnxModel) -> OpenModel:
    """Prepare a copy of `original`, which is not changed."""
    model = original.copy()
    graph = model.proto.graph
    _constants_to_initializers(model)
    drop_unused_initializers(graph)
    opened = OpenModel(model.proto)
    deciding = deciding_values(graph)
    for tensor in graph.initializer:
        _open_initializer(model, tensor, deciding, opened)
    initializers_to_inputs(graph, {tensor.name for tensor in opened.tensors if tensor.movable})
    for inner in nested(graph):
        _open_held(model, inner, deciding, opened, is_main=inner is graph)
    for function in model.proto.functions:
        deciding = deciding_values(function)
        for inner in nested(function):
            _open_held(model, inner, deciding, opened)
    movable = [tensor.name for tensor in opened.tensors if tensor.movable]
    opened.reached = reached_outputs(opened.proto, movable)
    opened.signs = open_long_sums(model)
    return opened


def _constants_to_initializers(model: OnnxModel) -> None:
    """Make initializers of the main graph's float constants: onnxruntime takes values only for those."""
    graph = model.proto.graph
    outputs = {value.name for value in graph.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if is_standard(node, "Constant") and (value := find_attribute(node, "value")) is not None:
            stored[node.output[0]] = value.t
    kept = []
    for node in graph.node:
        tensor = None if node.output and node.output[0] in outputs else _stored_value(node, model, stored)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        rest = onnx.GraphProto(node=kept)
        del graph.node[:]
        graph.node.MergeFrom(rest.node)


def _stored_value(
    node: onnx.NodeProto, model: OnnxModel, stored: dict[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    """The float tensor that a Constant, or a ConstantOfShape of a stored shape, stands for; else None."""
    value = find_attribute(node, "value")
    if is_standard(node, "Constant"):
        floats = find_attribute(node, "value_floats")
        if floats is not None:
            return numpy_helper.from_array(np.array(floats.floats, np.float32))
        return value.t if value is not None and value.t.data_type in MOVABLE_TYPES else None
    if not is_standard(node, "ConstantOfShape") or node.input[0] not in stored:
        return None
    filler = model.array(value.t) if value is not None else np.zeros(1, np.float32)
    if helper.np_dtype_to_tensor_dtype(filler.dtype) not in MOVABLE_TYPES or not filler.any():
        return None
    shape = tuple(int(size) for size in model.array(stored[node.input[0]]))
    filled = lambda: np.full(shape, filler[0], filler.dtype)  # noqa: E731 - a value by name would be one more name
    return model.store.defer(node.output[0], shape, helper.np_dtype_to_tensor_dtype(filler.dtype), filled)


def _open_initializer(model: OnnxModel, tensor: onnx.TensorProto, deciding: Deciding, opened: OpenModel) -> None:
    movable = _is_movable(tensor, tensor.name, deciding)
    if not movable and tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    opened.tensors.append(OpenTensor(tensor.name, movable, model.store.nbytes(tensor), _reader(model, tensor)))
    declared = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    declared.data_location = onnx.TensorProto.EXTERNAL
    declared.external_data.add(key="location", value="given")
    tensor.CopyFrom(declared)


def _open_held(
    model: OnnxModel, graph: GraphLike, deciding: Deciding, opened: OpenModel, *, is_main: bool = False
) -> None:
    """Find the parameters that a graph holds where onnxruntime takes no values from outside."""
    held = [] if is_main or isinstance(graph, onnx.FunctionProto) else [(t, t.name) for t in graph.initializer]
    for node in graph.node:
        name = node.output[0] if is_standard(node, "Constant") else ""
        held += [(given.t, name) for given in node.attribute if given.type == onnx.AttributeProto.TENSOR]
    for tensor, name in held:
        movable = bool(name) and _is_movable(tensor, name, deciding)
        if movable or tensor.data_location == onnx.TensorProto.EXTERNAL:
            nbytes = model.store.nbytes(tensor)
            opened.tensors.append(OpenTensor(name, movable, nbytes, _reader(model, tensor), place=tensor))


def _is_movable(tensor: onnx.TensorProto, name: str, deciding: Deciding) -> bool:
    rank = len(tensor.dims)
    return tensor.data_type in MOVABLE_TYPES and rank > 0 and not deciding.decides(name, rank)


def _reader(model: OnnxModel, tensor: onnx.TensorProto) -> Callable[[], Array]:
    stored = onnx.TensorProto()
    stored.CopyFrom(tensor)
    return lambda: model.array(stored)
