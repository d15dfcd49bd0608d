"""From an ONNX model to the neutral graph: which nodes are linear maps, which are affines, and what reads what.

Lifting classifies and decides nothing. Nested graphs and functions are lifted into the same `Graph`; a value that
crosses from one into another is seen from outside and so never changes.
"""

from dataclasses import replace

import onnx

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import LinearMap
from bnfold.graph import AffineNode, ConstantNorm, Graph, Kind, MapNode, Node, Op, OpNode, Reading, RoundTrip, Value
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.affines import lift_affine, operand_stop
from bnfold.onnx.lift.budget import Budget
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.moves.node_view import NodeView
from bnfold.onnx.lift.moves.rows import lift_move
from bnfold.onnx.lift.moves.several import lift_several
from bnfold.onnx.lift.nodes import (
    OLDEST_OPSET,
    is_bias_add,
    is_identity,
    lift_batch_norm,
    lift_map,
    require_channels,
)
from bnfold.onnx.lift.precision.block_products import is_block_product
from bnfold.onnx.lift.precision.quantised import integer_map_stop
from bnfold.onnx.lift.precision.round_trips import round_trips
from bnfold.onnx.lift.runtime_maps import fused_convolution, is_runtime_map, runtime_map_stop
from bnfold.onnx.lift.scopes import Handle, Scope
from bnfold.onnx.lift.shapes.inference import functions_with_shapes, with_inferred_shapes
from bnfold.onnx.lift.types import Shape, ValueTypes, shape_in, value_types
from bnfold.onnx.lift.values import Values, reads_type_only
from bnfold.onnx.proto.names import (
    GraphLike,
    defined_names,
    is_standard,
    label,
    opset_version,
    string_attribute,
    subgraphs,
)
from bnfold.onnx.proto.order import execution_order
from bnfold.onnx.proto.schemas import foreign_attribute
from bnfold.reasons import Stop, StopCode

_JOINS = frozenset({Op.ADD, Op.MEAN, Op.MUL, Op.DIV, Op.CONCAT})
"""Operators that affines move past to several inputs."""


def lift(model: OnnxModel) -> Graph:
    """Lifts a model.

    Args:
        model: A checked model; the handles of the graph point into its proto.

    Returns:
        The neutral graph. Node names are unique: those of nested graphs begin with the name of the node around them.
    """
    graph = Graph()
    result = with_inferred_shapes(model)
    main = model.proto.graph
    opset = opset_version(model.proto.opset_import)
    types = value_types(result.graph)
    budget = Budget(model.nbytes)
    scope = Scope(main, Constants(model, main, opset, types, budget=budget), opset, main, 0, "")
    _Lifter(graph, scope, types).lift(result.graph)
    bodies = functions_with_shapes(result) if model.proto.functions else {}
    for function in model.proto.functions:
        opset = opset_version(function.opset_import)
        body = bodies[function.domain, function.name, function.overload]
        types = value_types(body)
        prefix = f"{function.domain}.{function.name}/"
        constants = Constants(model, function, opset, types, budget=budget)
        scope = Scope(function, constants, opset, function, 0, prefix)
        _Lifter(graph, scope, types).lift(body)
    _make_names_unique(graph)
    return graph


