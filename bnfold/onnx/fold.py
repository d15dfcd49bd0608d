"""The road for ONNX: lift, plan, apply."""

from collections.abc import Mapping
from dataclasses import dataclass

from bnfold.errors import ModelLoadError
from bnfold.graph import Graph
from bnfold.onnx.edit.apply import apply
from bnfold.onnx.edit.constants import clear, find_obstacles
from bnfold.onnx.edit.leftover import written_as
from bnfold.onnx.edit.repair import repair as mend
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.check import check
from bnfold.onnx.lift.functions import inline_weight_arguments
from bnfold.onnx.lift.lift import lift
from bnfold.onnx.lift.scopes import scopes_of
from bnfold.onnx.lift.shapes.as_run import misreads_ranks
from bnfold.onnx.proto.names import count_ops
from bnfold.onnx.proto.normalise import drop_overridden
from bnfold.onnx.proto.walk import count_parameters
from bnfold.planning import planner
from bnfold.planning.leftover import form_of
from bnfold.planning.plan import Leftover, Plan


@dataclass(frozen=True, slots=True, eq=False)
class FoldedOnnx:
    """A fold of an ONNX model.

    Attributes:
        model: The folded model; the very one that was given if nothing changed.
        plan: What was done.
        changed: Whether anything was.
        ops_before: How many nodes of each operator the original has.
        ops_after: How many the folded model has.
        parameters: How many floating-point numbers the original and the folded model store.
    """

    model: OnnxModel
    plan: Plan
    changed: bool
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    parameters: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """What is folded, and how.

    Attributes:
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        leftover: What becomes of the affines that stay for another reason.
        merge: Whether parallel branches that add up to one map become one.
        repair: Whether what the standard does not allow is mended too; else it stays as it is.
    """

    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    leftover: Leftover = Leftover.CONV
    merge: bool = True
    repair: bool = False


def inspect_onnx(model: OnnxModel) -> Plan:
    """Says what a fold would do to a model.

    Args:
        model: The model; it is not changed.

    Raises:
        ModelLoadError: It is not valid.
    """
    check(model)
    return planner.plan(_lifted(_as_run(model)), merge=True)


def fold_onnx(model: OnnxModel, options: FoldOptions) -> FoldedOnnx:
    """Folds a copy of a model.

    Args:
        model: The model; it is not changed.
        options: What to fold, and how.

    Raises:
        ModelLoadError: The model is not valid.
        UsageError: A pattern matches no BN.
    """
    check(model)
    return fold_checked(model, options)


def fold_checked(model: OnnxModel, options: FoldOptions) -> FoldedOnnx:
    """Folds a copy of a model that is known to be valid; see `fold_onnx`."""
    ops, parameters = count_ops(model.proto), count_parameters(model.proto)
    mended = model
    if options.repair:
        mended = model.copy()
        mended = mended if mend(mended) else model
    working = _as_run(mended)
    leftover, compose = options.leftover, options.leftover is not Leftover.KEEP
    if leftover is Leftover.CONV and misreads_ranks(working.proto):
        leftover = Leftover.MUL_ADD
    graph = _lifted(working)
    plan = planner.plan(graph, skip=options.skip, only=options.only, compose=compose, merge=options.merge)
    obstacles = find_obstacles(scopes_of(graph))
    if not apply(working, plan, leftover):
        return FoldedOnnx(mended, plan, mended is not model, ops, ops, (parameters, parameters))
    clear(working, obstacles)
    plan = plan.with_leftovers_as(lambda node, affine: written_as(form_of(leftover, node, plan), node, affine))
    return FoldedOnnx(working, plan, True, ops, count_ops(working.proto), (parameters, count_parameters(working.proto)))


def _as_run(model: OnnxModel) -> OnnxModel:
    """A copy in which names mean what they mean when a runtime runs the model."""
    inlined = inline_weight_arguments(model)
    working = model.copy() if inlined is model else inlined
    drop_overridden(working.proto)
    return working


def _lifted(model: OnnxModel) -> Graph:
    try:
        return lift(model)
    except ModelLoadError as error:
        message = f"{model.path or 'the model'} is not a valid ONNX model: {error}"
        raise ModelLoadError(message, hint=error.hint) from error
