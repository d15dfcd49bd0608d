"""How plans and reports look on a terminal: plain lines, cut where they would bury the rest."""

from collections.abc import Iterable, Mapping, Sequence

import typer

from bnfold.plan import Direction, Fold, Left, Plan
from bnfold.report import Report

SHOWN_LINES = 12


def say(lines: Iterable[str]) -> None:
    """Prints lines to stdout."""
    for line in lines:
        typer.echo(line)


def headline(plan: Plan) -> str:
    """How many BNs there are and what becomes of them."""
    if plan.batch_norms == 0:
        return "no BatchNorm in this model, nothing to fold"
    total = f"{plan.batch_norms} BatchNorm{'' if plan.batch_norms == 1 else 's'}"
    if plan.batch_norms_left == 0:
        return f"{total}: all folded"
    return f"{total}: {plan.batch_norms_folded} folded, {plan.batch_norms_left} left"


def fold_lines(folds: Sequence[Fold], limit: int | None) -> list[str]:
    """One line for each fold: where it went, past what, and on which side."""
    return _cut([f"  {_route(fold)}" for fold in folds], limit, "folded")


def left_lines(left: Sequence[Left], limit: int | None) -> list[str]:
    """One line for each affine that stays, with the reason."""
    lines = [f"  {' + '.join(entry.nodes)}  [{entry.code}]  {entry.reason}" for entry in left]
    return _cut(lines, limit, "left")


def count_lines(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Node counts: a line for each operator whose count changed, and one for the others."""
    changed = sorted(op for op in {*before, *after} if before.get(op, 0) != after.get(op, 0))
    width = max((len(op) for op in (*changed, "all nodes")), default=0)
    rows = [("all nodes", sum(before.values()), sum(after.values()))]
    rows += [(op, before.get(op, 0), after.get(op, 0)) for op in changed]
    lines = [f"  {op:<{width}}  {old:>6} -> {new}" for op, old, new in rows]
    same = ", ".join(f"{op} {count}" for op, count in before.items() if op not in changed)
    return [*lines, f"  unchanged: {same}"] if same else lines


def size(nbytes: int) -> str:
    """A size in bytes for people, in decimal units."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _route(fold: Fold) -> str:
    side = "output" if fold.direction is Direction.BACKWARD else "input"
    return " -> ".join([*fold.nodes, *fold.path, f"{', '.join(fold.targets)} ({side})"])


def _cut(lines: list[str], limit: int | None, what: str) -> list[str]:
    if limit is None or len(lines) <= limit + 1:
        return lines
    return [*lines[:limit], f"  … and {len(lines) - limit} more {what}; `bnfold inspect` lists them all"]


def output_lines(report: Report) -> list[str]:
    """A table of the outputs of a verification."""
    header = ("output", "verdict", "max abs", "rel L2", "SQNR", "cosine", "top-1", "noise ratio")
    rows = [header]
    for output in report.outputs:
        figures = (
            _figure(output.max_abs, ".2e"),
            _figure(output.rel_l2, ".2e"),
            _figure(output.sqnr_db, ".1f", " dB"),
            _figure(output.cosine, ".6f"),
            _figure(output.top1_agreement, ".1%"),
            _figure(output.noise_ratio, ".2f"),
        )
        rows.append((output.name, output.verdict.value, *figures))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines if report.outputs else []


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
