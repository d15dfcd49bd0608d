"""Commands whose help is plain text, with options in groups and examples last, and that write what they are told to."""

from collections import Counter
from typing import Any

from typer.core import TyperCommand

from bnfold.errors import UsageError

_WIDTH = 100

_WRITTEN = ("--output", "--report", "--out-dir")

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH}


class Command(TyperCommand):
    """A command whose help has a section for each group of options.

    Of an option that is given twice the last counts, as of any program; but not where each names something to write.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, which typer has a copy of
        """Reads the words of the command line."""
        counts = Counter(parameter.opts[-1] for parameter in self.make_parser(ctx).parse_args(list(args))[2])
        for option in _WRITTEN:
            if counts[option] > 1:
                message = f"{option} is given {counts[option]} times, and names one thing to write"
                raise UsageError(message, hint="Give it once.")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, which typer has a copy of
        """Writes a section for the arguments, and one for each group of options."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault(group, []).append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """The last words of a help page; the mark keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
