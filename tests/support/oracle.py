"""The oracle: what an ONNX model computes, in float64.

`to_double` gives the same graph with every floating-point type turned into float64; `evaluate` runs it with onnx's
own reference evaluator. Together they say what a file means without the rounding of float32, so that an exact
transform can be told from a wrong one at 1e-10. Attributes such as `epsilon` keep the float32 value that the format
stores: they are part of what the file says.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import oracle_ops
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Integer attributes that name an element type.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")

# Operators that give float32 when such an attribute is absent.
FLOAT_BY_DEFAULT = {
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "EyeLike": "dtype",
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}

# The evaluator itself works in the input's type and refuses any other value.
NORMALISED_IN_INPUT_TYPE = ("LayerNormalization", "RMSNormalization", "GroupNormalization")


class DoubleEvaluator(ReferenceEvaluator):
    """onnx's reference evaluator with the operators of `oracle_ops`.

    As a class of its own because the evaluator makes more of its class for functions (the body of Gelu, say), without
    the operators that it was given itself.
    """

    def __init__(self, proto: object, *, new_ops: Sequence[type[OpRun]] | None = None, **options: object) -> None:
        super().__init__(proto, new_ops=[*(new_ops or ()), *oracle_ops.OPERATORS], **options)


def evaluate(
    model: ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    intermediate: bool = False,
    operators: Sequence[type[OpRun]] = (),
) -> dict[str, np.ndarray]:
    """Runs a model.

    Args:
        model: A model in float64 (`to_double`), or in float32 for a check of the oracle itself.
        feeds: One array for each graph input that has no initializer. Floating-point arrays are cast to the type that
            the input declares.
        intermediate: Gives every value of the main graph, not only the outputs.
        operators: Implementations to be used before those of `oracle_ops`.
    """
    declared = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    typed = {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(declared[name]))
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in feeds.items()
    }
    evaluator = DoubleEvaluator(model, new_ops=operators)
    with oracle_ops.one_thread():
        if intermediate:
            return evaluator.run(None, typed, intermediate=True)
        return dict(zip(evaluator.output_names, evaluator.run(None, typed), strict=True))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what is expected; infinite where NaN or infinity differ."""
    if actual.shape != expected.shape or actual.dtype.kind != expected.dtype.kind:
        return float("inf")
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return 0.0 if np.array_equal(actual, expected, equal_nan=True) else float("inf")
    difference = np.linalg.norm((actual.astype(np.float64) - expected.astype(np.float64)).ravel())
    return float(difference / max(np.linalg.norm(expected.astype(np.float64).ravel()), np.finfo(np.float64).tiny))


