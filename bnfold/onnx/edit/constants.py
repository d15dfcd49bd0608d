"""Constants that stand in the way of runtimes, in the form that all of them understand.

onnxruntime fuses a Clip into a Conv only where the bounds are constants when the model is loaded, and evaluates every
expression of constants then but CastLike, as torch's newer exporter writes it. Its preparation for quantisation and
others read no Constant but one with a `value`. An Identity of a constant only gives it a second name.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from bnfold.algebra.rounding import Array
from bnfold.onnx.edit.cleanup import forget, remove_unused
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.constants import EXPRESSIONS
from bnfold.onnx.lift.scopes import Scope
from bnfold.onnx.proto.constants import spell_out
from bnfold.onnx.proto.names import defined_names, is_standard, nested, rename_reads, subgraphs
from bnfold.onnx.proto.order import execution_order

_MOST_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Obstacles:
    """What is in the way in one graph.

    Attributes:
        scope: The graph.
        values: Results of expressions, by name, with what they are.
        names: Second names of constants, with the first.
    """

    scope: Scope
    values: dict[str, Array]
    names: dict[str, str]


def find_obstacles(scopes: Iterable[Scope]) -> list[Obstacles]:
    """Looks for them before anything is changed."""
    return [_obstacles(scope) for scope in scopes]


def _obstacles(scope: Scope) -> Obstacles:
    graph, constants = scope.graph, scope.constants
    seen = {output if isinstance(output, str) else output.name for output in graph.output}
    read = {name for node in graph.node for name in (*node.input, *_read_inside(node))}
    second = read - seen
    inner = {name for graph_inside in [*nested(graph)][1:] for name in defined_names(graph_inside)}
    in_the_way: set[str] = set()
    frozen: set[str] = set()
    names: dict[str, str] = {}
    for index in execution_order(graph):
        node = graph.node[index]
        if is_standard(node, "Constant") or not is_standard(node, *EXPRESSIONS):
            continue
        if not all(map(constants.is_constant, node.output)):
            continue
        if is_standard(node, "Shape") and not constants.is_constant(node.input[0]):
            frozen.update(node.output)
        elif is_standard(node, "Identity") and node.output[0] in second:
            first = names.get(node.input[0], node.input[0])
            if first not in inner:
                names[node.output[0]] = first
        if frozen.intersection(node.input):
            frozen.update(node.output)
        elif is_standard(node, "CastLike") or in_the_way.intersection(node.input):
            in_the_way.update(node.output)
    wanted = {
        name
        for node in graph.node
        if in_the_way.isdisjoint(node.output)
        for name in (*node.input, *_read_inside(node))
        if name in in_the_way
    }
    found = {name: constants.find(name) for name in sorted(wanted | (seen & in_the_way))}
    values = {
        name: constant.read()
        for name, constant in found.items()
        if constant is not None and not constant.overridable and constant.nbytes <= _MOST_NBYTES
    }
    return Obstacles(scope, values, {name: first for name, first in names.items() if name not in values})


def _read_inside(node: onnx.NodeProto) -> Iterable[str]:
    """What the graphs of a node read, theirs and others'."""
    for _, inner in subgraphs(node):
        for other in inner.node:
            yield from (*other.input, *_read_inside(other))
        yield from (output.name for output in inner.output)


def clear(model: OnnxModel, obstacles: Iterable[Obstacles]) -> None:
    """Writes constants in the place of what stands in the way, in place.

    Args:
        model: The model that was changed since.
        obstacles: What was found in it before.
    """
    for found in obstacles:
        graph = found.scope.graph
        released: list[str] = []
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            if is_standard(node, "Constant"):
                spell_out(node)
            elif len(node.output) == 1 and node.output[0] in found.values:
                released += node.input
                _become(node, found.values[node.output[0]])
            elif is_standard(node, "Identity") and node.output[0] in found.names:
                released += node.input
                del graph.node[index]
        rename_reads(graph, found.names)
        forget(graph, {*found.names}, keep_inputs=True)
        remove_unused(model.proto, found.scope.root, [(graph, name) for name in released])


def _become(node: onnx.NodeProto, value: Array) -> None:
    node.op_type, node.domain = "Constant", ""
    del node.input[:], node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(value)))
