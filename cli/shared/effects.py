"""Options that were typed and change nothing say so: on stderr, for they do no harm."""

from collections.abc import Mapping

import typer

from .terminal import tell

Unused = Mapping[str, str]
"""Why each of some options, such as "--tf32", has no effect."""


def typed(context: typer.Context) -> set[str]:
    """The options of a command that stand on its command line."""
    return {
        option
        for parameter in context.command.params
        for option in parameter.opts
        if parameter.name and str(getattr(context.get_parameter_source(parameter.name), "name", "")) == "COMMANDLINE"
    }


def note_unused(context: typer.Context, unused: Unused) -> None:
    """Says which of the typed options have no effect, and why."""
    for option in sorted(typed(context) & unused.keys()):
        tell(f"note: {option} has no effect: {unused[option]}")


NOTHING_RUNS = ("--device", "--samples", "--rtol", "--atol", "--tf32")
INPUTS = ("--seed", "--input", "--inputs", "--val-range")
NO_TF32 = "nothing was run with TF32, which takes a CUDA device"
