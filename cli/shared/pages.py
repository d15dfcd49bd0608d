"""The page of `--report`: required to be writable before the work begins, written when it is done."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.files.job import describe

from .terminal import tell

if TYPE_CHECKING:
    from bnfold.report import Report


def require_page(page: Path | None) -> None:
    """Refuses a page that cannot be written.

    Raises:
        OutputError: It cannot.
    """
    if page is not None:
        from bnfold.report import page as pages

        pages.require_page(page)


def write_page(report: "Report", page: Path | None) -> None:
    """Writes a page, if one was asked for.

    Raises:
        OutputError: It cannot be written.
    """
    if page is not None:
        from bnfold.report import page as pages

        for note in pages.write_page(report, page):
            tell(f"note: {note}")


def with_files(report: "Report", original: str, folded: str) -> "Report":
    """A report of `verify` with both files, hashed; code has none."""
    first, second = (describe(Path(word), hashed=True) if Path(word).is_file() else None for word in (original, folded))
    return replace(report, input=first, output=second)
