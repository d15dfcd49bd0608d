"""`bnfold inspect`: what a fold would do, without doing it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import options


class FailOn(StrEnum):
    """When `inspect` leaves with exit code 1."""

    FOLDABLE = "foldable"
    ANY = "any"


def inspect(
    model: Annotated[Path, typer.Argument(metavar="IN", help="An .onnx file.")],
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help="Leave with exit code 1 if a BatchNorm could be folded (foldable), or if there is one (any)."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List every BatchNorm of a model: where it can be folded, or why it cannot."""
    import bnfold  # noqa: PLC0415 - `bnfold --help` need not wait for it
    from bnfold.report import Report, Verdict, plan_entries  # noqa: PLC0415

    from . import show  # noqa: PLC0415

    plan = bnfold.inspect(model)
    if as_json:
        folds, left = plan_entries(plan)
        report = Report(Verdict.SKIPPED, "only inspected", folds=folds, left=left)
        typer.echo(report.to_json())
    else:
        lines = [f"{model}: {show.headline(plan).replace('folded', 'can be folded')}"]
        if plan.folds:
            lines += ["", "can be folded", *show.fold_lines(plan.folds, None)]
        if plan.left:
            lines += ["", "stay", *show.left_lines(plan.left, None)]
        show.say(lines)
    failed = {None: 0, FailOn.FOLDABLE: plan.batch_norms_folded, FailOn.ANY: plan.batch_norms}[fail_on]
    if failed:
        raise typer.Exit(1)
