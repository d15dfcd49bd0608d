"""Shapes and element types: what follows from the nodes, from the weights around them, and then from what is declared.

onnx's inference follows integers through Shape, Gather, Concat and a few others. Exporters compute shapes with more
than that (Mod, Where, …), and behind one Reshape whose shape is not followed every rank is unknown. Where such an input
is a constant expression after all, its value is put in its place; where a weight proves what its reader is given, that
is noted (see `proofs`); and inference runs again.

What a file declares of its own values may be left over from an earlier version of the model: runtimes go by what they
compute. So it is asked last, and if any of it contradicts what follows, none of it is believed. An initializer that a
caller may override is no constant: what is computed with it may have another shape each time.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper

from bnfold.onnx.file.load import OnnxModel, skeleton_for_inference
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.shapes.as_run import own_functions, read_as_run
from bnfold.onnx.lift.shapes.calls import FunctionKey, inferred_functions
from bnfold.onnx.lift.shapes.proofs import contradicts_readers, contradicts_turns, note_proofs
from bnfold.onnx.lift.shapes.reshapes import note_reshapes
from bnfold.onnx.lift.shapes.varying import values_of_varying_rank
from bnfold.onnx.lift.shapes.windows import mend_sizes
from bnfold.onnx.lift.types import ValueTypes, declare, shape_in, shape_of, value_types
from bnfold.onnx.proto.inlining import inlined
from bnfold.onnx.proto.names import is_standard, nested, opset_version
from bnfold.onnx.proto.normalise import normalise
from bnfold.onnx.proto.unfolding import data_stays_small, may_make_long_vectors, vectors_stay_small

_SHAPE_INPUTS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceMax": (1,),
    "ReduceSum": (1,),
}
"""The inputs that decide the shape of the output."""

_MOST_ROUNDS = 4
_MOST_ELEMENTS = 64
_INITIALIZERS_ARE_INPUTS_BEFORE = 4

_INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    RuntimeError,  # what else C++ code throws at a hostile file
    ValueError,
    IndexError,
    OverflowError,
    MemoryError,
)

_Declared = list[dict[str, onnx.TypeProto]]
"""For each graph, in the order of `nested`: the types with shapes that it declares of what it computes."""


def with_inferred_shapes(model: OnnxModel) -> onnx.ModelProto:
    """Infers the shapes of a model.

    Args:
        model: A checked model; it is not changed.

    Returns:
        Its skeleton, normalised, so that its nodes are in the order in which they can run, and with what is known about
        its values declared.
    """
    skeleton = skeleton_for_inference(model)
    normalise(skeleton)
    if skeleton.ir_version >= _INITIALIZERS_ARE_INPUTS_BEFORE:
        _forget_defaults(skeleton.graph)
    skeleton.ir_version = max(skeleton.ir_version, _INITIALIZERS_ARE_INPUTS_BEFORE)
    read_as_run(skeleton)
    open_sizes = _name_open_sizes(skeleton.graph)
    declared = _take_declared(skeleton.graph)
    result = _inferred(model, skeleton, open_sizes)
    known = _all_types(result.graph)
    varying = values_of_varying_rank(result.graph) if result is not skeleton else frozenset()
    declared = [{name: type_ for name, type_ in found.items() if name not in varying} for found in declared]
    if _contradicts(declared, known, open_sizes) or not _adds(declared, known):
        return result
    _put_declared(skeleton.graph, declared, known, ranks_only=bool(open_sizes))
    believed = _inferred(model, skeleton, open_sizes)
    doubtful = _contradicts(declared, _all_types(believed.graph), open_sizes)
    doubtful = doubtful or contradicts_readers(skeleton.graph, believed.graph, declared)
    return result if doubtful or contradicts_turns(believed.graph, declared) else believed


def functions_with_shapes(inferred: onnx.ModelProto) -> Mapping[FunctionKey, onnx.FunctionProto]:
    """Infers the shapes inside model-local functions.

    Args:
        inferred: The model after inference.

    Returns:
        The functions, normalised, with what is known about their values declared.
    """
    return inferred_functions(inferred, _inferred_body)


def _inferred_body(body: onnx.ModelProto) -> onnx.ModelProto:
    read_as_run(body)
    result = _infer(body)
    for _ in range(_MOST_ROUNDS):
        if not note_proofs(body.graph, result.graph):
            break
        result = _infer(body)
    return result


def _all_types(main: onnx.GraphProto) -> list[ValueTypes]:
    """What was inferred, for each graph in the order of `nested`."""
    return [value_types(graph) for graph in nested(main)]


def _inferred(model: OnnxModel, skeleton: onnx.ModelProto, open_sizes: frozenset[str]) -> onnx.ModelProto:
    result = _infer(skeleton)
    for _ in range(_MOST_ROUNDS):
        types = value_types(result.graph)
        constants = Constants(model, model.proto.graph, opset_version(model.proto.opset_import), types)
        news = [
            _spell_out(skeleton, constants, types),
            note_reshapes(skeleton.graph, constants, types, open_sizes),
            note_proofs(skeleton.graph, result.graph),
        ]
        if not any(news):
            break
        result = _infer(skeleton)
    return result


def _infer(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """What onnx infers, where it agrees with runtimes; the skeleton itself where its code gives up altogether."""
    while True:
        followed = _attempted(skeleton, data_prop=True) if may_follow_elements(skeleton) else skeleton
        result = _attempted(skeleton, data_prop=False) if followed is skeleton else followed
        if not mend_sizes(skeleton.graph, result.graph):
            return result


def may_follow_elements(skeleton: onnx.ModelProto) -> bool:
    """Whether shape inference can follow the elements of shapes: it writes them out, however many a model makes."""
    if not data_stays_small(skeleton):
        return False
    if not may_make_long_vectors(skeleton):
        return True
    own = own_functions(skeleton)
    without_calls = skeleton
    if len(skeleton.functions) > len(own):
        try:
            without_calls = inlined(skeleton, own)
        except RuntimeError:  # functions in another opset
            return False
    return vectors_stay_small(_attempted(without_calls, data_prop=False).graph)


def _attempted(skeleton: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=data_prop)
    except _INFERENCE_ERRORS:
        return skeleton


def _forget_defaults(graph: onnx.GraphProto) -> None:
    """Takes away the initializers that are inputs too: a caller may give others."""
    given = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in given]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _name_open_sizes(graph: onnx.GraphProto) -> frozenset[str]:
    """Gives each open size of an input a name of its own.

    Runtimes do not hold a caller to sizes being equal that have one name.
    """
    names = set()
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ()):
            if not dim.HasField("dim_value"):
                dim.dim_param = f"{value.name}[{axis}]"
                names.add(dim.dim_param)
    return frozenset(names)


def _declaring(graph: onnx.GraphProto, *, main: bool) -> Iterator[onnx.ValueInfoProto]:
    """What declares something of values that a graph computes, or that are computed for it."""
    yield from graph.value_info
    yield from graph.output
    if not main:
        yield from graph.input


def _take_declared(main: onnx.GraphProto) -> _Declared:
    declared: _Declared = []
    for graph in nested(main):
        # What is declared of a constant or an input once more hides the shape that it has.
        held = {value.name for value in (*graph.initializer, *graph.input)}
        computed = [value for value in graph.value_info if value.name not in held]
        del graph.value_info[:]
        graph.value_info.extend(computed)
        _declare_held(graph)
        found: dict[str, onnx.TypeProto] = {}
        for value in _declaring(graph, main=graph is main):
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
                found[value.name] = onnx.TypeProto.FromString(value.type.SerializeToString())
                value.type.tensor_type.ClearField("shape")
        declared.append(found)
    return declared


def _declare_held(graph: onnx.GraphProto) -> None:
    """Says of outputs that are inputs or constants what is known of those."""
    types = {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    types |= {value.name: value.type for value in graph.input}
    for value in graph.output:
        if value.name in types:
            value.type.CopyFrom(types[value.name])


def _put_declared(
    main: onnx.GraphProto, declared: _Declared, inferred: Iterable[ValueTypes], *, ranks_only: bool
) -> None:
    """Declares what the file does, where the inference knows less.

    Where inputs have open sizes, those of the outputs are often those of an example: of them only the ranks count.
    """
    for graph, found, known in zip(nested(main), declared, inferred, strict=True):
        outputs = {value.name for value in graph.output} if graph is main and ranks_only else set()
        values = {value.name: value for value in _declaring(graph, main=graph is main)}
        for name, type_ in found.items():
            shape, old = shape_of(type_.tensor_type), shape_in(known, name)
            if shape is None:
                continue
            if name in outputs:
                shape = (None,) * len(shape)
            old = (None,) * len(shape) if old is None else old
            merged = [
                new if isinstance(new, int) and not isinstance(size, int) else size
                for new, size in zip(shape, old, strict=True)
            ]
            declare(values[name], tuple(size if isinstance(size, int) else None for size in merged))


def _adds(declared: _Declared, inferred: Iterable[ValueTypes]) -> bool:
    """Whether anything declared says more than what was inferred."""
    for found, known in zip(declared, inferred, strict=True):
        for name, type_ in found.items():
            shape, old = shape_of(type_.tensor_type), shape_in(known, name)
            if shape is not None and (old is None or any(map(_says_more, shape, old))):
                return True
    return False


def _says_more(declared: int | str | None, inferred: int | str | None) -> bool:
    return isinstance(declared, int) and not isinstance(inferred, int)


def _contradicts(declared: _Declared, inferred: Iterable[ValueTypes], open_sizes: frozenset[str]) -> bool:
    """Whether anything declared is another rank or size than what was inferred, or one size where any is allowed."""
    for found, known in zip(declared, inferred, strict=True):
        for name, type_ in found.items():
            shape, old = shape_of(type_.tensor_type), shape_in(known, name)
            if shape is None or old is None:
                continue
            if len(shape) != len(old):
                return True
            fixed = [(size, other) for size, other in zip(shape, old, strict=True) if isinstance(size, int)]
            if any(other in open_sizes or (isinstance(other, int) and size != other) for size, other in fixed):
                return True
    return False


def _spell_out(skeleton: onnx.ModelProto, constants: Constants, types: ValueTypes) -> bool:
    """Writes the values of constant shapes into a skeleton, where the shape of the result is not known; says if any."""
    found = False
    for node in skeleton.graph.node:
        if not is_standard(node, *_SHAPE_INPUTS):
            continue
        shape = shape_in(types, node.output[0])
        if shape is not None and all(isinstance(size, int) for size in shape):
            continue
        for position in _SHAPE_INPUTS[node.op_type]:
            name = node.input[position] if len(node.input) > position else ""
            if not name or constants.producer(name) is None or not constants.is_constant(name):
                continue
            value = constants.find(name)
            if value is None or value.overridable or np.prod(value.shape) > _MOST_ELEMENTS:
                continue
            given = f"{name}#{len(skeleton.graph.initializer)}"
            skeleton.graph.initializer.append(numpy_helper.from_array(value.read(), given))
            node.input[position] = given
            found = True
    return found
