"""The road for a module: capture, lift, plan, apply."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.graph import Graph
from bnfold.planning.plan import Plan
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import capture
from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.example_inputs import DynamicShapes, ExampleInputs, check_inputs, split_inputs
from bnfold.torch.capture.hooks import all_are_watched
from bnfold.torch.capture.recorded_calls import watched, worth_recording
from bnfold.torch.capture.wrappers import refuse_unsupported, unwrap
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.memory.memory_order import keep_memory_order
from bnfold.torch.module.apply import Edits, apply_module, edits_of
from bnfold.torch.module.constraints import Constraints
from bnfold.torch.module.module_calls import Traces
from bnfold.torch.module.plan_entries import batch_norm_modules, left_to_a_graph, name_like_modules, one_entry_a_module
from bnfold.torch.module.rehearsal.rehearsal import Rehearsal
from bnfold.torch.module.tensor_slots import Slots, readers
from bnfold.torch.module.unreached import add_unreached, explain_borders
from bnfold.torch.module.weight_homes import takes_trial_bias, trial_bias


@dataclass(frozen=True, slots=True, eq=False)
class FoldedModule:
    """A fold of a module.

    Attributes:
        module: The folded module, of the class of the one that was given, or of what a wrapper had inside.
        plan: What was done.
        changed: Whether anything was.
        ops_before: How many operators of each kind the example runs.
        ops_after: How many it runs in the folded module.
    """

    module: nn.Module
    plan: Plan
    changed: bool
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]


def inspect_module(
    module: nn.Module, example_inputs: ExampleInputs, dynamic_shapes: DynamicShapes | None = None
) -> Plan:
    """Says what a fold would do to a module.

    Args:
        module: The module; it is not changed.
        example_inputs: What to call it with.
        dynamic_shapes: As for torch.export.export.

    Raises:
        UsageError: The inputs do not fit the module.
        UnsupportedModelError: It is of a kind that cannot be folded.
    """
    with torch.inference_mode(False):
        return _planned(unwrap(module), example_inputs, dynamic_shapes, (), ()).plan


def fold_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    dynamic_shapes: DynamicShapes | None = None,
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    inplace: bool = False,
) -> FoldedModule:
    """Folds a copy of a module, or the module itself.

    Args:
        module: The module; what is inside of DataParallel, DistributedDataParallel and torch.compile is folded.
        example_inputs: What to call it with.
        dynamic_shapes: As for torch.export.export.
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        inplace: Whether to change the module itself.

    Raises:
        UsageError: The inputs do not fit the module, or a pattern matches no BN.
        UnsupportedModelError: It is of a kind that cannot be folded.
    """
    inner = unwrap(module)
    with torch.inference_mode(False):
        planned = _planned(inner, example_inputs, dynamic_shapes, skip, only)
        folded = apply_module(inner, planned.edits, inplace=inplace)
    return FoldedModule(folded, planned.plan, bool(planned.plan.steps), planned.ops_before, planned.ops_after)


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """What is to be done to a module.

    Attributes:
        plan: The plan, with one entry for each BN module.
        edits: What it means for the module.
        ops_before: How many operators of each kind there are.
        ops_after: How many there will be.
    """

    plan: Plan
    edits: Edits
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]


def _planned(
    module: nn.Module,
    example: ExampleInputs,
    dynamic_shapes: DynamicShapes | None,
    skip: tuple[str, ...],
    only: tuple[str, ...],
) -> _Planned:
    refuse_unsupported(module)
    arguments = split_inputs(example)
    check_inputs(module, *arguments)
    traced = shadow(module)
    seen = watched(traced)
    for layer in [layer for layer in traced.modules() if takes_trial_bias(layer)]:
        layer.register_parameter("bias", trial_bias(layer))
    captured = capture(traced, arguments, dynamic_shapes, must_record=seen, may_record=worth_recording(traced))
    graph = Graph()
    for piece in captured.pieces:
        lift(piece.program, graph, piece.path)
    keep_memory_order(graph)
    ops = Counter(node.op_type for node in graph.nodes)
    explain_borders(graph, captured)
    if all_are_watched():
        for node in graph.affines:
            node.stop = node.stop or Stop(StopCode.HOOKS, "hooks for all modules are registered, which see everything")
    slots, traces = Slots(traced), Traces(traced, graph, captured.pieces)
    paths = {child: path for path, child in traced.named_modules()}
    reads = readers(slots, captured.pieces, module)
    modules = batch_norm_modules(graph, traces, slots, reads)
    name_like_modules(graph, modules, paths)
    constraints = Constraints(graph, traces, captured, slots, reads, seen)
    add_unreached(graph, {*modules.values()}, traced, captured)
    rehearsal = Rehearsal(module, arguments, captured)
    while True:
        plan = constraints.plan(skip, only)
        edits = edits_of(plan, constraints, module, paths)
        objections = rehearsal.objections(edits)
        if not objections:
            break
        constraints.keep(objections, paths)
    if plan.left:
        plan = left_to_a_graph(plan, constraints.with_merges(skip, only))
    removed = Counter(step.source.op_type for step in plan.steps)
    return _Planned(one_entry_a_module(plan, modules), edits, dict(ops), dict(ops - removed))
