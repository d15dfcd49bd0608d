"""From an ExportedProgram to the neutral graph: which nodes are linear maps, which are affines, and what reads what.

Lifting classifies and decides nothing. The nested graphs of a program (branches of torch.cond, regions of autocast) are
lifted into the same `Graph`; a value that crosses from one into another is seen from outside and so never changes.
"""

from dataclasses import replace

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from bnfold.errors import UnsupportedModelError
from bnfold.graph import AffineNode, Graph, Kind, Op, OpNode, Reading, Value
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.higher_order import nested_graphs, operands
from bnfold.torch.fx.nodes import element_reads, fake_tensor, fake_tensors, is_tuple_item, metadata_reads
from bnfold.torch.lift.constants import Constants, canonical_names
from bnfold.torch.lift.frozen import parts_frozen, recognise_frozen
from bnfold.torch.lift.graph_values import Values
from bnfold.torch.lift.memory.aliases import Memory
from bnfold.torch.lift.names import give_names
from bnfold.torch.lift.nodes import NodeLifter, is_unbind
from bnfold.torch.lift.provenance import Handle, Scope, handle_of

_MUTATIONS = frozenset({OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION})

__all__ = ["Handle", "Scope", "lift"]


def lift(program: ExportedProgram, graph: Graph | None = None, prefix: str = "", inputs: str = "") -> Graph:
    """Lifts a program.

    Args:
        program: The program, before or after decomposition; the handles of the graph point into it.
        graph: Where its nodes are added; a new graph if None.
        prefix: For a program that is a part of a module: the path of the part, which names of modules and parameters
            then begin with.
        inputs: In words, with which inputs the program was captured, if the graph has what others do as well.

    Returns:
        The neutral graph. Node names are unique: the path of a module for its only batch norm or linear map, else that
        path and the name of the node in the program.

    Raises:
        UnsupportedModelError: The program contradicts itself.
    """
    graph = Graph() if graph is None else graph
    before = len(graph.nodes)
    names = canonical_names(program)
    memory = Memory(program.graph)
    constants = Constants(program, program.graph, memory.variable | _written_back(program), names, prefix)
    scope = Scope(program, program.graph, constants, prefix=prefix)
    _Lifter(graph, scope, memory, names).lift()
    give_names(graph, before, inputs)
    return graph


def _written_back(program: ExportedProgram) -> frozenset[fx.Node]:
    """The placeholders of parameters and buffers that have another value once the program has run."""
    signature = program.graph_signature
    targets = {spec.target for spec in signature.output_specs if spec.kind in _MUTATIONS}
    names = {spec.arg.name for spec in signature.input_specs if spec.target is not None and spec.target in targets}
    return frozenset(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)


