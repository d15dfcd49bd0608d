"""`bnfold fold`: fold, write beside the destination, verify what was written, and only then put it in place."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import UsageError

from . import options
from .compare import compare

if TYPE_CHECKING:
    import onnx

    from bnfold.api import FoldResult
    from bnfold.report import Report

FAILED_EXIT_CODE = 1
SITES = 3


def fold(
    model: Annotated[Path, typer.Argument(metavar="IN", help="An .onnx file with BatchNorm.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where the folded .onnx file goes.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names of BatchNorms that stay as they are.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names of the only BatchNorms to fold.")
    ] = None,
    leftover: Annotated[
        str,
        typer.Option(
            metavar="conv|mul-add|keep",
            help="What becomes of a BatchNorm that cannot be folded: a 1x1 depthwise Conv, Mul and Add, or itself.",
        ),
    ] = "conv",
    require_all: Annotated[
        bool,
        typer.Option("--require-all", help="Write nothing and leave with exit code 1 if a BatchNorm is left."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fold and report, but verify and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Allow OUT to be IN.")] = False,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Write without comparing outputs.", rich_help_panel="Verification"),
    ] = False,
    device: options.Device = "auto",
    samples: options.Samples = 4,
    seed: options.Seed = 0,
    shapes: options.Input = None,
    inputs: options.Inputs = None,
    value_ranges: options.ValueRange = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    tf32: options.Tf32 = False,
    as_json: options.Json = False,
) -> None:
    """Fold the BatchNorms of a model, verify the result, and write it.

    The file appears only if its outputs match the original's on the device.
    """
    import bnfold  # noqa: PLC0415 - `bnfold --help` need not wait for it

    if output is None and not dry_run:
        message = "-o OUT is missing"
        raise UsageError(message, hint="Say where the folded model goes, or ask for --dry-run.")
    started = time.perf_counter()
    result = bnfold.fold(model, skip=tuple(skip or ()), only=tuple(only or ()), leftover=leftover)
    timings = {"fold": time.perf_counter() - started}
    unmet = require_all and result.plan.batch_norms_left > 0
    if output is None or dry_run or unmet:
        reason = "a BatchNorm is left, and --require-all was asked for" if unmet else "dry run"
        _tell(model, None, result, _unverified(reason), timings, as_json=as_json)
        raise typer.Exit(FAILED_EXIT_CODE if unmet else 0)
    with result.staged(output, force=force) as staged:
        timings["write"] = time.perf_counter() - started - timings["fold"]
        if not result.changed:
            report = _unverified("nothing was changed, the output is a copy of the input")
        elif no_verify:
            report = _unverified("--no-verify was asked for")
        else:
            report = compare(
                model, staged.path, device, samples, seed, shapes, inputs, value_ranges, rtol, atol, tf32=tf32
            )
        good = report.verdict in ("pass", "skipped")
        if good:
            staged.commit()
    timings["total"] = time.perf_counter() - started
    _tell(model, output if good else None, result, report, timings, as_json=as_json)
    if not good:
        raise typer.Exit(FAILED_EXIT_CODE)


def _unverified(reason: str) -> "Report":
    from bnfold.report import Report, Verdict  # noqa: PLC0415

    return Report(Verdict.SKIPPED, reason)


def _tell(
    model: Path,
    written: Path | None,
    result: "FoldResult[onnx.ModelProto]",
    report: "Report",
    timings_s: Mapping[str, float],
    *,
    as_json: bool,
) -> None:
    from bnfold.report import complete  # noqa: PLC0415

    from . import show  # noqa: PLC0415

    if as_json:
        typer.echo(complete(report, result.plan, model, written, timings_s).to_json())
        return
    plan = result.plan
    lines = [f"{model}: {show.headline(plan)}"]
    lines += show.fold_lines(plan.folds, show.SHOWN_LINES)
    if plan.left:
        lines += ["", "left, with the reason", *show.left_lines(plan.left, show.SHOWN_LINES)]
    if result.changed:
        lines += ["", "nodes before and after", *show.count_lines(result.ops_before, result.ops_after)]
    if report.sites or report.sites_note:
        lines += [
            "",
            "worst folded layers, measured on the original's own activations",
            *show.site_lines(report, SITES),
        ]
    lines += ["", report.summary_line()]
    if written is None:
        lines.append("nothing was written")
    else:
        sizes = f"{show.size(model.stat().st_size)} -> {show.size(written.stat().st_size)}"
        lines.append(f"wrote {written} ({sizes}) in {timings_s['total']:.2f} s")
    show.say(lines)
