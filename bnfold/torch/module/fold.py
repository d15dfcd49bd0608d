"""The road for a module: capture, lift, plan, apply."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.planning.plan import Plan
from bnfold.torch.capture.example_inputs import DynamicShapes, ExampleInputs, check_inputs, split_examples
from bnfold.torch.capture.export import ONE_AT_A_TIME
from bnfold.torch.capture.kept_state import kept
from bnfold.torch.capture.wrappers import refuse_unsupported, unwrap
from bnfold.torch.fx.tensors import count_parameters
from bnfold.torch.module.apply import apply_module
from bnfold.torch.module.module_planner import Findings, ModulePlanner
from bnfold.torch.module.structure.restructuring import Restructuring, restructuring_of


@dataclass(frozen=True, slots=True, eq=False)
class FoldedModule:
    """A fold of a module.

    Attributes:
        module: The folded module, of the class of the one that was given, or of what a wrapper had inside.
        plan: What was done.
        changed: Whether anything was.
        ops_before: How many operators of each kind the example runs.
        ops_after: How many it runs in the folded module.
        parameters: How many floating-point numbers the original and the folded model store.
        restructuring: What was changed besides numbers.
        findings: What running the original found out; in its programs each layer that may get a bias has one.
    """

    module: nn.Module
    plan: Plan
    changed: bool
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    parameters: tuple[int, int]
    restructuring: Restructuring
    findings: Findings


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
    inner = unwrap(module)
    with ONE_AT_A_TIME, torch.inference_mode(False), kept(inner):
        return _planner(inner, example_inputs, dynamic_shapes).plan().plan


def fold_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    dynamic_shapes: DynamicShapes | None = None,
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    inplace: bool = False,
    known: Findings | None = None,
) -> FoldedModule:
    """Folds a copy of a module, or the module itself.

    Args:
        module: The module; what is inside of DataParallel, DistributedDataParallel and torch.compile is folded.
        example_inputs: What to call it with.
        dynamic_shapes: As for torch.export.export.
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        inplace: Whether to change the module itself.
        known: What is known of the module, which is not run then.

    Raises:
        UsageError: The inputs do not fit the module, or a pattern matches no BN.
        UnsupportedModelError: It is of a kind that cannot be folded.
    """
    inner = unwrap(module)
    with ONE_AT_A_TIME, torch.inference_mode(False):
        with kept(inner):  # its hooks may know it, where its copies are run
            planned = _planner(inner, example_inputs, dynamic_shapes, skip, only, known).plan()
        stored, restructuring = _stored(inner), restructuring_of(inner, planned.edits)
        folded = planned.folded
        if inplace or folded is None:
            folded = apply_module(inner, planned.edits, inplace=inplace)
    return FoldedModule(
        folded,
        planned.plan,
        bool(planned.plan.steps),
        planned.ops_before,
        planned.ops_after,
        (stored, _stored(folded)),
        restructuring,
        planned.findings,
    )


def _stored(module: nn.Module) -> int:
    return count_parameters(module.state_dict().values())


def _planner(
    module: nn.Module,
    example: ExampleInputs,
    dynamic_shapes: DynamicShapes | None,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    known: Findings | None = None,
) -> ModulePlanner:
    refuse_unsupported(module)
    examples = split_examples(example)
    for args, kwargs in examples:
        check_inputs(module, args, kwargs)
    return ModulePlanner(module, examples, dynamic_shapes, skip, only, known)
