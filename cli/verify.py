"""`bnfold verify`: compare two ONNX files, whoever made them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .compare import compare


def verify(
    original: Annotated[Path, typer.Argument(metavar="A", help="The original .onnx file.")],
    folded: Annotated[Path, typer.Argument(metavar="B", help="The .onnx file to compare with it.")],
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
    """Run two models on the same data, with graph optimisations off, and say whether their outputs match.

    Leaves with exit code 1 if they differ or nothing can be concluded.
    """
    report = compare(original, folded, device, samples, seed, shapes, inputs, value_ranges, rtol, atol, tf32=tf32)
    if as_json:
        typer.echo(report.to_json())
    else:
        from . import show  # noqa: PLC0415 - `bnfold --help` need not wait for it

        sites, outputs = show.site_lines(report), show.output_lines(report)
        lines = [*sites, *([""] if sites and outputs else []), *outputs]
        if report.as_deployed:
            lines += ["", "as deployed, with TF32", *show.output_lines(replace(report, outputs=report.as_deployed)), ""]
        elif tf32:
            lines += ["note: nothing was run with TF32, which takes a CUDA device"]
        show.say([*lines, report.summary_line()])
    if report.verdict != "pass":
        raise typer.Exit(1)
