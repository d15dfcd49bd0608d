"""What a model must be for its graph to be understood: less than the standard asks for, never more than runtimes do.

Sizes, shapes and types that are declared are not looked at, nor are domains, or the order of nodes: see `normalise`.
Operators that nobody knows are fine, they are left alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod

import onnx
from onnx import defs

from bnfold.errors import ModelLoadError
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.file.tensors import require_nbytes
from bnfold.onnx.proto.names import DEFAULT_DOMAINS, GraphLike, all_graphs, label, nested, opset_version, subgraphs
from bnfold.onnx.proto.order import execution_order
from bnfold.onnx.proto.schemas import schema_of
from bnfold.onnx.proto.unfolding import require_expandable
from bnfold.onnx.proto.walk import model_tensors

_EXPORT_AGAIN = "Export the model again, or mend it where it was written."


def check(model: OnnxModel) -> None:
    """Requires that a model can be understood.

    Raises:
        ModelLoadError: It contradicts itself; the message names the value or node.
        UnsupportedModelError: Its functions call each other without end, or too often to be looked at.
    """
    require_expandable(model.proto, str(model.path or "The model"))
    problem = next(_problems(model), "")
    if problem:
        raise ModelLoadError(f"{model.path or 'The model'} is not a valid ONNX model: {problem}", hint=_EXPORT_AGAIN)
    for graph in all_graphs(model.proto):
        try:
            execution_order(graph)
        except ModelLoadError as error:
            message = f"{model.path or 'The model'} is not a valid ONNX model: {error}"
            raise ModelLoadError(message, hint=error.hint) from error


def _problems(model: OnnxModel) -> Iterator[str]:
    proto = model.proto
    if not proto.ir_version:
        yield "it has no ir_version"
    if proto.ir_version > onnx.IR_VERSION:
        yield f"its IR version is {proto.ir_version}, and the installed onnx knows them up to {onnx.IR_VERSION}"
    if not proto.opset_import and proto.ir_version >= _OPSETS_SINCE_IR_VERSION:
        yield "it does not say which opset it is written in (opset_import is empty)"
    yield from filter(None, (_tensor_problem(model, tensor) for tensor in model_tensors(proto)))
    yield from _function_problems(proto)
    yield from _graph_problems(model, proto.graph, frozenset(), opset_version(proto.opset_import))
    for function in proto.functions:
        yield from _graph_problems(model, function, frozenset(), opset_version(function.opset_import))


_OPSETS_SINCE_IR_VERSION = 3


_FIELDS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.INT64: "int64_data",
}


def _tensor_problem(model: OnnxModel, tensor: onnx.TensorProto) -> str:
    """What is wrong with the values of a tensor that carries them itself; "" if nothing is."""
    if not tensor.data_type:
        return f"the tensor '{tensor.name}' has no data type"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        found = model.store.find(tensor) is not None
        return "" if found else f"the tensor '{tensor.name}' has its data in another file, and does not say in which"
    if tensor.data_type == onnx.TensorProto.STRING:
        return ""
    if tensor.raw_data:
        require_nbytes(tensor, len(tensor.raw_data), "The model")
        return ""
    field = _FIELDS.get(tensor.data_type)
    count, wanted = len(getattr(tensor, field)) if field else 0, prod(tensor.dims)
    return f"the tensor '{tensor.name}' needs {wanted} numbers and has {count}" if field and count != wanted else ""


def _function_problems(proto: onnx.ModelProto) -> Iterator[str]:
    bodies = {(function.domain, function.name, function.overload): function for function in proto.functions}
    if len(bodies) < len(proto.functions):
        counts = Counter((function.domain, function.name, function.overload) for function in proto.functions)
        yield f"it has two functions called '{counts.most_common(1)[0][0][1]}'"
    calls = {
        key: {(node.domain, node.op_type, node.overload) for graph in nested(body) for node in graph.node}
        & bodies.keys()
        for key, body in bodies.items()
    }
    while calls:
        leaves = [key for key, called in calls.items() if not called & calls.keys()]
        if not leaves:
            yield f"the function '{next(iter(calls))[1]}' calls itself"
            return
        for key in leaves:
            del calls[key]


def _graph_problems(model: OnnxModel, graph: GraphLike, around: frozenset[str], opset: int) -> Iterator[str]:
    if isinstance(graph, onnx.GraphProto):
        yield from _initializer_problems(model, graph)
        given = [value.name for value in graph.input]
        held = {tensor.name for tensor in graph.initializer}
        held |= {sparse.values.name for sparse in graph.sparse_initializer}
        outputs = [value.name for value in graph.output]
    else:
        given, held, outputs = [*graph.input], set(), [*graph.output]
    computed = [name for node in graph.node for name in node.output if name]
    twice = [name for name, count in Counter([*{*given, *held}, *computed]).items() if count > 1]
    twice += [name for name, count in Counter(given).items() if count > 1]
    if isinstance(graph, onnx.GraphProto):
        sparse = Counter(tensor.values.name for tensor in graph.sparse_initializer)
        twice += [name for name, count in sparse.items() if count > 1]
    if twice:
        yield f"the value '{twice[0]}' is defined twice"
    visible = around.union(given, held, computed)
    for node in graph.node:
        yield from _node_problems(node, opset)
        missing = next((name for name in node.input if name and name not in visible), None)
        if missing is not None:
            yield f"{node.op_type} '{label(node)}' reads '{missing}', which nothing gives"
        for _, inner in subgraphs(node):
            yield from _graph_problems(model, inner, visible, opset)
    missing = next((name for name in outputs if name not in visible), None)
    if missing is not None:
        yield f"nothing gives its output '{missing}'"


def _initializer_problems(model: OnnxModel, graph: onnx.GraphProto) -> Iterator[str]:
    first: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        other = first.setdefault(tensor.name, tensor)
        if other is not tensor and not _equal(model, tensor, other):
            yield f"it has two initializers called '{tensor.name}' with different values"


def _equal(model: OnnxModel, first: onnx.TensorProto, second: onnx.TensorProto) -> bool:
    if first.data_type != second.data_type or first.dims != second.dims:
        return False
    if first.data_type == onnx.TensorProto.STRING:
        return list(first.string_data) == list(second.string_data)
    return bool(model.array(first).tobytes() == model.array(second).tobytes())


def _node_problems(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    if not node.op_type:
        yield f"the node '{label(node)}' names no operator"
        return
    what = f"{node.op_type} '{label(node)}'"
    names = [given.name for given in node.attribute]
    for given in node.attribute:
        if not given.type and not given.ref_attr_name:
            yield f"the attribute '{given.name}' of {what} has no type"
    if len(set(names)) < len(names):
        yield f"{what} has an attribute '{Counter(names).most_common(1)[0][0]}' twice"
    if node.domain not in DEFAULT_DOMAINS:
        return
    schema = schema_of(node.op_type, opset)
    if schema is None:  # of an opset that nobody knows, or an operator that is not in it
        near = schema_of(node.op_type, min(max(opset, 1), defs.onnx_opset_version()))
        if near is not None and len(node.input) < near.inputs[0]:
            yield f"{what} has {len(node.input)} inputs, and the operator at least {near.inputs[0]}"
        return
    for kind, count, (least, most) in (
        ("inputs", len(node.input), schema.inputs),
        ("outputs", len(node.output), schema.outputs),
    ):
        if not least <= count <= most:
            yield f"{what} has {count} {kind}, and the operator at least {least} and at most {most}"
    for given in node.attribute:
        wanted = schema.attributes.get(given.name)
        if wanted is not None and given.type != wanted:
            yield f"the attribute '{given.name}' of {what} is of another type than the operator's"
    lacking = next((name for name in schema.required if name not in names), None)
    if lacking is not None:
        yield f"{what} lacks its attribute '{lacking}'"
