"""What is left of a module when the affine that it computes moves into other weights.

nn.Identity, if the affine is all that it does. A BatchNorm that also applies an activation leaves the submodules that
work on its result. Both are proved from the trace: in each call of the module everything that ran is the affine and
these submodules, one behind the other, from the one input of the module to its one output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.graph import AffineNode, Graph
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture
from bnfold.torch.capture.hooks import is_watched
from bnfold.torch.fx.higher_order import nested_graphs
from bnfold.torch.fx.nodes import is_tuple_item, operator_name
from bnfold.torch.fx.tensors import memory
from bnfold.torch.lift.provenance import Scope, handle_of
from bnfold.torch.module.module_calls import CallKey, Traces, handle
from bnfold.torch.module.tensor_slots import Readers, Slots

ONLY_A_GRAPH = "only a graph can express that: fold torch.export.export of the module instead"
_OBSERVES_NOTHING = frozenset("_assert_tensor_metadata _assert_async sym_size sym_numel sym_stride".split())


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """A module whose affine may go.

    Attributes:
        module: The module.
        remains: The names of its submodules that stay and run, in order; none for nn.Identity.
    """

    module: nn.Module
    remains: tuple[str, ...]


def is_torch_batch_norm(module: nn.Module) -> bool:
    """Whether a module runs torch's own code for batch normalisation, and nothing else."""
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
        and type(module).__call__ is nn.Module.__call__
        and "forward" not in vars(module)
    )


