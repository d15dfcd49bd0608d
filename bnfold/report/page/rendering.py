"""A report through a template: HTML, in which everything is escaped by default, and Markdown, likewise."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bnfold.report.page import wording
from bnfold.report.page.chart import chart_of
from bnfold.report.page.colours import PALETTES
from bnfold.report.report import Report
from bnfold.text.printable import printable
from bnfold.text.tables import size
from bnfold.version import __version__

if TYPE_CHECKING:
    import jinja2

SHOWN_BARS = 30
"""Bars that are always seen; the others unfold."""

_ACTIVE = re.compile(r"[^\w \-./,;()=+'×→–…]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.", re.ASCII)


def html(report: Report) -> str:
    """The report as one HTML page."""
    return render("page", ".html", _facts(report))


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    return render("page", ".md", _facts(report))


def render(template: str, suffix: str, facts: Mapping[str, object]) -> str:
    """A template in one of its two forms, ".html" and ".md"."""
    found = _environment(autoescape=suffix == ".html").get_template(f"{template}{suffix}.j2")
    return found.render(palettes=PALETTES, version=__version__, **facts)


def inert(text: object) -> str:
    """Text that Markdown shows as it is: no emphasis, no link, no mention, no end of a table cell."""
    if hasattr(text, "__html__"):  # put together by the template, of parts that are inert
        return str(text)
    return _ACTIVE.sub(_entity, printable(str(text)))


def _entity(found: "re.Match[str]") -> str:
    character = found.group()
    after = "&#8203;" if character in "@#" else ""  # these call people and issues even where they are escaped
    return f"&#{ord(character)};{after}"


def _environment(*, autoescape: bool) -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "."),
        autoescape=autoescape,  # noqa: S701 - what goes into Markdown is made inert by `finalize`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown if autoescape else inert,
    )
    environment.filters.update(
        counted=wording.counted,
        figure=wording.figure,
        kernels=wording.kernels,
        side=wording.side,
        size=size,
    )
    return environment


def _shown(value: object) -> object:
    return printable(value) if type(value) is str else value


def _facts(report: Report) -> dict[str, object]:
    limit = report.config.site_limit if report.config is not None else 1.0
    return {
        "report": report,
        "document": report.to_dict(),
        "headline": wording.headline(report),
        "changes": wording.changes(report),
        "reasons": wording.reasons(report),
        "chart": chart_of(report.sites, limit),
        "shown_bars": SHOWN_BARS,
    }