def without_functions(model: onnx.ModelProto, *, convert_version: bool = False) -> onnx.ModelProto:
    """A model with its functions inlined; onnx's inliner knows no defaults of attributes, so calls give them first."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    functions = {(function.domain, function.name): function for function in copy.functions}
    for node in [*copy.graph.node, *(node for function in copy.functions for node in function.node)]:
        function = functions.get((node.domain, node.op_type))
        given = {attribute.name for attribute in node.attribute}
        if function is not None:
            node.attribute.extend(default for default in function.attribute_proto if default.name not in given)
    return inline_local_functions(copy, convert_version=convert_version)


def to_double(model: ModelProto) -> ModelProto:
    """The same graph in float64.

    Local functions are inlined. Where an operator's definition has no float64 (the scales of Resize, quantisation),
    a Cast to float32 goes before that input and a Cast to float64 behind that output.

    Raises:
        ValueError: An input or output of that kind has a type that shape inference cannot tell.
    """
    inferred = onnx.shape_inference.infer_shapes(without_functions(model))
    double = ModelProto()
    double.CopyFrom(without_functions(model))
    opsets = {entry.domain: entry.version for entry in double.opset_import}
    _convert_graph(double.graph, inferred.graph, opsets, {})
    return double


def _convert_graph(
    graph: GraphProto, inferred: GraphProto, opsets: Mapping[str, int], outer_types: Mapping[str, int]
) -> None:
    types = {**outer_types, **_element_types(inferred)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        _convert_type(value.type)
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _convert_tensor(sparse.values)
    nodes: list[NodeProto] = []
    for node, inferred_node in zip(graph.node, inferred.node, strict=True):
        for attribute, twin in zip(node.attribute, inferred_node.attribute, strict=True):
            _convert_attribute(attribute, twin, opsets, types)
        _add_default_types(node)
        nodes.extend(_with_casts(node, opsets, types))
    del graph.node[:]
    graph.node.extend(nodes)


def _element_types(graph: GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return types


def _convert_type(proto: TypeProto) -> None:
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor_type = getattr(proto, kind)
        if tensor_type.elem_type in FLOATS:
            tensor_type.elem_type = TensorProto.DOUBLE
    elif kind in ("sequence_type", "optional_type"):
        _convert_type(getattr(proto, kind).elem_type)
    elif kind == "map_type":
        _convert_type(proto.map_type.value_type)


def _convert_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _convert_attribute(
    attribute: AttributeProto, inferred: AttributeProto, opsets: Mapping[str, int], types: Mapping[str, int]
) -> None:
    if attribute.name in ("value_float", "value_floats"):
        numbers = np.asarray(onnx.helper.get_attribute_value(attribute), dtype=np.float64)
        attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(numbers)))
    elif attribute.name in TYPE_ATTRIBUTES and attribute.i in FLOATS:
        attribute.i = TensorProto.DOUBLE
    for tensor in (attribute.t, *attribute.tensors, attribute.sparse_tensor.values):
        _convert_tensor(tensor)
    for type_proto in (attribute.tp, *attribute.type_protos):
        _convert_type(type_proto)
    if attribute.HasField("g"):
        _convert_graph(attribute.g, inferred.g, opsets, types)
    for graph, twin in zip(attribute.graphs, inferred.graphs, strict=True):
        _convert_graph(graph, twin, opsets, types)


def _add_default_types(node: NodeProto) -> None:
    present = {attribute.name for attribute in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" not in present:
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1))))
    default = FLOAT_BY_DEFAULT.get(node.op_type)
    if default and default not in present:
        node.attribute.append(onnx.helper.make_attribute(default, TensorProto.DOUBLE))
    if node.op_type in NORMALISED_IN_INPUT_TYPE:
        kept = [attribute for attribute in node.attribute if attribute.name != "stash_type"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _with_casts(node: NodeProto, opsets: Mapping[str, int], types: Mapping[str, int]) -> Iterator[NodeProto]:
    """A converted node between the casts that its definition asks for."""
    without_double = list(_slots_without_double(node, opsets))
    after: list[NodeProto] = []
    for names, index in without_double:
        name = names[index]
        if name not in types or types[name] == TensorProto.UNDEFINED:
            raise ValueError(f"{node.op_type} {node.name!r} takes no float64, and the type of {name!r} is unknown")
        if types[name] not in FLOATS:
            continue
        single = f"{name}/float32/{node.op_type}/{node.output[0]}/{index}"
        if names is node.input:
            yield onnx.helper.make_node("Cast", [name], [single], to=TensorProto.FLOAT)
        else:
            after.append(onnx.helper.make_node("Cast", [single], [name], to=TensorProto.DOUBLE))
        names[index] = single
    yield node
    yield from after


def _slots_without_double(node: NodeProto, opsets: Mapping[str, int]) -> Iterator[tuple[list[str], int]]:
    """The inputs and outputs of a node, as (names, position), whose definition has float32 but no float64."""
    if not onnx.defs.has(node.op_type, node.domain) or node.domain not in opsets:
        return
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            allowed = formals[min(index, len(formals) - 1)].types
            if name and "tensor(float)" in allowed and "tensor(double)" not in allowed:
                yield names, index
