"""`bnfold inspect`: what a fold would do, without doing it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import options
from .shared.compare import Verification
from .shared.effects import INPUTS, note_unused
from .shared.models import CodeOptions, ModelKind, kind_of
from .shared.modules import build, hints_of_types, import_torch, stdout_kept
from .shared.progress import shown
from .shared.terminal import say_blocks, say_json

if TYPE_CHECKING:
    from bnfold.planning.plan import Plan


class FailOn(StrEnum):
    """When `inspect` leaves with exit code 1."""

    FOLDABLE = "foldable"
    ANY = "any"


def inspect(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="IN", help="An .onnx or .pt2 file, or package.module:factory; see `bnfold fold`.")
    ],
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help="Leave with exit code 1 if a BatchNorm could be folded (foldable), or if there is one (any)."
        ),
    ] = None,
    weights: options.Weights = None,
    kwargs: options.Kwargs = None,
    dynamic: options.Dynamic = None,
    trust_pickle: options.TrustPickle = False,
    seed: options.Seed = 0,
    shapes: options.Input = None,
    inputs: options.Inputs = None,
    value_ranges: options.ValueRange = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List every BatchNorm: where it can be folded, or why not."""
    from bnfold.report import Report, Verdict, plan_entries

    from .shared import show

    code = CodeOptions(weights, kwargs, tuple(dynamic or ()), trust_pickle)
    call = Verification(seed=seed, shapes=shapes, inputs=inputs, value_ranges=value_ranges)
    with shown(quiet=quiet), stdout_kept():
        plan = _plan(model, code, call)
    if not quiet and not kind_of(model).is_module:
        note_unused(context, dict.fromkeys(INPUTS, "a file is only read"))
    if as_json:
        folds, left = plan_entries(plan)
        report = Report(
            Verdict.SKIPPED,
            "only inspected",
            folds=folds,
            left=left,
            merges=plan.merges,
            apart=plan.apart,
            assumptions=plan.assumptions,
        )
        say_json(report.to_json())
    elif not quiet:
        say_blocks(show.plan_blocks(model, plan, verbose=True, done=False))
    failed = {None: 0, FailOn.FOLDABLE: plan.batch_norms_folded, FailOn.ANY: plan.batch_norms}[fail_on]
    if failed:
        raise typer.Exit(1)


def _plan(model: str, options_of_code: CodeOptions, call: Verification) -> "Plan":
    import bnfold

    if kind_of(model).is_module:
        code = build(model, options_of_code, call)
        with hints_of_types(code):
            return bnfold.inspect(code.module, code.call, dynamic_shapes=code.dynamic_shapes)
    options_of_code.require_unused(model)
    if kind_of(model) is ModelKind.PROGRAM:
        import_torch()
    return bnfold.inspect(Path(model))
