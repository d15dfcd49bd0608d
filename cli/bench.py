"""`bnfold bench`: which of two models is faster, and by how much."""

import sys
from typing import Annotated

import typer

from bnfold.errors import UsageError

from .shared import options
from .shared.compare import Verification
from .shared.costs import timing_of
from .shared.effects import note_unused
from .shared.models import CodeOptions
from .shared.modules import stdout_kept
from .shared.pairs import names_of, naming_lines, pair_of
from .shared.progress import shown
from .shared.terminal import say, say_json, tell


def bench(
    context: typer.Context,
    original: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The original: an .onnx or .pt2 file, or package.module:factory; see `bnfold fold`."
        ),
    ],
    folded: Annotated[
        str,
        typer.Argument(metavar="B", help="What to compare with it, for the same runtime; as for `bnfold verify`."),
    ],
    batch: Annotated[
        str,
        typer.Option(
            metavar="SIZES",
            help="Batch sizes such as 1,8,32, a line of the table each, where the first dimension of the inputs is"
            " open, as that of code always is. They take the place of the first size in --input.",
        ),
    ] = "",
    device: Annotated[
        str,
        typer.Option(
            metavar=options.DEVICES,
            autocompletion=options.one_of(options.DEVICES),
            help="Where to measure. auto takes the GPU if it works; the others never fall back.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads within an operator; left out, the runtime chooses.")
    ] = None,
    mapping: options.Map = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S", help="Time for each model and batch size, with warm-up; a slow model may take longer."
        ),
    ] = 3.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of made-up data.")] = 0,
    shapes: options.Input = None,
    inputs: options.Inputs = None,
    value_ranges: options.ValueRange = None,
    weights: options.Weights = None,
    kwargs: options.Kwargs = None,
    trust_pickle: options.TrustPickle = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document (bnfold.bench/1) and nothing else.")
    ] = False,
) -> None:
    """Measure which of two models is faster, and by how much.

    They run in turns on the same inputs, warm and optimised as they will be deployed. About speed alone:
    whether the outputs match is for `bnfold verify` to say.
    """
    given = Verification(device, 1, seed, shapes, inputs, value_ranges)
    with shown(quiet=False), stdout_kept():
        pair = pair_of(original, folded, CodeOptions(weights, kwargs, (), trust_pickle), given)
        names = names_of(pair, mapping or ())
        told = None if sys.stderr.isatty() else tell
        timing = timing_of(
            pair, given, names, batch=_batch_sizes(batch), threads=threads, seconds=seconds, progress=told
        )
    if timing.setting.used != "cpu":
        note_unused(context, {"--threads": "it is about the CPU, and both ran on the GPU"})
    if as_json:
        say_json(timing.to_json())
    else:
        say([*timing.summary().split("\n"), *naming_lines(names, mapping or ())])


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except ValueError:
        message = f"--batch {text!r} is not a list of sizes"
        raise UsageError(message, hint="Write for example --batch 1,8,32.") from None
