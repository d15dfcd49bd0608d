"""`bnfold fold`: fold, write beside the destination, verify what was written, and only then put it in place."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bnfold.errors import OutputError, UsageError
from bnfold.files.job import Done, Job, Terms, carry_out
from bnfold.files.records import FileOptions
from bnfold.text.tables import Block, Table, size

from .many import Batch, fold_batch, require_one
from .shared import options
from .shared.compare import Verification
from .shared.costs import timing_of_fold, with_costs
from .shared.effects import INPUTS, NO_TF32, NOTHING_RUNS, Unused, note_unused
from .shared.jobs import FoldOptions, fold_model
from .shared.models import CodeOptions, ModelKind, kind_of
from .shared.modules import stdout_kept
from .shared.pages import require_page, write_page
from .shared.progress import shown
from .shared.terminal import say_blocks, say_json, tell

if TYPE_CHECKING:
    from bnfold.latency import Timing
    from bnfold.report import Report

FAILED_EXIT_CODE = 1
LEFTOVERS = "conv|mul-add|keep"


def fold(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="An .onnx or .pt2 file, or package.module:factory: a function or class that gives a torch.nn.Module,"
            " or a module itself. Its code is imported and run, with the current folder first on the path, and eval()"
            " is called on the module. With --trust-pickle also a file of torch.save with a whole module in it."
            " With --out-dir several files, and folders with -r.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Where the result goes. Of PyTorch: .onnx (exported by torch.onnx), .pt2, or the state dict as"
            " .safetensors or .pt.",
        ),
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
            metavar=LEFTOVERS,
            autocompletion=options.one_of(LEFTOVERS),
            help="What becomes of a BatchNorm that cannot be folded: a 1x1 depthwise Conv, Mul and Add, or itself."
            " In a state dict it always stays.",
        ),
    ] = "conv",
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Leave parallel branches as they are, even if they add up to one layer.")
    ] = False,
    require_all: Annotated[
        bool,
        typer.Option("--require-all", help="Write nothing and leave with exit code 1 if a BatchNorm is left."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fold and report; nothing is verified or written.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Allow OUT to be IN.")] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend what runtimes take and the ONNX standard does not allow: nodes out of order, stale shapes,"
            " domains that are not imported. Without it, it stays.",
        ),
    ] = False,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Write without comparing outputs.", rich_help_panel="Verification"),
    ] = False,
    weights: options.Weights = None,
    kwargs: options.Kwargs = None,
    dynamic: options.Dynamic = None,
    trust_pickle: options.TrustPickle = False,
    device: options.Device = "auto",
    samples: options.Samples = 4,
    seed: options.Seed = 0,
    shapes: options.Input = None,
    inputs: options.Inputs = None,
    value_ranges: options.ValueRange = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    tf32: options.Tf32 = False,
    timeout: options.Timeout = None,
    out_dir: options.OutDir = None,
    jobs: options.Jobs = 1,
    recursive: options.Recursive = False,
    resume: options.Resume = False,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Also measure how long the original and the result take, in turns, for 6 s."),
    ] = False,
    page: options.Page = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document (bnfold.report/1) and nothing else; with --out-dir a line a file."
        ),
    ] = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Fold the BatchNorms of a model, verify the result, and write it.

    The file appears only if its outputs match the original's on the device.
    """
    verification = Verification(device, samples, seed, shapes, inputs, value_ranges, rtol, atol, tf32, timeout)
    code = CodeOptions(weights, kwargs, tuple(dynamic or ()), trust_pickle)
    if out_dir is not None:
        if output is not None:
            raise UsageError("-o and --out-dir are both given", hint="-o is for one file, --out-dir for any number.")
        code.require_unused(models[0])
        asked = FileOptions(
            *(tuple(skip or ()), tuple(only or ()), leftover, not no_merge, repair, require_all, not no_verify),
            verification.as_arguments(),
            resume,
            force,
            dry_run,
        )
        batch = Batch(models, out_dir, jobs, recursive, page)
        raise typer.Exit(0 if fold_batch(batch, asked, as_json=as_json, quiet=quiet) else FAILED_EXIT_CODE)
    if len(models) > 1:
        raise UsageError(f"{len(models)} models are given, and no --out-dir", hint="Say which folder they go to.")
    require_one(context)
    model = models[0]
    if output is None and not dry_run:
        message = "-o OUT is missing"
        raise UsageError(message, hint="Say where the folded model goes, or ask for --dry-run.")
    require_page(page)
    chosen = FoldOptions(output, tuple(skip or ()), tuple(only or ()), leftover, force, not no_merge, repair)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(shown(quiet=quiet))
        if timeout is not None:
            from bnfold.verification.runtime.limits import limited_to

            stack.enter_context(limited_to(timeout))
        terms = Terms(not no_verify, require_all, dry_run, hashed=as_json or page is not None)
        with stdout_kept():
            job = fold_model(model, chosen, code, verification, stack)
            done = carry_out(job, output, terms, started)
        report, written = done.report, done.written
        timing = timing_of_fold(model, cast(Path, output), code, verification) if bench and written else None
    if not quiet:
        verifies = not (dry_run or no_verify)
        unused = {} if written else {"--bench": "nothing was written"}
        note_unused(context, {**unused, **_unused(model, output, report, verifies=verifies, data=inputs is not None)})
    try:
        if not quiet or as_json or page is not None:
            _tell(model, output, job, done, timing, page, as_json=as_json, verbose=verbose, quiet=quiet)
        if quiet and not as_json and not done.good:
            tell(f"error: nothing was written; {report.summary_line()}")
    except OutputError as error:
        error.hint = "Nothing was written." if written is None else f"{output} was written all the same."
        raise
    if not done.good:
        raise typer.Exit(FAILED_EXIT_CODE)