class Removals:
    """Which modules may lose their affine, and what remains of them.

    Args:
        traces: What ran where.
        slots: The parameters of the module.
        readers: The nodes that read each parameter.
        captured: What was captured.
    """

    def __init__(self, traces: Traces, slots: Slots, readers: Readers, captured: Capture) -> None:
        self._traces = traces
        self._captured = captured
        self._slots = slots
        self._readers = readers

    def find(self, graph: Graph) -> dict[AffineNode, Removal | Stop]:
        """For each affine of a graph what remains of its module, or why it has to stay."""
        by_module: dict[nn.Module, list[AffineNode]] = {}
        found: dict[AffineNode, Removal | Stop] = {}
        for node in graph.affines:
            module = self._traces.module(handle(node).module)
            if module is None:
                found[node] = Stop(StopCode.NEEDS_GRAPH, f"it belongs to no module, and {ONLY_A_GRAPH}")
            else:
                by_module.setdefault(module, []).append(node)
        for module, nodes in by_module.items():
            removal = self._of_module(module, nodes)
            found.update(dict.fromkeys(nodes, removal))
        return found

    def _of_module(self, module: nn.Module, nodes: Sequence[AffineNode]) -> Removal | Stop:
        name = handle(nodes[0]).module or type(module).__name__
        if is_watched(module):
            return Stop(StopCode.HOOKS, f"'{name}' has hooks, which would see something else")
        if isinstance(module, torch.jit.ScriptModule):
            return Stop(StopCode.NEEDS_GRAPH, f"it is inside of TorchScript ('{name}'): fold before torch.jit.script")
        trace = self._traces.trace(module)
        by_call: dict[CallKey, list[AffineNode]] = {call: [] for call in trace.calls}
        for node in nodes:
            by_call[id(handle(node).scope.program), handle(node).call or ""].append(node)
        remains: tuple[str, ...] | None = None
        for call, inside in by_call.items():
            stays = self._remains(module, inside[0], trace.calls[call]) if len(inside) == 1 else None
            if stays is None or (remains is not None and stays != remains):
                return Stop(
                    StopCode.NEEDS_GRAPH, f"{self._more_than_affine(module, name, call[0])}, and {ONLY_A_GRAPH}"
                )
            remains = stays
        if any(memory(group.tensor) in self._captured.read_outside for group in self._slots.of(module)):
            reason = f"code that torch.export cannot follow ({self._captured.reason}) reads the parameters of '{name}'"
            return Stop(StopCode.NOT_CAPTURED, reason)
        reader = self._foreign_reader(module)
        if reader is not None:
            return Stop(StopCode.SHARED_WEIGHT, f"the parameters of '{name}' are also read by '{reader.name}'")
        return Removal(module, remains or ())

    def _more_than_affine(self, module: nn.Module, name: str, program: int) -> str:
        called = [call for call in self._traces.recorded(program) if self._traces.module(call.path) is module]
        if not all(call.is_known for call in called):
            return f"'{name}' is called in a nested graph"
        if all(call.is_simple for call in called):
            return f"'{name}' does more than scale and shift its input"
        return f"'{name}' is not called with one tensor by its position, or returns more than one"

    def _remains(
        self, module: nn.Module, node: AffineNode, ran: Sequence[tuple[Scope, fx.Node]]
    ) -> tuple[str, ...] | None:
        """The submodules that stay after one call, or None if the call is not an affine and submodules."""
        scope, affine = handle(node).scope, {handle(node).node, *handle(node).chain}
        work = [other for where, other in ran if not _is_idle(where, other)]
        if is_torch_batch_norm(module):
            return () if affine.issuperset(work) else None
        for call in self._traces.recorded(id(scope.program)):
            here = self._traces.module(call.path) is module and call.is_simple
            if here and call.inputs == (node.inputs[0].name,):
                chain = self._chain(module, scope, node.outputs[0].name, call.outputs[0])
                if chain is not None and self._is_all(module, scope, affine, work, chain, call.outputs[0]):
                    return chain
        return None

    def _chain(self, module: nn.Module, scope: Scope, start: str, end: str) -> tuple[str, ...] | None:
        """The submodules that lead from one value to another, one after the other."""
        names: dict[nn.Module | None, str] = {
            child: name for name, child in module._modules.items() if child is not None
        }
        recorded = self._traces.recorded(id(scope.program))
        calls = [(names.get(self._traces.module(call.path)), call) for call in recorded if call.is_simple]
        chain: list[str] = []
        value = start
        while value != end:
            following = [(name, call) for name, call in calls if call.inputs == (value,) and name is not None]
            if not following:
                return None
            # What passes its input on as it is comes before what computes something of it.
            name, call = min(following, key=lambda found: found[1].outputs != found[1].inputs)
            calls.remove((name, call))
            chain.append(name)
            value = call.outputs[0]
        return tuple(chain) if len(chain) == len(set(chain)) else None

    def _is_all(
        self,
        module: nn.Module,
        scope: Scope,
        affine: set[fx.Node],
        work: Sequence[fx.Node],
        chain: tuple[str, ...],
        result: str,
    ) -> bool:
        """Whether nothing else ran, and only the result got out."""
        children: dict[nn.Module, set[str]] = {module.get_submodule(name): set() for name in chain}
        for node in work:
            if node in affine:
                continue
            inside = False
            for path, call in handle_of(scope, node).outer_modules:
                child = self._traces.module(path)
                if child is not None and child in children:
                    children[child].add(call)
                    inside = True
            if not inside:
                return False
        once = all(len(calls) <= 1 for calls in children.values())
        return once and all(node.name == result or set(work).issuperset(_real_users(node)) for node in work)

    def _foreign_reader(self, module: nn.Module) -> fx.Node | None:
        """A node outside that reads parameters of a module, other than for a module which has them as well."""
        for group in self._slots.of(module):
            traces = [self._traces.trace(slot.module) for slot in group.slots]
            for reader in self._readers.get(group, ()):
                if not any(reader in trace.nodes for trace in traces):
                    return reader
        return None


def _is_idle(scope: Scope, node: fx.Node) -> bool:
    """Whether a node does nothing to the values that flow; one that takes what a nested graph returns has run in it."""
    if node.op != "call_function" or scope.constants.is_constant(node):
        return True
    if is_tuple_item(node) and any(nested_graphs(source) for source in node.all_input_nodes):
        return True
    return operator_name(node) in _OBSERVES_NOTHING and not node.users


def _real_users(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if operator_name(user) not in _OBSERVES_NOTHING]
