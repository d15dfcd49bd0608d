"""The values of one scope of an ONNX model: what is known of each, who reads it, and what sees it from outside."""

import onnx

from bnfold.graph import Reading, Value
from bnfold.onnx.lift.readers import readers_of
from bnfold.onnx.lift.scopes import Scope
from bnfold.onnx.lift.types import Shape, ValueTypes
from bnfold.onnx.proto.names import defined_names, is_standard
from bnfold.reasons import Stop, StopCode

_READS_TYPE_ONLY = frozenset(
    {
        *(("Shape", 0), ("Size", 0), ("CastLike", 1), ("EyeLike", 0)),
        *(("RandomNormalLike", 0), ("RandomUniformLike", 0)),
    }
)
"""Inputs whose shape or element type is read, never their elements: these are the same before and after a fold."""


class Values:
    """The values of a scope, made when they are first asked for.

    Args:
        scope: The scope.
        types: What is known about its values.
        outer: The values of the scope around a nested one.

    Attributes:
        types: What is known about them.
        readers: Which nodes read them.
    """

    def __init__(self, scope: Scope, types: ValueTypes, outer: "Values | None") -> None:
        self.types = types
        self.readers = readers_of(scope.graph)
        self._scope = scope
        self._outer = outer
        self._own = frozenset(defined_names(scope.graph))
        self._made: dict[str, Value] = {}
        graph = scope.graph
        function = isinstance(graph, onnx.FunctionProto)
        self._of = f"function '{graph.name}'" if function else "the model" if outer is None else "a nested graph"
        self._seen = Stop(StopCode.MODEL_OUTPUT, f"is an output of {self._of}")
        for name in graph.input:
            given = self.new(name if isinstance(name, str) else name.name)
            given.source = Stop(StopCode.MODEL_INPUT, f"its input is an input of {self._of}")

    def new(self, name: str, fallback: Shape | None = None) -> Value:
        """A value that the scope is given or computes; a shape for where nothing is known."""
        shape, dtype = self.types.get(name, (None, ""))
        value = Value(name, shape if shape is not None else fallback, dtype)
        if name in self.readers.outputs:
            value.observer = self._seen
        self._made[name] = value
        return value

    def new_outputs(self, node: onnx.NodeProto, fallback: Shape | None) -> tuple[Value, ...]:
        """The values that a node computes."""
        return tuple(self.new(name, fallback) for name in node.output if name)

    def of(self, name: str) -> Value:
        """The value of that name as this scope sees it."""
        if name not in self._made:
            outer = None if self._outer is None else self._outer._captured(name)
            value = self.new(name)
            value.source = (
                Stop(StopCode.MODEL_INPUT, "its input is a constant")
                if self._scope.constants.is_constant(name)
                else Stop(StopCode.CAPTURED, "its input comes from the graph around it")
            )
            if outer is not None:
                value.shape, value.dtype = outer.shape, outer.dtype
        return self._made[name]

    def _captured(self, name: str) -> Value:
        """A value that a nested graph reads, which from then on must not change."""
        value = self.of(name)
        value.observer = value.observer or Stop(StopCode.CAPTURED, "is read inside a nested graph")
        return value

    def read_by(self, node: onnx.NodeProto) -> tuple[Value, ...]:
        """The inputs of a node that are not constant and whose elements it reads."""
        computed = (name for place, name in enumerate(node.input) if not reads_type_only(node, place))
        return tuple(map(self.of, filter(self._is_computed, computed)))

    def read_besides(self, node: onnx.NodeProto) -> tuple[Value, ...]:
        """The inputs of a node behind the first that are not constant."""
        return tuple(map(self.of, filter(self._is_computed, node.input[1:])))

    def read_outputs(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The first output of a node, and those of the others that anything reads."""
        more = (name for name in node.output[1:] if self.readers.of.get(name) or name in self.readers.outputs)
        return (*node.output[:1], *more)

    def measure(self, name: str, reading: Reading) -> None:
        """Notes on a value of this scope, or of one around it, that a node reads its shape or its type."""
        if name in self._made:
            self._made[name].measured_by.append(reading)
        elif self._outer is not None and name not in self._own:
            self._outer.measure(name, reading)

    def _is_computed(self, name: str) -> bool:
        """Whether a node reads a value under that name which is not constant."""
        return bool(name) and not self._scope.constants.is_constant(name)


def reads_type_only(node: onnx.NodeProto, position: int) -> bool:
    """Whether a node reads the shape or the element type of an input, and no element."""
    return (node.op_type, position) in _READS_TYPE_ONLY and is_standard(node, node.op_type)