class _Lifter:
    """Lifts one scope, and those inside it, into a graph.

    Args:
        graph: The graph.
        scope: The scope.
        types: What is known about its values.
        outer: The values of the scope around a nested one.
    """

    def __init__(self, graph: Graph, scope: Scope, types: ValueTypes, outer: Values | None = None) -> None:
        self._graph = graph
        self._scope = scope
        self._outer = outer
        self._types = types
        self._values = Values(scope, types, outer)
        self._readers = self._values.readers
        self._lifted_from: dict[int, Node] = {}
        self._casts = round_trips(scope.graph, types, scope.constants, self._readers.of, self._readers.outputs)

    def lift(self, inferred: GraphLike) -> None:
        """Adds the nodes of the scope to the graph.

        Args:
            inferred: The same graph after shape inference, its nodes in the order in which they run.
        """
        scope = self._scope
        in_bias: set[int] = set()
        for position, index in enumerate(execution_order(scope.graph)):
            node = scope.graph.node[index]
            if index in in_bias or self._is_constant(node):
                self._note_constant_norm(node, Handle(scope, index))
                continue
            bias_index = self._find_bias(node)
            if bias_index is not None:
                in_bias.add(bias_index)
            for lifted in self._lifted(node, Handle(scope, index, bias_index)):
                if not self._extends_chain(lifted, index):
                    self._graph.add(lifted)
                    self._lifted_from[index] = lifted
            for (name, inner), (_, inner_inferred) in zip(
                subgraphs(node), subgraphs(inferred.node[position]), strict=True
            ):
                self._nest(f"{scope.prefix}{label(node)}.{name}/", inner, inner_inferred)

        for index, node in enumerate(scope.graph.node):
            for name in {name for place, name in enumerate(node.input) if reads_type_only(node, place)}:
                self._values.measure(name, Reading(scope.prefix + label(node), self._served(index)))
        if self._outer is not None:
            for output in scope.graph.output:
                self._values.of(output if isinstance(output, str) else output.name)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether all that a node gives, and anything reads, is constant."""
        return any(node.output) and all(map(self._scope.constants.is_constant, self._values.read_outputs(node)))

    def _note_constant_norm(self, node: onnx.NodeProto, handle: Handle) -> None:
        """Notes a BatchNormalization that gives a constant, or why it stays."""
        if not is_standard(node, "BatchNormalization"):
            return
        found = self._scope.constants.find(node.output[0])
        if found is not None and not found.overridable:
            name = self._scope.prefix + label(node)
            self._graph.constant_norms.append(ConstantNorm(name, node.output[0], handle))
        elif found is not None:
            stop = Stop(StopCode.OVERRIDABLE, "it reads a model input that a caller may override")
            self._graph.add(self._batch_norm(node, handle, stop))
        else:
            reason = f"what it makes of the constant '{node.input[0]}' cannot be computed here"
            self._graph.add(self._batch_norm(node, handle, Stop(StopCode.NO_RULE, reason)))

    def _nest(self, prefix: str, graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
        scope = self._scope
        own = {*defined_names(graph)}
        outer = {name: known for name, known in self._types.items() if name not in own}
        types = {**outer, **value_types(inferred)}
        constants = Constants(scope.constants.model, graph, scope.opset, types, scope.constants)
        inner = Scope(graph, constants, scope.opset, scope.root, scope.depth + 1, prefix)
        _Lifter(self._graph, inner, types, self._values).lift(inferred)

    def _lifted(self, node: onnx.NodeProto, handle: Handle) -> tuple[Node, ...]:
        foreign = foreign_attribute(node, self._scope.opset)
        if foreign is not None:
            reason = f"'{foreign}' is no attribute of {node.op_type} in opset {self._scope.opset}"
            return (self._opaque(node, handle, Stop(StopCode.NO_RULE, reason)),)
        if is_runtime_map(node):
            return self._lift_runtime_map(node, handle)
        stop = integer_map_stop(node, self._scope.constants)
        return (self._lift_node(node, handle) if stop is None else self._opaque(node, handle, stop),)

    def _opaque(self, node: onnx.NodeProto, handle: Handle, stop: Stop | None) -> Node:
        """A node that nothing passes, with the reason if there is one of its own."""
        if is_standard(node, "BatchNormalization"):
            return self._batch_norm(node, handle, stop)
        return OpNode(
            name=self._scope.prefix + label(node),
            op_type=node.op_type,
            inputs=self._values.read_by(node),
            outputs=self._values.new_outputs(node, None),
            handle=handle,
            stop=stop,
        )

    def _batch_norm(self, node: onnx.NodeProto, handle: Handle, stop: Stop | None) -> Node:
        """A BatchNormalization, which stays if there is a reason."""
        source = self._values.of(node.input[0])
        lifted = stop or lift_batch_norm(node, source, self._scope.constants, self._scope.opset)
        if isinstance(lifted, Affine):
            _learn_size(source, 1 - lifted.rank, lifted.scale.size)
        return AffineNode(
            name=self._scope.prefix + label(node),
            op_type=node.op_type,
            inputs=(source,),
            also_reads=self._values.read_besides(node),
            outputs=self._values.new_outputs(node, source.shape),
            handle=handle,
            kind=Kind.BATCH_NORM,
            affine=lifted if isinstance(lifted, Affine) else None,
            stop=lifted if isinstance(lifted, Stop) else None,
        )

    def _lift_runtime_map(self, node: onnx.NodeProto, handle: Handle) -> tuple[Node, ...]:
        """A map in the form that onnxruntime writes: FusedConv as a Conv and what comes behind it in the same node."""
        conv = fused_convolution(node)
        found = None if conv is None else lift_map(conv, self._scope.constants, None, None)
        inputs = self._values.read_by(node)
        if conv is None or not isinstance(found, LinearMap) or inputs[:1] != (self._values.of(node.input[0]),):
            return (self._opaque(node, handle, found if isinstance(found, Stop) else runtime_map_stop(node)),)
        require_channels(node, inputs[0], found.input_axis, found.in_channels)
        name = self._scope.prefix + label(node)
        outputs = self._values.new_outputs(node, (None,) * len(found.weight.shape))
        product = Value(f"{node.output[0]}#product", outputs[0].shape, outputs[0].dtype)
        # Without a window it is not merged with others: what comes behind it is part of its node.
        alone = replace(found, window=None)
        activation, adds_more = string_attribute(node, "activation", ""), any(node.input[3:])
        return (
            MapNode(
                name=name, op_type=node.op_type, inputs=inputs[:1], outputs=(product,), handle=handle, linear=alone
            ),
            OpNode(
                name=name,
                op_type=activation or "Add",
                inputs=(product, *inputs[1:]),
                outputs=outputs,
                handle=handle,
                op=Op.RELU if activation in ("Relu", "LeakyRelu") and not adds_more else Op.OPAQUE,
            ),
        )

    def _lift_node(self, node: onnx.NodeProto, handle: Handle) -> Node:
        if is_standard(node, "BatchNormalization"):
            return self._batch_norm(node, handle, None)
        inputs = self._values.read_by(node)
        source_rank = len(inputs[0].shape) if inputs and inputs[0].shape is not None else None
        found = lift_map(node, self._scope.constants, source_rank, handle.bias_node)
        if isinstance(found, LinearMap) and len(inputs) == 1:
            return self._map(node, handle, inputs[0], found)
        lifted = self._passed(node, handle, inputs) if self._scope.opset >= OLDEST_OPSET else None
        if lifted is not None:
            return lifted
        name = self._scope.prefix + label(node)
        stop = found if isinstance(found, Stop) else operand_stop(node, self._scope.constants, name)
        return self._opaque(node, handle, stop)

    def _map(self, node: onnx.NodeProto, handle: Handle, source: Value, linear: LinearMap) -> Node:
        outputs = self._values.new_outputs(handle.bias_node or node, _map_shape(node, linear, source.shape))
        if not linear.broadcasts_input or source.size(linear.input_axis) != 1:
            require_channels(node, source, linear.input_axis, linear.in_channels)
        if not linear.broadcasts_input:
            _learn_size(source, linear.input_axis, linear.in_channels)
        _learn_size(outputs[0], linear.output_axis, linear.out_channels)
        return MapNode(
            name=self._scope.prefix + label(node),
            op_type=node.op_type,
            inputs=(source,),
            outputs=outputs,
            handle=handle,
            linear=linear,
        )

    def _passed(self, node: onnx.NodeProto, handle: Handle, inputs: tuple[Value, ...]) -> Node | None:
        """What other affines pass, if it is such a node: an affine, or an operator with a row in the table."""
        constants, name = self._scope.constants, self._scope.prefix + label(node)
        extra_is_read = len(self._values.read_outputs(node)) > 1
        cast = RoundTrip() if handle.index in self._casts else None
        known = inputs and inputs[0].name == node.input[0]
        if known and (cast or is_identity(node, constants, self._types, mask_is_read=extra_is_read)):
            return OpNode(
                name=name,
                op_type=node.op_type,
                inputs=inputs[:1],
                outputs=self._values.new_outputs(node, inputs[0].shape)[:1],
                handle=replace(handle, widened=self._casts.get(handle.index, ())),
                op=Op.IDENTITY,
                parameters=cast,
            )
        affine = lift_affine(node, constants, inputs[0]) if len(inputs) == 1 else None
        if affine is not None:
            return AffineNode(
                name=name,
                op_type=node.op_type,
                inputs=inputs,
                outputs=self._values.new_outputs(node, inputs[0].shape),
                handle=handle,
                kind=Kind.AFFINE,
                affine=affine,
            )
        several = lift_several(node, constants, self._types)
        if several is not None:
            data = tuple(map(self._values.of, several.reads))
            row, beside = several.row, tuple(value for value in inputs if value not in data)
        else:
            shapes = tuple(shape_in(self._types, output) for output in node.output if output)
            view = NodeView(node, constants, inputs[0].shape if inputs else None, shapes, extra_is_read=extra_is_read)
            move = lift_move(view, all_inputs_flow=len(inputs) == len(node.input))
            if move is None:
                return None
            data = inputs if move[0] in _JOINS else inputs[:1]
            row, beside = move, inputs[len(data) :]
        outputs = self._values.new_outputs(node, None)
        return OpNode(
            name=name,
            op_type=node.op_type,
            inputs=data,
            also_reads=beside,
            outputs=outputs if row[0] is Op.PICK else outputs[:1],
            handle=handle,
            op=row[0],
            parameters=row[1],
        )

    def _extends_chain(self, node: Node, index: int) -> bool:
        """Takes an affine into the spelled-out one before it, as in Mul and Add, if nothing else reads that."""
        if not isinstance(node, AffineNode) or node.kind is not Kind.AFFINE or node.affine is None:
            return False
        value = node.inputs[0]
        first = value.producer
        if (
            not isinstance(first, AffineNode)
            or first.kind is not Kind.AFFINE
            or first.affine is None
            or first.may_end_activation
            or not isinstance(first.handle, Handle)
            or value.observer is not None
            or self._readers.of[value.name] != [index]
        ):
            return False
        whole = first.affine.chained(node.affine)
        if whole is None:
            return False
        first.affine = whole
        first.operations += 1
        first.outputs = node.outputs
        first.handle = replace(first.handle, chain=(*first.handle.chain, index))
        for output in node.outputs:
            output.producer = first
        return True

    def _served(self, index: int) -> frozenset[Node]:
        """The nodes with constants that are made of what a node gives; empty if anything else is."""
        served: set[Node] = set()
        waiting, seen = [index], {index}
        while waiting:
            outputs = [name for name in self._scope.graph.node[waiting.pop()].output if name]
            seen_outside = not self._readers.outputs.isdisjoint(outputs)
            if seen_outside or not all(map(self._scope.constants.is_constant, outputs)):
                return frozenset()
            for reader in (reader for name in outputs for reader in self._readers.of.get(name, [])):
                if reader is None:
                    return frozenset()
                if reader in self._lifted_from:
                    served.add(self._lifted_from[reader])
                elif reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return frozenset(served)

    def _find_bias(self, node: onnx.NodeProto) -> int | None:
        """The position of the Add that gives a product with a constant its bias."""
        if not (is_standard(node, "MatMul", "Einsum") or is_block_product(node)) or self._scope.opset < OLDEST_OPSET:
            return None
        readers = self._readers.of.get(node.output[0], [])
        if len(readers) != 1 or readers[0] is None or node.output[0] in self._readers.outputs:
            return None
        add = self._scope.graph.node[readers[0]]
        return readers[0] if is_bias_add(node, add, self._scope.constants, self._types) else None


def _map_shape(node: onnx.NodeProto, linear: LinearMap, source: Shape | None) -> Shape | None:
    """The rank of a map's output, for when shape inference does not know it."""
    if is_standard(node, "Einsum"):
        return None
    if not (is_standard(node, "MatMul") or is_block_product(node)):
        return (None,) * len(linear.weight.shape)
    return None if source is None else (None,) * max(len(source), len(linear.weight.shape) if linear.order else 0)


def _learn_size(value: Value, axis: int, size: int) -> None:
    """Notes the size of an axis (negative) that shape inference does not know, but the weights beside it prove."""
    if value.shape is None or len(value.shape) < -axis or isinstance(value.shape[axis], int):
        return
    shape = [*value.shape]
    shape[axis] = size
    value.shape = tuple(shape)


def _make_names_unique(graph: Graph) -> None:
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for node in graph.nodes:
        name = node.name
        while node.name in taken:
            numbers[name] = numbers.get(name, 1) + 1
            node.name = f"{name}#{numbers[name]}"
        taken.add(node.name)
