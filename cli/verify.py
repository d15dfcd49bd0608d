"""`bnfold verify`: compare two models, whoever made them."""

from typing import Annotated

import typer

from .shared import options
from .shared.compare import Verification, compare
from .shared.effects import NO_TF32, note_unused
from .shared.models import CodeOptions
from .shared.modules import stdout_kept
from .shared.pages import require_page, with_files, write_page
from .shared.pairs import names_of, naming_lines, pair_of
from .shared.progress import shown
from .shared.terminal import say_blocks, say_json, tell


def verify(
    context: typer.Context,
    original: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The original: an .onnx or .pt2 file, or package.module:factory; see `bnfold fold`."
        ),
    ],
    folded: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="What to compare with it: a file or code likewise (code that loads its own weights; --weights is for"
            " A), or, where A is code, the state dict that `bnfold fold` wrote for it.",
        ),
    ],
    weights: options.Weights = None,
    kwargs: options.Kwargs = None,
    trust_pickle: options.TrustPickle = False,
    mapping: options.Map = None,
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
    page: options.Page = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say whether the outputs of two models match.

    Both run on the same data, with graph optimisations off. Leaves with exit code 1 if they differ or nothing
    can be concluded.
    """
    require_page(page)
    with shown(quiet=quiet), stdout_kept():
        verification = Verification(device, samples, seed, shapes, inputs, value_ranges, rtol, atol, tf32, timeout)
        pair = pair_of(original, folded, CodeOptions(weights, kwargs, (), trust_pickle), verification)
        names = names_of(pair, mapping or ())
        report = compare(pair.original, pair.folded, verification, pair.call, names)
    if not quiet:
        unused = {} if inputs is None else {"--samples": "there are as many as --inputs has"}
        if report.device is not None and report.device.used != "cuda":
            unused["--tf32"] = NO_TF32
        note_unused(context, unused)
    if page is not None:
        write_page(with_files(report, original, folded), page)
    if as_json:
        for line in naming_lines(names, mapping or ()):
            tell(f"note: {line}")
        say_json(report.to_json())
    elif not quiet:
        lines = [*report.verdict_lines(), *naming_lines(names, mapping or ())]
        tables = report.tables()
        say_blocks([*lines, *([""] if tables else []), *tables], report.verdict)
    elif report.verdict != "pass":
        tell(f"error: {report.summary_line()}")
    if report.verdict != "pass":
        raise typer.Exit(1)
