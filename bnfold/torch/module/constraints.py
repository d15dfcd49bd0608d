"""What a module cannot express, told to the planner.

A graph has an operation for each use of a weight and of a batch norm; a module has one object for all of its calls. So
a plan for a module has to change every call of a module alike, and only what the code of the module reads. What is
known beforehand is written into the graph: affines that must stay, maps that take nothing, values that hooks see. The
rest is found in a plan, written into the graph too, and planned again, until a plan can be carried out.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from bnfold.graph import AffineNode, Graph, MapNode, Node, Op, OpNode, Value
from bnfold.planning import planner
from bnfold.planning.plan import Plan
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture
from bnfold.torch.module.memory_layout import broken_views
from bnfold.torch.module.module_calls import Traces, handle
from bnfold.torch.module.removal import Removal, Removals
from bnfold.torch.module.shared_changes import Change
from bnfold.torch.module.tensor_slots import Group, Place, Readers, Slots
from bnfold.torch.module.weight_homes import Computed, Home, Homes


class Constraints:
    """The constraints of one module.

    Args:
        graph: What was lifted of it; affines that must stay and maps that cannot change are marked in it.
        traces: What ran where.
        captured: What was captured.
        slots: The parameters of the module.
        reads: The nodes that read each parameter.
        watched: The paths of modules with hooks.
        kept: For nodes of programs, by the id of the program and their names, why what they give must stay what it is.

    Attributes:
        removals: What remains of the module of each affine that may go.
        homes: Where the weights of each map that may change are kept.
    """

    def __init__(
        self,
        graph: Graph,
        traces: Traces,
        captured: Capture,
        slots: Slots,
        reads: Readers,
        watched: frozenset[str],
        kept: Mapping[tuple[int, str], Stop],
    ) -> None:
        self.removals: dict[AffineNode, Removal] = {}
        self.homes: dict[MapNode, Home] = {}
        self._graph = graph
        self._traces = traces
        self._captured = captured
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
        if watched or kept:
            self._observe(watched, kept)

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

    def keep(self, stops: Mapping[Place, Stop], paths: Mapping[nn.Module, str]) -> None:
        """Lets places of the module stay as they are in every further plan.

        Args:
            stops: The reason for each.
            paths: The paths of the modules.
        """
        for affine, removal in self.removals.items():
            stop = stops.get(Place(paths[removal.module], None))
            affine.stop = affine.stop or stop
        for map_, home in self.homes.items():
            places = [place for kept in (home.weight, home.bias) for place in _places(kept, home, paths)]
            stop = next((stops[place] for place in places if place in stops), None)
            if stop is not None:
                self._block(map_, stop)

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

    def _observe(self, watched: frozenset[str], kept: Mapping[tuple[int, str], Stop]) -> None:
        """Lets everything stay that a hook sees, or that the code keeps."""
        values: dict[tuple[int, str], set[Value]] = defaultdict(set)
        inner: dict[tuple[int, str], set[Node]] = defaultdict(set)
        for node in self._graph.nodes:
            program = id(handle(node).scope.program)
            for value in (*node.inputs, *node.outputs):
                values[program, value.name].add(value)
            for part in (handle(node).node, *handle(node).chain):
                inner[program, part.name].add(node)
        for key, stop in (*self._seen_by_hooks(watched), *kept.items()):
            for value in values.get(key, ()):
                value.observer = value.observer or stop
            if key not in values:
                self._keep(inner.get(key, ()), stop)

    def _seen_by_hooks(self, watched: frozenset[str]) -> Iterator[tuple[tuple[int, str], Stop]]:
        modules = {self._traces.module(path): path for path in watched}
        for piece in self._captured.pieces if watched else ():
            program = id(piece.program)
            for call in self._traces.recorded(program):
                path = modules.get(self._traces.module(call.path))
                if path is None:
                    continue
                if not call.is_known:
                    self._stop_all(program, Stop(StopCode.HOOKS, f"hooks of '{path}' see something in a nested graph"))
                stop = Stop(StopCode.HOOKS, f"is seen by a hook of '{path}'")
                yield from (((program, name), stop) for name in (*call.inputs, *call.outputs))

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
            reason = f"without it '{view}' would, or may, find its input in another memory layout"
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
                Change(shared, self.homes.get(node), plan.foldings.get(node), biases.get(node)) for node in nodes
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


def _places(kept: Group | Computed | None, home: Home, paths: Mapping[nn.Module, str]) -> Iterator[Place]:
    """Where a weight or a bias is, or would be."""
    match kept:
        case Computed():
            yield Place(paths[kept.module], kept.name)
        case Group():
            yield from (Place(slot.path, slot.name) for slot in kept.slots)
        case None if home.owner is not None:
            yield Place(paths[home.owner], "bias")
        case _:
            pass
