"""Lines and tables, as text for a terminal and as HTML for a notebook."""

import html
from collections.abc import Iterable, Sequence

from bnfold.text.printable import printable

Table = Sequence[tuple[str, ...]]
"""Rows of equal length, the first of them a header."""

Block = str | Table


def table(rows: Table) -> list[str]:
    """The lines of a table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_text(blocks: Iterable[Block]) -> str:
    """Lines and tables as plain text, with everything escaped that a terminal would take for a command."""
    lines: list[str] = []
    for block in blocks:
        lines += [printable(block)] if isinstance(block, str) else table([tuple(map(printable, row)) for row in block])
    return "\n".join(lines)


def as_html(blocks: Iterable[Block]) -> str:
    """Lines and tables as HTML that takes its looks from the page around it."""
    return "".join(
        f"<div>{html.escape(block) or '&nbsp;'}</div>" if isinstance(block, str) else _html_table(block)
        for block in blocks
    )


def size(nbytes: int) -> str:
    """A size in bytes for people, in decimal units."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """A duration for people: three significant digits, in the unit that fits."""
    value, unit = seconds * 1e6, "µs"
    for unit in ("µs", "ms", "s"):
        if value < 1000 or unit == "s":
            break
        value /= 1000
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def plural(number: int, noun: str) -> str:
    """Such as "1 node" and "2 nodes"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _html_table(rows: Table) -> str:
    header, *body = (tuple(map(html.escape, row)) for row in rows)
    lines = ["".join(f"<th>{cell}</th>" for cell in header), *("".join(f"<td>{cell}</td>" for cell in r) for r in body)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
