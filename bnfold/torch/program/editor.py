"""Edits a copy of an ExportedProgram: its nodes, its parameters, and the signature that joins them.

The copy shares every tensor with the original until it is given another; the original is never changed. Parameters
and buffers go by their names (FQN, such as "layer1.0.conv.weight").
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from bnfold.torch.fx.graph_copy import GraphCopy, copy_graphs
from bnfold.torch.fx.nodes import ASSERTION
from bnfold.torch.program.names import FreshNames, identifier
from bnfold.torch.program.signature import module_calls, output_specs, with_own_argument
from bnfold.torch.program.tensors import ProgramTensors

_PARAMETERS = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})
_HARMLESS = frozenset({torch.ops.aten.detach_.default})
"""Operators that change their input, but not its elements."""

Position = int | tuple[int, int]
"""Of an argument in the schema of an operator, or of an item of one that is a list."""

_KEPT_META = ("nn_module_stack", "stack_trace", "custom", "val")


class ProgramEditor:
    """A copy of a program, under way.

    Nodes are those of the copy, except where they are said to be of the original.

    Args:
        program: The original.

    Attributes:
        tensors: Its parameters, buffers and constants.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.tensors = ProgramTensors(program)
        self._program = program
        self._main, self._nodes = copy_graphs(program.graph_module)
        self._copies = {graph.original.graph: graph for graph in self._main.walk()}
        self._graphs = {graph.graph: graph for graph in self._main.walk()}
        self._specs = dict(zip(self._main.placeholders, program.graph_signature.input_specs, strict=True))
        self._by_target = {spec.target: node for node, spec in self._specs.items() if spec.target is not None}
        parameters = [node for node, spec in self._specs.items() if spec.kind is InputKind.PARAMETER]
        self._last = parameters[-1] if parameters else None
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._erased: set[fx.Node] = set()
        self._released: list[fx.Node] = []
        self._kept: set[fx.Node] = set()
        self._node_names = FreshNames(node.name for graph in self._graphs for node in graph.nodes)

    def node(self, original: fx.Node) -> fx.Node:
        """What has the place of a node of the original now."""
        node = self._nodes[original]
        while node in self._replaced:
            node = self._replaced[node]
        return node

    def call(self, original: fx.Node) -> fx.Node:
        """The copy of a call that is still there."""
        return self._nodes[original]

    def fresh_name(self, base: str) -> str:
        """A name for a node that no node of the program, in any graph, has or had."""
        return self._node_names.fresh(base)

    def add_parameter(self, base: str, tensor: nn.Parameter, graph: fx.Graph) -> fx.Node:
        """Adds a parameter.

        Args:
            base: Its name, unless something is called so already; then it begins with that.
            tensor: Its value.
            graph: The graph of the original in whose copy it is to be read.

        Returns:
            The placeholder that it comes from there.
        """
        name = self.tensors.add(base, tensor)
        called = self.fresh_name(f"p_{identifier(name)}")
        main = self._main.graph
        with main.inserting_after(self._last) if self._last else main.inserting_before(next(iter(main.nodes))):
            node = main.placeholder(called)
        node.name = node.target = called
        node.meta["val"] = self._fake(tensor)
        self._last = node
        self._specs[node] = InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name)
        self._by_target[name] = node
        return self._hand_down(node, self._copies[graph])

    def insert(
        self, after: fx.Node, target: OpOverload, args: tuple[fx.node.Argument, ...], like: fx.Node | None = None
    ) -> fx.Node:
        """Inserts a call.

        Args:
            after: The node before it.
            target: The operator.
            args: Its arguments.
            like: A node with a result of the same shape and type in the same module; `after` if None.
        """
        like = like or after
        with after.graph.inserting_after(after):
            node = after.graph.call_function(target, args)
        node.meta.update({key: like.meta[key] for key in _KEPT_META if key in like.meta})
        return node

    def set_argument(self, original: fx.Node, position: Position, value: fx.Node) -> None:
        """Gives a call another argument; what it read there goes away unless something else reads it.

        Args:
            original: A node of the original; the copy is a call still, or the argument of what was put behind it.
            position: The position of the argument; those before it get their defaults.
            value: What is read there from now on.
        """
        node = self._nodes[original]
        assert isinstance(node.target, OpOverload)  # only operators have constants
        at, *item = (position,) if isinstance(position, int) else position
        schema = node.target._schema.arguments[: at + 1]
        keywords = dict(node.kwargs)
        given = [*node.args]
        given += [keywords.pop(argument.name, argument.default_value) for argument in schema[len(given) :]]
        before = given[at]
        if item:
            items = [*cast(Sequence[fx.node.Argument], before)]
            before, items[item[0]] = items[item[0]], value
        given[at] = items if item else value
        node.args, node.kwargs = tuple(given), keywords
        if isinstance(before, fx.Node):
            self._released.append(before)

    def forget_keyword(self, original: fx.Node, name: str) -> None:
        """Takes a keyword argument away from the copy of a call, which then has its default."""
        node = self._nodes[original]
        node.kwargs = {key: given for key, given in node.kwargs.items() if key != name}

    def let_views_copy(self, original: fx.Graph) -> None:
        """Makes every view of a graph, and of those in it, a reshape, which copies what has no strides for a view."""
        for copied in self._copies[original].walk():
            for node in copied.graph.nodes:
                if node.target is torch.ops.aten.view.default:
                    node.target = torch.ops.aten.reshape.default

    def put_behind(self, node: fx.Node, follower: fx.Node) -> None:
        """Lets everything that read a node read another one, which alone reads the first from now on."""
        node.replace_all_uses_with(follower, delete_user_cb=lambda user: user is not follower)
        self._replaced[node] = follower

    def rename(self, node: fx.Node, name: str) -> None:
        """Calls a node something else; in the end no two nodes of a graph may have one name."""
        node.name = name

    def infer(self, original: fx.Node) -> None:
        """Notes anew which shape a call has whose arguments have other shapes than they had."""
        node = self._nodes[original]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: read.meta["val"])
        assert isinstance(node.target, OpOverload)  # an addition
        with self._fake_mode(), torch.no_grad():
            node.meta["val"] = node.target(*args, **kwargs)

    def remove(self, nodes: Sequence[fx.Node], by: fx.Node) -> None:
        """Takes nodes away, with the constants that only they read.

        Args:
            nodes: Nodes of the original, of which only the last is read by others.
            by: What these others read instead.
        """
        last = self._nodes[nodes[-1]]
        last.replace_all_uses_with(by)
        self._replaced[last] = by
        self._kept.add(by)
        self.remove_idle(nodes)

    def remove_idle(self, nodes: Sequence[fx.Node]) -> None:
        """Takes nodes away that nothing reads, with the constants that only they read.

        Args:
            nodes: Nodes of the original, each read only by those behind it.
        """
        for node in reversed([self._nodes[node] for node in nodes]):
            for user in [*node.users]:  # further results of a decomposed batch norm, which nothing reads
                self._erase(user)
            self._erase(node)

    def finish(self) -> ExportedProgram:
        """The edited program."""
        self._remove_released()
        program = self._program
        inputs = [with_own_argument(self._specs[node]) for node in self._main.placeholders]
        outputs = output_specs(program.graph_signature.output_specs, self._main.graph)
        result = ExportedProgram(
            root=self._main.attributes(),
            graph=self._main.graph,
            graph_signature=ExportGraphSignature(inputs, outputs),
            state_dict=self.tensors.state,
            range_constraints=dict(program.range_constraints),
            module_call_graph=module_calls(program.module_call_graph, self._present_names(), self._main.graph),
            example_inputs=program.example_inputs,
            constants=self.tensors.constants,
            verifiers=program.verifiers,
        )
        result.graph_module.meta.update(program.graph_module.meta)
        result.graph_module.train(program.graph_module.training)
        # The symbolic sizes of a program that was loaded do not know its guards any more.
        result._guards_code = program._guards_code
        return result

    def _present_names(self) -> dict[str, str]:
        """What the value that each node of the main graph gave is called now, if there is one."""
        present = ((node.name, self.node(node)) for node in self._program.graph.nodes)
        return {name: node.name for name, node in present if node not in self._erased}

    def _erase(self, node: fx.Node) -> None:
        self._released += node.all_input_nodes
        self._erased.add(node)
        node.graph.erase_node(node)

    def _fake(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor in the records of the program."""
        return self._fake_mode().from_tensor(tensor, static_shapes=True)

    def _fake_mode(self) -> FakeTensorMode:
        known = (node.meta.get("val") for node in self._main.placeholders)
        return next(fake.fake_mode for fake in known if isinstance(fake, FakeTensor))

    def _hand_down(self, node: fx.Node, graph: GraphCopy) -> fx.Node:
        """Gives a value of the main graph to a nested one, through all graphs around that; its placeholder there."""
        if graph.outer is None:
            return node
        given = self._hand_down(node, graph.outer)
        return graph.take_in(given, self.fresh_name(node.name))

    def _remove_released(self) -> None:
        while self._released:
            node = self._released.pop()
            if node in self._erased or node in self._kept or any(user.target is not ASSERTION for user in node.users):
                continue
            for assertion in [*node.users]:  # of a constant that only it reads, it says nothing about the program
                self._erase(assertion)
            if node.op != "placeholder":
                if not node.is_impure() or node.target in _HARMLESS:
                    self._erase(node)
            elif node.graph is not self._main.graph:
                self._drop_operand(node)
            elif self._specs[node].kind in _PARAMETERS:
                self._drop_tensor(str(self._specs[node].target))

    def _drop_operand(self, node: fx.Node) -> None:
        """Stops giving a value to a nested graph, if none of those that get it reads it."""
        graph = self._graphs[node.graph]
        position = graph.placeholders.index(node)
        idle = graph.idle_placeholders(node)
        for placeholder in idle:
            self._erase(placeholder)
        if idle:
            self._released += graph.stop_taking(position)

    def _drop_tensor(self, name: str) -> None:
        """Removes a tensor with all its names, if none of them is read or written."""
        names = self.tensors.names_of(name)
        placeholders = [self._by_target[twin] for twin in names if twin in self._by_target]
        if any(placeholder.users for placeholder in placeholders):
            return
        for placeholder in placeholders:
            del self._by_target[str(self._specs.pop(placeholder).target)]
            self._erase(placeholder)
        for twin in names:
            self.tensors.remove(twin)
            counter = self.tensors.counter_of(twin)
            if counter is not None:
                self._drop_tensor(counter)
