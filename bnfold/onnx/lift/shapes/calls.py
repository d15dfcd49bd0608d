"""Shapes inside model-local functions: what is so in every call.

A function is written down once, and may be called with values of several ranks. What it declares of its own values can
be true of one call only, and is not asked: the body is inferred with what each call gives it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from bnfold.onnx.lift.types import Shape, ValueTypes, declare, element_type, types_by_graph, value_types
from bnfold.onnx.proto.names import GraphLike, is_standard, nested

FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""

_MOST_CALLS = 1024
"""With more that differ, nothing is known of what is inside."""

_WORTH_KNOWING = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
"""What a fold is made of; functions without any are not looked into."""

_Known = tuple[Shape | None, str]


@dataclass(frozen=True, slots=True)
class _Call:
    """A function with the types that it is given, and the attributes, serialized."""

    function: FunctionKey
    given: tuple[_Known, ...]
    attributes: tuple[bytes, ...]


def inferred_functions(
    model: onnx.ModelProto, infer: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> dict[FunctionKey, onnx.FunctionProto]:
    """Finds out what is known of the values of functions.

    Args:
        model: A model after inference.
        infer: Infers the shapes of a model.

    Returns:
        The functions, with all that they declare of their own values replaced.
    """
    functions = {_key(function): function for function in model.functions}
    wanted = _worth_knowing(functions)
    found: dict[FunctionKey, list[list[ValueTypes]]] = {}
    seen: set[_Call] = set()
    waiting = [*_calls(model.graph, wanted)]
    while waiting and len(seen) <= _MOST_CALLS:
        call = waiting.pop()
        if call in seen:
            continue
        seen.add(call)
        body = infer(_body(model.ir_version, functions, call)).graph
        found.setdefault(call.function, []).append([value_types(graph) for graph in nested(body)])
        waiting += _calls(body, wanted)
    found = {} if waiting else found
    return {key: _declaring(function, found.get(key, [])) for key, function in functions.items()}


def _key(function: onnx.FunctionProto) -> FunctionKey:
    return function.domain, function.name, function.overload


def _worth_knowing(functions: Mapping[FunctionKey, onnx.FunctionProto]) -> set[FunctionKey]:
    """The functions that have something to fold, and those that call them."""
    inside = {key: [node for graph in nested(function) for node in graph.node] for key, function in functions.items()}
    wanted = {key for key, nodes in inside.items() if any(is_standard(node, *_WORTH_KNOWING) for node in nodes)}
    more = wanted
    while more:
        more = {key for key, nodes in inside.items() if any(_called(node) in more for node in nodes)} - wanted
        wanted |= more
    return wanted


def _called(node: onnx.NodeProto) -> FunctionKey:
    return node.domain, node.op_type, node.overload


def _calls(main: onnx.GraphProto, wanted: set[FunctionKey]) -> Iterator[_Call]:
    for graph, types in zip(nested(main), types_by_graph(main), strict=True) if wanted else ():
        for node in graph.node:
            if _called(node) in wanted:
                given = tuple(types.get(name, (None, "")) for name in node.input)
                yield _Call(_called(node), given, tuple(item.SerializeToString() for item in node.attribute))


def _reached(key: FunctionKey, functions: Mapping[FunctionKey, onnx.FunctionProto]) -> list[onnx.FunctionProto]:
    """The functions that one calls, and those that they call."""
    found: dict[FunctionKey, onnx.FunctionProto] = {}
    waiting = [functions[key]]
    while waiting:
        nodes = [node for graph in nested(waiting.pop()) for node in graph.node]
        new = {_called(node) for node in nodes} & functions.keys() - found.keys()
        found.update({name: functions[name] for name in new})
        waiting += [functions[name] for name in new]
    return [*found.values()]


def _body(ir_version: int, functions: Mapping[FunctionKey, onnx.FunctionProto], call: _Call) -> onnx.ModelProto:
    """What a call runs, as a model."""
    function = functions[call.function]
    attributes = [*function.attribute_proto, *map(onnx.AttributeProto.FromString, call.attributes)]
    body = onnx.ModelProto(ir_version=ir_version, functions=_reached(call.function, functions))
    body.opset_import.extend(function.opset_import)
    body.graph.name = function.name
    body.graph.node.extend(function.node)
    _forget_declared(body.graph)
    for graph in nested(body.graph):
        for node in graph.node:
            _set_attributes(node, {item.name: item for item in attributes})
    for name, (shape, dtype) in zip(function.input, call.given, strict=False):
        if dtype:
            given = body.graph.input.add(name=name)
            given.type.tensor_type.elem_type = element_type(dtype)
            if shape is not None:
                declare(given, shape)
    for name in function.output:
        body.graph.output.add(name=name)
    return body


def _set_attributes(node: onnx.NodeProto, values: Mapping[str, onnx.AttributeProto]) -> None:
    """Puts what a call says in the place of the attributes that are parameters of the function."""
    for index in reversed(range(len(node.attribute))):
        item = node.attribute[index]
        value = values.get(item.ref_attr_name) if item.ref_attr_name else None
        if value is not None:
            name = item.name
            item.CopyFrom(value)
            item.name = name
        elif item.ref_attr_name:
            del node.attribute[index]


def _forget_declared(graph: GraphLike) -> None:
    for inner in nested(graph):
        del inner.value_info[:]
        if inner is not graph and isinstance(inner, onnx.GraphProto):
            for value in (*inner.input, *inner.output):
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")


def _declaring(function: onnx.FunctionProto, calls: Sequence[Sequence[ValueTypes]]) -> onnx.FunctionProto:
    """A function that declares what all of its calls have in common."""
    copied = onnx.FunctionProto()
    copied.CopyFrom(function)
    _forget_declared(copied)
    for graph, *each in zip(nested(copied), *calls, strict=True) if calls else ():
        for name in each[0]:
            shape, dtype = _common([types.get(name, (None, "")) for types in each])
            if not dtype and shape is None:
                continue
            value = graph.value_info.add(name=name)
            if dtype:
                value.type.tensor_type.elem_type = element_type(dtype)
            if shape is not None:
                value.type.tensor_type.shape.SetInParent()
                declare(value, shape)
    return copied


def _common(known: Sequence[_Known]) -> _Known:
    shapes, dtypes = [shape for shape, _ in known], {dtype for _, dtype in known}
    dtype = dtypes.pop() if len(dtypes) == 1 else ""
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None, dtype
    sizes = [{shape[axis] for shape in shapes if shape is not None} for axis in range(len(first))]
    return tuple(found.pop() if len(found) == 1 else None for found in sizes), dtype