def _unused(model: str, output: Path | None, report: "Report", *, verifies: bool, data: bool) -> Unused:
    """The options that changed nothing in this fold, and why."""
    kind = kind_of(model)
    unused = {}
    if not verifies:
        idle = NOTHING_RUNS if kind.is_module else (*NOTHING_RUNS, *INPUTS)
        unused.update(dict.fromkeys(idle, "nothing is verified"))
    elif report.device is not None and report.device.used != "cuda":
        unused["--tf32"] = NO_TF32
    if data:
        unused["--samples"] = "there are as many as --inputs has"
    if kind.is_module and output is not None and output.suffix.lower() in (".safetensors", ".pt"):
        unused["--leftover"] = "in a state dict a BatchNorm that stays is as it was"
        unused["--no-merge"] = "a module keeps its branches"
    if kind is ModelKind.ONNX:
        unused["--trust-pickle"] = "an ONNX file has nothing to unpickle"
    return unused


def _tell(
    model: str,
    output: Path | None,
    job: Job,
    done: Done,
    timing: "Timing | None",
    page: Path | None,
    *,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    from .shared import show

    report, target = with_costs(done.report, timing), done.report.output
    for note in () if done.written is None else done.written.notes:
        tell(f"note: {note}")
    write_page(report, page)
    if as_json:
        say_json(report.to_json())
    if as_json or quiet:
        return
    blocks: list[Block] = [*report.verdict_lines(), "", _before_and_after(job, report), ""]
    blocks += [] if timing is None else [timing.headline(), ""]
    blocks += show.plan_blocks(model, job.plan, verbose=verbose)
    if verbose:
        blocks += ["", *show.count_blocks(job.ops_before, job.ops_after)]
        blocks += ["", *report.tables()] if report.outputs else []
    elif report.sites_note:
        blocks += ["", f"note: {report.sites_note}"]
    if target is None:
        blocks += ["", "nothing was written"]
    else:
        blocks += ["", f"wrote {' and '.join((str(output), *target.data_files))} in {report.timings_s['total']:.2f} s"]
        if target.data_files:
            blocks.append("the model needs its data file beside it, under that name: copy both")
    say_blocks(blocks, report.verdict)


def _before_and_after(job: Job, report: "Report") -> Table:
    from bnfold.report.wording import cost_rows, latency_rows

    plan = job.plan
    rows = [
        ("", "before", "after"),
        ("BatchNorms", str(plan.batch_norms), str(plan.batch_norms_left)),
        ("nodes", str(sum(job.ops_before.values())), str(sum(job.ops_after.values()))),
        ("parameters", *(f"{count:,}" for count in job.parameters)),
    ]
    if report.costs_before is not None and report.costs_after is not None:
        rows += cost_rows(report.costs_before, report.costs_after)
    elif plan.merges:
        adds = (sum(merge.multiply_adds_before for merge in plan.merges), sum(m.multiply_adds for m in plan.merges))
        rows.append(("multiply-adds of merged layers, per position", *(f"{count:,}" for count in adds)))
    if report.input is not None and report.output is not None:
        rows.append(("size", size(report.input.bytes), size(report.output.bytes)))
    return [*rows, *latency_rows(report.bench)]
