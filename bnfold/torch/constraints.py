"""What a module cannot express, told to the planner.

A graph has an operation for each use of a weight and of a batch norm; a module has one object for all of its calls. So
a plan for a module has to change every call of a module alike, and only what the code of the module reads. What is
known beforehand is written into the graph: affines that must stay, maps that take nothing, values that hooks see. The
rest is found in a plan, written into the graph too, and planned again, until a plan can be carried out.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from bnfold import planner
from bnfold.graph import AffineNode, Graph, MapNode, Node, Op, OpNode, Stop, StopCode, Value
from bnfold.plan import Plan
from bnfold.rounding import Array
from bnfold.torch.capture import Capture
from bnfold.torch.homes import Home, Homes
from bnfold.torch.layout import broken_views
from bnfold.torch.removal import Removal, Removals
from bnfold.torch.slots import Group, Slots, readers
from bnfold.torch.traces import Traces, handle
from bnfold.weights import Folding


class Constraints:
    """The constraints of one module.

    Args:
        graph: What was lifted of it; affines that must stay and maps that cannot change are marked in it.
        traces: What ran where.
        captured: What was captured.
        slots: The parameters of the module.
        watched: The paths of modules with hooks.

    Attributes:
        removals: What remains of the module of each affine that may go.
        homes: Where the weights of each map that may change are kept.
    """

    def __init__(self, graph: Graph, traces: Traces, captured: Capture, slots: Slots, watched: frozenset[str]) -> None:
        self.removals: dict[AffineNode, Removal] = {}
        self.homes: dict[MapNode, Home] = {}
        self._graph = graph
        self._traces = traces
        self._captured = captured
        reads = readers(slots, captured.pieces)
        self._homes = Homes(graph, traces, slots, reads, captured)
        for node, removal in Removals(traces, slots, reads, captured).find(graph).items():
            if isinstance(removal, Stop):
                node.stop = node.stop or removal
            else:
                self.removals[node] = removal
        for map_ in [node for node in graph.nodes if isinstance(node, MapNode)]:
            home = self._homes.find(map_)
            if isinstance(home, Stop):
                self._block(map_, home)
            else:
                self.homes[map_] = home
        if watched:
            self._observe(watched)

    def plan(self, skip: tuple[str, ...], only: tuple[str, ...]) -> Plan:
        """A plan that the module can express.

        Raises:
            UsageError: A pattern matches no BN.
        """
        while True:
            plan = planner.plan(self._graph, skip=skip, only=only, compose=False)
            stops = dict(self._stays(plan))
            for node, stop in stops.items():
                node.stop = stop
            blocks = {} if stops else dict(self._stays_as_it_is(plan))
            for map_, stop in blocks.items():
                self._block(map_, stop)
            if not stops and not blocks:
                return plan

    def with_merges(self, skip: tuple[str, ...], only: tuple[str, ...]) -> Plan:
        """What a graph could do with what a module cannot: a plan in which branches are merged."""
        return planner.plan(self._graph, skip=skip, only=only, compose=False, merge=True)

    def _block(self, node: MapNode, stop: Stop) -> None:
        """Makes a map an operator that nothing moves past."""
        opaque = OpNode(
            name=node.name,
            op_type=node.op_type,
            inputs=node.inputs,
            also_reads=node.also_reads,
            outputs=node.outputs,
            handle=node.handle,
            op=Op.OPAQUE,
            stop=stop,
        )
        self._graph.nodes[self._graph.nodes.index(node)] = opaque
        for value in (*node.inputs, *node.also_reads):
            value.uses[:] = [opaque if user is node else user for user in value.uses]
        for value in node.outputs:
            value.producer = opaque

    def _observe(self, watched: frozenset[str]) -> None:
        """Lets everything stay that a hook sees."""
        modules = {self._traces.module(path): path for path in watched}
        values: dict[tuple[int, str], set[Value]] = defaultdict(set)
        inner: dict[tuple[int, str], set[Node]] = defaultdict(set)
        for node in self._graph.nodes:
            program = id(handle(node).scope.program)
            for value in (*node.inputs, *node.outputs):
                values[program, value.name].add(value)
            for part in (handle(node).node, *handle(node).chain):
                inner[program, part.name].add(node)
        for piece in self._captured.pieces:
            program = id(piece.program)
            for call in self._traces.recorded(program):
                path = modules.get(self._traces.module(call.path))
                if path is None:
                    continue
                if not call.is_known:
                    self._stop_all(program, Stop(StopCode.HOOKS, f"hooks of '{path}' see something in a nested graph"))
                stop = Stop(StopCode.HOOKS, f"is seen by a hook of '{path}'")
                for key in ((program, name) for name in (*call.inputs, *call.outputs)):
                    for value in values.get(key, ()):
                        value.observer = value.observer or stop
                    if key not in values:
                        self._keep(inner.get(key, ()), stop)

    def _stop_all(self, program: int, stop: Stop) -> None:
        """Lets every affine of a program stay."""
        for node in self._graph.affines:
            if id(handle(node).scope.program) == program:
                node.stop = node.stop or stop

    def _keep(self, nodes: Iterable[Node], stop: Stop) -> None:
        """Lets nodes stay as they are that have something inside that is seen."""
        for node in nodes:
            why = Stop(stop.code, f"a part of '{node.name}' {stop.reason}")
            if isinstance(node, AffineNode):
                node.stop = node.stop or why
            elif isinstance(node, MapNode):
                self._block(node, why)

    def _stays(self, plan: Plan) -> Iterator[tuple[AffineNode, Stop]]:
        """The affines that a plan wants to move or change, and that have to stay."""
        gone = {step.source for step in plan.steps}
        for step in plan.steps:
            for target in step.targets:
                if isinstance(target, AffineNode):
                    yield target, Stop(StopCode.NEEDS_GRAPH, f"'{target.name}' takes nothing into its constant")
        calls: dict[object, list[AffineNode]] = {}
        for node, removal in self.removals.items():
            calls.setdefault(removal.module, []).append(node)
        for nodes in calls.values():
            staying = [node for node in nodes if node not in gone]
            if staying and len(staying) < len(nodes):
                reason = f"another call of the same module, '{staying[0].name}', has to stay"
                yield from ((node, Stop(StopCode.SHARED_WEIGHT, reason)) for node in nodes if node in gone)
        for node, view in broken_views(plan):
            reason = f"without it '{view}' would find its input in another memory layout"
            yield node, Stop(StopCode.NEEDS_GRAPH, reason)

    def _stays_as_it_is(self, plan: Plan) -> Iterator[tuple[MapNode, Stop]]:
        """The maps that a plan wants to change, and that cannot be changed like this."""
        biases = {node: folding.bias() for node, folding in plan.foldings.items()}
        for node, bias in biases.items():
            home = self.homes[node]
            if bias is None:
                continue
            if home.bias is None and home.owner is None:
                reason = f"the code of {node.op_type} '{node.name}' takes no bias, which it would need"
                yield node, Stop(StopCode.NEEDS_GRAPH, reason)
            if isinstance(home.bias, Group) and home.bias.tensor.numel() != bias.size:
                reason = (
                    f"the bias of {node.op_type} '{node.name}' has {home.bias.tensor.numel()} elements, not {bias.size}"
                )
                yield node, Stop(StopCode.NEEDS_GRAPH, reason)
        for shared, nodes in self._together().items():
            changes = [
                _Change(shared, self.homes.get(node), plan.foldings.get(node), biases.get(node)) for node in nodes
            ]
            odd = next(
                (node for node, change in zip(nodes, changes, strict=True) if not changes[0].agrees(change)), None
            )
            if odd is not None:
                reason = f"'{nodes[0].name}' and '{odd.name}' share a parameter, and would need different ones"
                yield from ((node, Stop(StopCode.SHARED_WEIGHT, reason)) for node in nodes if node in self.homes)

    def _together(self) -> dict[Group | nn.Module, list[MapNode]]:
        """The maps that have to change alike, by the parameter that they share or the module that they call."""
        found: dict[Group | nn.Module, dict[MapNode, None]] = {}
        for node, home in self.homes.items():
            for group in home.groups:
                found.setdefault(group, {}).update(dict.fromkeys(self._homes.sharing(group)))
            if home.owner is not None:
                found.setdefault(home.owner, {})[node] = None
        return {shared: [*nodes] for shared, nodes in found.items() if len(nodes) > 1}


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What becomes of something that several maps share: a parameter, or a module of which they are calls.

    Attributes:
        shared: The parameter or the module.
        home: Where the weights of the map are kept; None if it stays as it is.
        folding: What the map absorbs; None if nothing.
        bias: Its new bias; None if it has none, or nothing is absorbed.
    """

    shared: Group | nn.Module
    home: Home | None
    folding: Folding | None
    bias: Array | None

    def agrees(self, other: "_Change") -> bool:
        """Whether two maps change it alike."""
        if self.folding is None or other.folding is None or self.home is None or other.home is None:
            return self.folding is other.folding
        one, two = self.folding.linear, other.folding.linear
        is_weight = self.home.weight is self.shared
        if isinstance(self.shared, Group) and is_weight is not (other.home.weight is self.shared):
            return False
        if is_weight or isinstance(self.shared, nn.Module):
            alike = (one.out_first, one.groups) == (two.out_first, two.groups)
            if not alike or not all(map(_same, self._scales(), other._scales())):
                return False
        return is_weight or _same(self.bias, other.bias)

    def _scales(self) -> tuple[Array | None, Array | None]:
        assert self.folding is not None  # noqa: S101 - the caller has looked
        inner, outer = self.folding.inner, self.folding.outer
        return (None if inner is None else inner.scale), (None if outer is None else outer.scale)


def _same(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
