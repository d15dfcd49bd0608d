"""Puts a page in its place: rendered in full beside its destination, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.report.report import Report
from bnfold.system.source_file import reason_of
from bnfold.system.staging import private_folder, replace_file, require_writable

SUFFIXES = (".html", ".md")


def require_page(path: Path) -> None:
    """Require that a page can go to a path, before the work that it is to tell of.

    Raises:
        OutputError: It cannot, or the extension says neither HTML nor Markdown.
    """
    require_writable(_resolved(path), SUFFIXES, "a report")


def write_page(report: Report, path: str | os.PathLike[str]) -> list[str]:
    """Write a report as one file that needs nothing else: no network, no script.

    Args:
        report: What was found. Names in it come from strangers' files; they are escaped.
        path: Where to; `.html` or `.md` (for a pull request) decides which. What is there is replaced at the very end.

    Returns:
        What a caller should know of the file, as sentences without a full stop; usually nothing.

    Raises:
        OutputError: The file cannot be written; what was there is as it was.
    """

    def rendered(suffix: str) -> str:
        from bnfold.report.page.rendering import html, markdown  # a template library is loaded where one is needed

        return html(report) if suffix == ".html" else markdown(report)

    return put_page(Path(path), rendered)


def put_page(path: Path, rendered: Callable[[str], str]) -> list[str]:
    """Write what is rendered for an extension, in place of what is there; see `write_page`."""
    require_page(path)
    destination = _resolved(path)
    text = rendered(destination.suffix.lower())
    with private_folder(destination.parent) as folder:
        staged = folder / "page"
        try:
            staged.write_bytes(text.encode("utf-8"))
            return replace_file(staged, destination)
        except OSError as error:
            raise OutputError(f"The report {destination} cannot be written: {reason_of(error)}.") from error


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))
