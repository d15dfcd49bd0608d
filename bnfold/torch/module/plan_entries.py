"""Plans in terms of modules: one entry for each batch norm module, under its path, however many calls of it there are.

A function that normalises with the parameters of a batch norm module stands for that module; so does a batch norm in a
branch of torch.cond, where torch.export does not say which module it is.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.graph import AffineNode, Graph, Kind, Node
from bnfold.planning.plan import Fold, Left, Plan
from bnfold.reasons import StopCode
from bnfold.torch.lift.provenance import Handle
from bnfold.torch.module.module_calls import Traces, handle
from bnfold.torch.module.removal import ONLY_A_GRAPH
from bnfold.torch.module.tensor_slots import Readers, Slots

EntryT = TypeVar("EntryT", Fold, Left)


def is_batch_norm_module(module: nn.Module) -> bool:
    """Whether a module is a batch norm by its class: torch's, one made of it, or a frozen one."""
    return isinstance(module, _BatchNorm) or "FrozenBatchNorm" in type(module).__name__


def batch_norm_modules(graph: Graph, traces: Traces, slots: Slots, reads: Readers) -> dict[AffineNode, nn.Module]:
    """The module that each batch norm of a graph is, where it is one."""
    found = {}
    for node in graph.affines:
        module = _module(node, traces, slots, reads) if node.kind is Kind.BATCH_NORM else None
        if module is not None:
            found[node] = module
    return found


def name_like_modules(graph: Graph, modules: Mapping[AffineNode, nn.Module], paths: Mapping[nn.Module, str]) -> None:
    """Gives the first function that stands for a module its path as its name, even if a later call has that."""
    others = {node.name for node in graph.nodes} - {node.name for node in modules}
    named = {node.name: node for node in modules}
    first: dict[nn.Module, AffineNode] = {}
    for node, module in modules.items():
        first.setdefault(module, node)
    for module, node in first.items():
        path = paths[module]
        holder = named.get(path)
        if handle(node).module == path or path in others:
            continue
        if holder is not None and modules[holder] is module:
            holder.name, node.name = node.name, path
        elif holder is None:
            node.name = path


def one_entry_a_module(
    plan: Plan, affines: Iterable[AffineNode], modules: Mapping[AffineNode, nn.Module], later: Collection[Node]
) -> Plan:
    """A plan in which the calls of a batch norm module are one entry, under the name of the first.

    All of them are folded, or none is.

    Args:
        plan: The plan.
        affines: The affines that it is about.
        modules: The module that each batch norm is, where it is one.
        later: The nodes of examples other than the first, where most are met once more.
    """
    keys: dict[str, object] = {}
    for node in affines:
        place = (handle(node).module, handle(node).node.name) if isinstance(node.handle, Handle) else node.name
        keys[node.name] = modules.get(node, place)
    again = {node.name for node in later}
    return replace(
        plan,
        folds=_joined(plan.folds, keys, lambda first, other: _join_folds(first, other, again)),
        left=_joined(plan.left, keys, _join_left),
    )


def left_to_a_graph(plan: Plan, merged: Plan) -> Plan:
    """Says of the batch norms that stay in a module which of them a graph could merge with other branches.

    Args:
        plan: The plan for the module.
        merged: The plan for its graph, with branches merged.
    """
    targets = {name: merge.target for merge in merged.merges for name in merge.nodes}
    targets.update({name: fold.targets[0] for fold in merged.folds for name in fold.nodes if fold.targets})
    left = []
    for entry in plan.left:
        target = targets.get(entry.nodes[-1]) if entry.kind is Kind.BATCH_NORM else None
        reason = f"it can go into '{target}' where branches are merged, and {ONLY_A_GRAPH}"
        left.append(entry if target is None else replace(entry, code=StopCode.NEEDS_GRAPH, reason=reason))
    return replace(plan, left=tuple(left))


def _module(node: AffineNode, traces: Traces, slots: Slots, reads: Readers) -> nn.Module | None:
    module = traces.module(handle(node).module)
    if module is not None and is_batch_norm_module(module):
        return module
    groups = [group for group in map(slots.find, handle(node).parameters) if group is not None]
    groups += [group for group, readers in reads.items() if handle(node).node in readers]
    owners = {slot.module for group in groups for slot in group.slots if is_batch_norm_module(slot.module)}
    return owners.pop() if len(owners) == 1 else None


def _joined(
    entries: Iterable[EntryT], keys: Mapping[str, object], join: Callable[[EntryT, EntryT], EntryT]
) -> tuple[EntryT, ...]:
    found: dict[object, EntryT] = {}
    for entry in entries:
        key = keys.get(entry.nodes[0], entry.nodes)
        found[key] = join(found[key], entry) if key in found else entry
    return tuple(found.values())


def _join_folds(first: Fold, other: Fold, again: Collection[str]) -> Fold:
    if other.nodes[0] in again:
        return first
    path, targets = dict.fromkeys(first.path + other.path), dict.fromkeys(first.targets + other.targets)
    return replace(first, path=tuple(path), targets=tuple(targets))


def _join_left(first: Left, other: Left) -> Left:
    """The entry of the first call; if that stays only because another does, for the reason of the other."""
    if f"'{other.nodes[-1]}'" not in first.reason:
        return first
    return replace(first, code=other.code, reason=f"of its call '{other.nodes[-1]}': {other.reason}")
