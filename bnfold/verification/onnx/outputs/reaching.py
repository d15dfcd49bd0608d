"""Which outputs of a graph depend on parameters, through branches, loops and functions one output at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set

import onnx

from bnfold.onnx.proto.names import GraphLike, int_attribute, is_standard, nested, subgraphs

_READS_SHAPES = ("Shape", "Size")
_Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]


def reached_outputs(model: onnx.ModelProto, parameters: Collection[str]) -> frozenset[str]:
    """The outputs on a path from a parameter; a path through a Shape carries no value.

    Args:
        model: The model.
        parameters: Names of values of any of its graphs.
    """
    functions = {(item.domain, item.name, item.overload): item for item in model.functions}
    found = _Reaching({*parameters}, functions).within(model.graph, {*parameters})
    return frozenset(value.name for value in model.graph.output if value.name in found)


class _Reaching:
    def __init__(self, parameters: Set[str], functions: _Functions) -> None:
        self._parameters, self._functions = parameters, functions
        self._called: dict[tuple[int, frozenset[str]], set[str]] = {}

    def within(self, graph: GraphLike, given: Set[str]) -> set[str]:
        """What depends on parameters in a graph, with what is `given`: these, and its inputs that do."""
        known = {*given}
        for node in graph.node:
            known.update(filter(None, self._outputs(node, known)))
        return known

    def _outputs(self, node: onnx.NodeProto, known: Set[str]) -> Iterable[str]:
        function = self._functions.get((node.domain, node.op_type, node.overload))
        if is_standard(node, *_READS_SHAPES):
            return ()
        if function is not None:
            given = {inner for inner, outer in zip(function.input, node.input, strict=False) if outer in known}
            return _those(node.output, function.output, self._of_function(function, given))
        bodies = [body for _, body in subgraphs(node)]
        if is_standard(node, "If") and node.input[0] not in known:
            return [name for body in bodies for name in self._of_body(node, body, known, 0, 0)]
        if is_standard(node, "Loop") and known.isdisjoint(node.input[:2]):
            return self._of_body(node, bodies[0], known, 2, 1)
        if is_standard(node, "Scan") and len(node.input) == len(bodies[0].input):  # before opset 9 there is one more
            return self._of_body(node, bodies[0], known, 0, 0)
        inside = {name for body in bodies for name in _names_in(body)}
        return () if known.isdisjoint({*node.input, *inside}) else node.output

    def _of_function(self, function: onnx.FunctionProto, given: Set[str]) -> Set[str]:
        key = (id(function), frozenset(given))
        if key not in self._called:
            own = {name for graph in nested(function) for node in graph.node for name in node.output}
            self._called[key] = self.within(function, (self._parameters & own) | given)
        return self._called[key]

    def _of_body(
        self, node: onnx.NodeProto, body: onnx.GraphProto, known: Set[str], first_input: int, first_output: int
    ) -> list[str]:
        """The outputs of a node that depend on parameters through a body; all, where that changes turn after turn.

        Args:
            node: The node.
            body: One of its graphs.
            known: What depends on parameters around it.
            first_input: How many inputs of the node and of the body decide how often it runs.
            first_output: How many outputs of the body do.
        """
        inputs = [value.name for value in body.input][first_input:]
        results = [value.name for value in body.output]
        states = inputs[: len(inputs) - int_attribute(node, "num_scan_inputs", 0)]
        given = {inner for inner, outer in zip(inputs, node.input[first_input:], strict=False) if outer in known}
        found = self.within(body, {*known, *given})
        back = {inner for inner, name in zip(states, results[first_output:], strict=False) if name in found}
        if not found.isdisjoint(results[:first_output]) or not back <= given:
            return [*node.output]
        return _those(node.output, results[first_output:], found)


def _those(outputs: Iterable[str], inner: Iterable[str], found: Set[str]) -> list[str]:
    return [outer for outer, name in zip(outputs, inner, strict=False) if name in found]


def _names_in(graph: onnx.GraphProto) -> Iterable[str]:
    for inner in nested(graph):
        yield from (name for held in inner.node for name in (*held.input, *held.output))
        if isinstance(inner, onnx.GraphProto):
            yield from (value.name for value in inner.output)