class _Lifter:
    """Lifts one scope, and those inside it, into a graph."""

    def __init__(self, graph: Graph, scope: Scope, memory: Memory, names: dict[str, str]) -> None:
        self._graph = graph
        self._scope = scope
        self._memory = memory
        self._names = names
        self._values = Values(scope.constants, memory)
        self._nodes = NodeLifter(scope, memory, self._values)
        self._of = "the model" if scope.caller is None else "a nested graph"
        self._affines: list[AffineNode] = []

    def lift(self) -> None:
        """Adds the nodes of the scope to the graph."""
        for node in self._scope.graph.nodes:
            match node.op:
                case "placeholder":
                    self._lift_input(node)
                case "output":
                    self._observe(node)
                case "call_function":
                    self._lift_call(node)
                case "get_attr":
                    pass
                case _:
                    message = f"'{node.name}' of the program is a {node.op}, which torch.export does not make"
                    raise UnsupportedModelError(message, hint="Give a program made by torch.export.export.")
        self._guard_memory()

    def _lift_input(self, node: fx.Node) -> None:
        if self._scope.constants.is_constant(node) or (fake_tensor(node) is None and "val" in node.meta):
            return
        source = (
            Stop(StopCode.MODEL_INPUT, "its input is an input of the model")
            if self._scope.caller is None
            else Stop(StopCode.CAPTURED, "its input comes from the graph around it")
        )
        self._values.new(node).source = source

    def _observe(self, node: fx.Node) -> None:
        for read in node.all_input_nodes:
            value = self._values.find(read)
            if value is not None:
                value.observer = Stop(StopCode.MODEL_OUTPUT, f"is an output of {self._of}")

    def _lift_call(self, node: fx.Node) -> None:
        for read in metadata_reads(node):
            measured = self._values.find(read)
            if measured is not None:
                measured.measured_by.append(Reading(node.name))
        if node in self._nodes.in_bias or self._scope.constants.is_constant(node):
            return
        if is_tuple_item(node):
            self._lift_item(node)
            return
        if is_unbind(node):
            return
        reads = [read for read in element_reads(node) if not self._scope.constants.is_constant(read)]
        if not reads and fake_tensor(node) is None and fake_tensors(node) is None:
            return
        lifted = self._nodes.classify(node, reads)
        if not (isinstance(lifted, AffineNode) and self._extends_chain(lifted, node)):
            self._graph.add(lifted)
            if isinstance(lifted, AffineNode):
                self._affines.append(lifted)
        self._nest(node)

    def _lift_item(self, node: fx.Node) -> None:
        """A getitem: the first of each item gives the value its name, the others are identities; unbind selects."""
        source = node.args[0]
        if isinstance(source, fx.Node) and is_unbind(source):
            if node.users:
                self._graph.add(self._nodes.part(source, node))
            return
        value = self._values.take(node)
        if value is None:
            message = f"'{node.name}' of the program takes an item that '{node.args[0]}' does not have"
            raise UnsupportedModelError(message)
        if value.name == node.name:
            return
        handle = handle_of(self._scope, node)
        outputs = (self._values.new(node),)
        self._graph.add(
            OpNode(name=node.name, op_type="getitem", inputs=(value,), outputs=outputs, handle=handle, op=Op.IDENTITY)
        )

    def _extends_chain(self, node: AffineNode, fx_node: fx.Node) -> bool:
        """Takes an affine into the spelled-out one before it, as in mul and add, if nothing else reads that."""
        if node.kind is not Kind.AFFINE or node.affine is None:
            return False
        first = node.inputs[0].producer
        if not isinstance(first, AffineNode) or first.kind is not Kind.AFFINE or first.affine is None:
            return False
        if first.may_end_activation:
            return False
        before, handle = first.handle, node.handle
        if not isinstance(before, Handle) or not isinstance(handle, Handle) or [*before.last.users] != [fx_node]:
            return False
        whole = first.affine.chained(node.affine)
        if whole is None or node.inputs[0].observer is not None or parts_frozen(before, handle):
            return False
        first.affine = whole
        first.operations += 1
        first.outputs = node.outputs
        first.handle = replace(
            before,
            chain=(*before.chain, fx_node),
            parameters=tuple(dict.fromkeys((*before.parameters, *handle.parameters))),
            keeps_layout=before.keeps_layout and handle.keeps_layout,
        )
        for output in node.outputs:
            output.producer = first
        return True

    def _nest(self, node: fx.Node) -> None:
        """Lifts the graphs that a node runs, once each."""
        module = self._scope.graph.owning_module
        for name in nested_graphs(node):
            nested = None if module is None else getattr(module, name, None)
            if not isinstance(nested, fx.GraphModule) or not self._runs_once(nested):
                continue
            scope = self._scope
            memory = Memory(nested.graph)
            placeholders = [inner for inner in nested.graph.nodes if inner.op == "placeholder"]
            given = {
                inner: operand
                for inner, operand in zip(placeholders, operands(node), strict=False)
                if isinstance(operand, fx.Node)
            }
            constants = Constants(
                scope.program, nested.graph, memory.variable, self._names, scope.prefix, (scope.constants, given)
            )
            region = f"{scope.region}.{name}" if scope.region else name
            inner_scope = Scope(scope.program, nested.graph, constants, (scope, node), scope.prefix, region)
            _Lifter(self._graph, inner_scope, memory, self._names).lift()

    def _runs_once(self, nested: fx.GraphModule) -> bool:
        """Whether only one node of the graph runs a nested graph, and once."""
        module = self._scope.graph.owning_module
        runs = 0
        for node in self._scope.graph.nodes:
            runs += [getattr(module, name, None) for name in nested_graphs(node)].count(nested)
        return runs == 1

    def _guard_memory(self) -> None:
        """Protects what a fold would make share memory that is changed in place; recognises frozen batch norms."""
        pairs: dict[fx.Node, Value] = {}
        sources: list[tuple[fx.Node, fx.Node]] = []
        by_value = self._values.nodes()
        for affine in self._affines:
            recognise_frozen(affine, self._scope.constants)
            if isinstance(affine.handle, Handle) and affine.inputs[0] in by_value:
                pairs[affine.handle.last] = affine.outputs[0]
                sources.append((by_value[affine.inputs[0]], affine.handle.last))
        for node, stop in self._memory.twice_outside(sources):
            pairs[node].observer = pairs[node].observer or stop
        for node, stop in self._memory.endangered(sources):
            pairs[node].observer = stop
