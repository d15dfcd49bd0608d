"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

DEVICES = "auto|cpu|cuda|tensorrt"
INPUTS_PANEL = "Inputs"
VERIFICATION_PANEL = "Verification"


def one_of(values: str) -> Callable[[str], list[str]]:
    """What a shell completes a value to, of "a|b|c"."""
    return lambda incomplete: [value for value in values.split("|") if value.startswith(incomplete)]


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List every fold, merge and measured layer.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (bnfold.report/1) and nothing else.")]
Page = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="PAGE.html|PAGE.md",
        help="Also write the whole report as a page that stands for itself, or as Markdown for a pull request.",
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:SHAPE[:DTYPE]",
        help="Shape of an input with open dimensions, such as image:1,3,224,224, or of any input of a"
        " package.module:factory (float32 unless DTYPE says otherwise). Repeat for several inputs;"
        " NAME: may be left out for the next input.",
        rich_help_panel=INPUTS_PANEL,
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE|DIR",
        help="Real data: an .npz file with arrays by input name, an .npy file for a single input, or a folder of such"
        " files, one a sample.",
        rich_help_panel=INPUTS_PANEL,
    ),
]
ValueRange = Annotated[
    list[str] | None,
    typer.Option(
        "--val-range",
        metavar="NAME:LO,HI",
        help="Lowest and highest value of a made-up input, such as ids:0,30521.",
        rich_help_panel=INPUTS_PANEL,
    ),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="A=B",
        help="An input or output of A, and what B calls it, for two .onnx files. Without this, other names go by"
        " position, if number, element types and shapes agree.",
        rich_help_panel=INPUTS_PANEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar=DEVICES,
        autocompletion=one_of(DEVICES),
        help="Where to verify. auto takes the GPU if it works; the others never fall back.",
        rich_help_panel=VERIFICATION_PANEL,
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples", metavar="N", min=1, help="Made-up samples to compare.", rich_help_panel=VERIFICATION_PANEL
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Seed of made-up data.", rich_help_panel=INPUTS_PANEL)
]
Rtol = Annotated[
    float | None,
    typer.Option(
        "--rtol",
        metavar="X",
        min=0.0,
        help="Relative tolerance; with it, or --atol, tolerances decide instead of the model's own rounding noise.",
        rich_help_panel=VERIFICATION_PANEL,
    ),
]
Atol = Annotated[
    float | None,
    typer.Option(
        "--atol", metavar="X", min=0.0, help="Absolute tolerance, see --rtol.", rich_help_panel=VERIFICATION_PANEL
    ),
]
Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Run the result once more on CUDA with TF32 and optimisations on, and report that beside the verdict.",
        rich_help_panel=VERIFICATION_PANEL,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="S",
        help="Longest time for one run of a model, in seconds; 600 if left out.",
        rich_help_panel=VERIFICATION_PANEL,
    ),
]

MANY_PANEL = "Many files"

OutDir = Annotated[
    str | None,
    typer.Option(
        "--out-dir",
        metavar="DIR",
        help="Fold any number of files into this folder, under their own names, each with its report beside it;"
        " the others go on where one fails. Paths and DIR may be URLs such as s3://bucket/models, through fsspec.",
        rich_help_panel=MANY_PANEL,
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        help="How many files at once; they share the threads of the machine.",
        rich_help_panel=MANY_PANEL,
    ),
]
Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive",
        "-r",
        help="Go through folders: each .onnx and .pt2 file keeps its place below DIR.",
        rich_help_panel=MANY_PANEL,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Leave what is in DIR already, verified and made of the same file with the same options.",
        rich_help_panel=MANY_PANEL,
    ),
]

CODE_PANEL = "Modules (package.module:factory)"

Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights for the module: .safetensors, or what torch.save wrote of a state dict.",
        rich_help_panel=CODE_PANEL,
    ),
]
Kwargs = Annotated[
    str | None,
    typer.Option(
        "--kwargs",
        metavar="JSON",
        help="Keyword arguments for the factory, such as '{\"width\": 64}'.",
        rich_help_panel=CODE_PANEL,
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="NAME:AXIS=SIZE",
        help="An axis of an input that varies, and a name for it, such as image:0=batch. Repeat for several;"
        " axes of one name are equal. NAME: may be left out for the next input.",
        rich_help_panel=CODE_PANEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Unpickle --weights, or IN if it is a module that was saved whole, even if that runs code from the file."
        " Only for files that you trust.",
        rich_help_panel=CODE_PANEL,
    ),
]
