"""Where nodes of the neutral graph are in an ONNX model."""

from dataclasses import dataclass

import onnx

from bnfold.graph import Graph
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.proto.names import GraphLike


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """One graph or function of the model.

    Attributes:
        graph: The proto, inside the model that was lifted.
        constants: What is constant in it.
        opset: The version of the default domain.
        root: The main graph or function that it is nested in, or itself.
        depth: How many graphs are around it.
        prefix: What the names of its nodes begin with in reports.
    """

    graph: GraphLike
    constants: Constants
    opset: int
    root: GraphLike
    depth: int
    prefix: str


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """Where a node of the neutral graph is in the model.

    Attributes:
        scope: Its graph.
        index: Its position among the nodes of that graph.
        bias_index: For a MatMul with its Add: the position of the Add.
        chain: For a spelled-out affine of several nodes: the positions of those behind the first.
        widened: For a cast to a wider type that affines pass: the values that are as precise as the narrower one then.
    """

    scope: Scope
    index: int
    bias_index: int | None = None
    chain: tuple[int, ...] = ()
    widened: tuple[str, ...] = ()

    @property
    def node(self) -> onnx.NodeProto:
        """The node."""
        node: onnx.NodeProto = self.scope.graph.node[self.index]
        return node

    @property
    def bias_node(self) -> onnx.NodeProto | None:
        """The Add that carries the bias of a MatMul."""
        return None if self.bias_index is None else self.scope.graph.node[self.bias_index]


def scopes_of(graph: Graph) -> list[Scope]:
    """The graphs and functions that nodes of a lifted graph are in."""
    return [*dict.fromkeys(node.handle.scope for node in graph.nodes if isinstance(node.handle, Handle))]
