"""The neutral node for each node of a program: linear map, batch norm, affine, row of the rule table, or opaque."""

from dataclasses import replace

from torch import fx

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import LinearMap
from bnfold.errors import UnsupportedModelError
from bnfold.graph import AffineNode, Gathered, Kind, MapNode, Node, Op, OpNode, RoundTrip, Value
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import (
    arguments,
    display_name,
    fake_tensor,
    fake_tensors,
    is_batch_norm,
    is_tuple_item,
    operator_name,
    overload,
    same_strides,
    shape_of,
)
from bnfold.torch.lift.affines import bias_of, lift_affine
from bnfold.torch.lift.graph_values import Values
from bnfold.torch.lift.linear_maps import FoundMap, lift_map, map_type
from bnfold.torch.lift.memory.aliases import Memory
from bnfold.torch.lift.moves.node_facts import View
from bnfold.torch.lift.moves.rows import Move, lift_move, nonlinear, type_name
from bnfold.torch.lift.norms import lift_batch_norm
from bnfold.torch.lift.provenance import Handle, Scope, handle_of
from bnfold.torch.lift.round_trips import round_trips


class NodeLifter:
    """Makes the neutral nodes of one scope.

    Args:
        scope: The scope.
        memory: Who shares memory in its graph.
        values: The values of its graph, to which those that nodes compute are added.

    Attributes:
        in_bias: The nodes that have become the bias of a map before them.
    """

    def __init__(self, scope: Scope, memory: Memory, values: Values) -> None:
        self._scope = scope
        self._constants = scope.constants
        self._memory = memory
        self._values = values
        self.in_bias: set[fx.Node] = set()
        self._casts = round_trips(scope.graph, scope.constants)

    def classify(self, node: fx.Node, reads: list[fx.Node]) -> Node:
        """The neutral node for a node that is no constant."""
        handle = handle_of(self._scope, node)
        stop = self._memory_stop(node)
        if is_batch_norm(node):
            return self._batch_norm(node, handle)
        found = lift_map(node, self._constants)
        if isinstance(found, FoundMap):
            stop = stop or self._type_stop(node, found)
        if isinstance(found, FoundMap) and stop is None:
            return self._map(node, found, handle)
        if isinstance(found, Stop):
            stop = stop or found
        affine = lift_affine(node, self._constants) if stop is None else None
        if affine is not None:
            found_affine = isinstance(affine.affine, Affine)
            return AffineNode(
                name=node.name,
                op_type=display_name(node),
                inputs=(self._values.of(affine.source),),
                outputs=(self._values.new(node),),
                handle=replace(handle, parameters=affine.parameters, keeps_layout=_same_strides(affine.source, node)),
                kind=Kind.AFFINE if found_affine else Kind.BATCH_NORM,
                affine=affine.affine if isinstance(affine.affine, Affine) else None,
                stop=affine.affine if isinstance(affine.affine, Stop) else None,
            )
        return self._other(node, reads, handle, stop)

    def _type_stop(self, node: fx.Node, found: FoundMap) -> Stop | None:
        """Why torch does not take the input of a map; autocast casts it, where a graph is nested."""
        source, weight = self._values.of(found.source).dtype, str(found.linear.weight.dtype)
        if self._scope.caller is not None or source in ("", weight):
            return None
        reason = f"torch takes no {source} input of {map_type(node)} '{node.name}', whose weight is {weight}"
        return Stop(StopCode.CHANGES_DTYPE, reason)

    def _batch_norm(self, node: fx.Node, handle: Handle) -> Node:
        data = arguments(node)["input"]
        if not isinstance(data, fx.Node):
            message = f"batch norm '{node.name}' of the program has no input"
            raise UnsupportedModelError(message)
        source = self._values.of(data)
        found = lift_batch_norm(node, source, self._constants)
        affine, stop = (found.affine, None) if isinstance(found.affine, Affine) else (None, found.affine)
        result = node
        chain: tuple[fx.Node, ...] = ()
        extra: list[Value] = []
        if fake_tensor(node) is None:
            outputs = self._values.new_items(node)
            results = [user for user in node.users if is_tuple_item(user) and user.args[1] == 0]
            if results:
                result, chain = results[0], (results[0],)
            read = {user.args[1] for user in node.users if is_tuple_item(user) and user.users}
            extra = [value for index, value in sorted(outputs.items()) if index and index in read]
            target = outputs.get(0) or Value(node.name)
            if extra:
                affine, stop = (
                    None,
                    stop or Stop(StopCode.TRAINING_MODE, "its batch statistics are read, as in training"),
                )
        else:
            target = self._values.new(node)
        if stop is None and source.dtype != target.dtype:
            affine, stop = (
                None,
                Stop(StopCode.CHANGES_DTYPE, f"it makes {target.dtype or 'something'} of {source.dtype}"),
            )
        return AffineNode(
            name=node.name,
            op_type="BatchNorm",
            inputs=(source,),
            outputs=(target, *extra),
            handle=replace(handle, chain=chain, parameters=found.parameters, keeps_layout=_same_strides(data, result)),
            kind=Kind.BATCH_NORM,
            affine=affine,
            stop=stop,
        )

    def _map(self, node: fx.Node, found: FoundMap, handle: Handle) -> Node:
        handle = replace(handle, parameters=found.parameters)
        linear, result = found.linear, node
        bias = self._bias(node, linear)
        if bias is not None:
            result, linear = bias
            self.in_bias.add(result)
            added = () if linear.bias is None else self._constants.parameters(result)
            handle = replace(handle, chain=(result,), parameters=tuple(dict.fromkeys((*handle.parameters, *added))))
        source = self._values.of(found.source)
        self._require_channels(node, source, linear)
        return MapNode(
            name=node.name,
            op_type=map_type(node),
            inputs=(source,),
            outputs=(self._values.new(result),),
            handle=handle,
            linear=linear,
        )

    def _bias(self, node: fx.Node, linear: LinearMap) -> tuple[fx.Node, LinearMap] | None:
        """The addition that gives a matrix product its bias, and the map with it."""
        if not linear.bias_is_extra or len(node.users) != 1:
            return None
        add = next(iter(node.users))
        found = bias_of(node, add, self._constants, linear.output_axis)
        if found is None or self._memory_stop(add) is not None:
            return None
        return add, replace(linear, bias=found)

    def _other(self, node: fx.Node, reads: list[fx.Node], handle: Handle, stop: Stop | None) -> Node:
        inputs = tuple(self._values.of(read) for read in reads)
        several = fake_tensors(node)
        op_type = map_type(node) or type_name(node)
        outputs: tuple[Value, ...] = ()
        if several is not None:
            outputs = tuple(value for _, value in sorted(self._values.new_items(node).items()))
        elif not _computes_nothing(node):
            outputs = (self._values.new(node),)
        move = lift_move(self._view(node)) if stop is None and inputs and not map_type(node) else None
        if node in self._casts and stop is None:
            move = Move(Op.IDENTITY, RoundTrip(), (node.all_input_nodes[0],))
            handle = replace(handle, widened=self._casts[node])
        if move is None:
            stop = stop or nonlinear(node)
            return OpNode(name=node.name, op_type=op_type, inputs=inputs, outputs=outputs, handle=handle, stop=stop)
        data = tuple(self._values.of(read) for read in move.reads)
        also = [*reads]
        for read in move.reads:
            also.remove(read)
        return OpNode(
            name=node.name,
            op_type=op_type,
            inputs=data,
            also_reads=tuple(self._values.of(read) for read in also),
            outputs=outputs if move.op is Op.PICK else outputs[:1],
            handle=handle,
            op=move.op,
            parameters=move.parameters,
        )

    def _view(self, node: fx.Node) -> View:
        several = fake_tensors(node)
        targets = [shape_of(fake) for fake in (several if several is not None else (fake_tensor(node),))]
        extra = any(is_tuple_item(user) and user.args[1] != 0 and bool(user.users) for user in node.users)
        return View(node, arguments(node), self._constants, tuple(targets), extra_is_read=extra)

    def part(self, unbind: fx.Node, node: fx.Node) -> Node:
        """The neutral node for one of the parts that unbind cuts a value into: each selects a place along an axis."""
        given = arguments(unbind)
        source, axis, index = given["self"], given["dim"], node.args[1]
        assert isinstance(source, fx.Node)
        assert isinstance(axis, int)
        assert isinstance(index, int)
        value = self._values.of(source)
        rank = len(value.shape or ())
        known = rank > 0 and not self._memory.stop(node)
        return OpNode(
            name=node.name,
            op_type="unbind",
            inputs=(value,),
            outputs=(self._values.new(node),),
            handle=handle_of(self._scope, node),
            op=Op.GATHER if known else Op.OPAQUE,
            parameters=Gathered(axis % rank, 0, (index,)) if known else None,
        )

    def _memory_stop(self, node: fx.Node) -> Stop | None:
        """Why an operator that changes its argument in place is not like its pure twin."""
        if not self._memory.changes(node):
            return None
        target = overload(node)
        if target is None or not target._schema.name.endswith("_"):
            return Stop(StopCode.MUTATED, f"'{node.name}' writes into tensors that it is given")
        stop = self._memory.stop(node)
        return None if stop is None else Stop(stop.code, f"'{node.name}' {stop.reason}")

    def _require_channels(self, node: fx.Node, source: Value, linear: LinearMap) -> None:
        shape, axis, channels = source.shape, linear.input_axis, linear.in_channels
        size = shape[axis] if shape is not None and len(shape) >= -axis else channels
        if linear.broadcasts_input and size == 1:
            return
        if isinstance(size, int) and size != channels:
            message = f"'{node.name}' of the program is for {channels} channels, and its input has {size}"
            raise UnsupportedModelError(message)


def is_unbind(node: fx.Node) -> bool:
    """Whether a node cuts a value into all its parts along an axis."""
    return operator_name(node) == "unbind" and "dim" in arguments(node)


def _computes_nothing(node: fx.Node) -> bool:
    return "val" in node.meta and fake_tensor(node) is None


def _same_strides(source: fx.Node, target: fx.Node) -> bool:
    before, after = fake_tensor(source), fake_tensor(target)
    return before is not None and after is not None and same_strides(before, after)
