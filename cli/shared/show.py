"""How plans and reports look on a terminal: plain lines, cut where they would bury the rest."""

from collections.abc import Mapping, Sequence

from bnfold.graph import Kind
from bnfold.planning.plan import Apart, Direction, Fold, Left, Merge, MergeKind, Plan
from bnfold.report import Report, Site

SHOWN_LINES = 12
SHOWN_NAMES = 6
SHOWN_SITES = 5


def headline(plan: Plan) -> str:
    """How many BNs there are and what becomes of them."""
    spelled_out = sum(fold.kind is Kind.AFFINE for fold in plan.folds)
    more = f", and {spelled_out} spelled-out affine{'' if spelled_out == 1 else 's'} folded" if spelled_out else ""
    if plan.batch_norms == 0:
        return f"no BatchNorm in this model{more or ', nothing to fold'}"
    total = f"{plan.batch_norms} BatchNorm{'' if plan.batch_norms == 1 else 's'}"
    if plan.batch_norms_left == 0:
        return f"{total}: all folded{more}"
    return f"{total}: {plan.batch_norms_folded} folded, {plan.batch_norms_left} left{more}"


def fold_lines(folds: Sequence[Fold], limit: int | None) -> list[str]:
    """One line for each fold: where it went, past what, and on which side."""
    return _cut([f"  {_route(fold)}" for fold in folds], limit, "folded")


def merge_headline(plan: Plan) -> str:
    """How many branches became how many layers, and what that saves."""
    before = sum(merge.multiply_adds_before for merge in plan.merges)
    after = sum(merge.multiply_adds for merge in plan.merges)
    gone = sum(len(merge.nodes) for merge in plan.merges)
    targets = len({merge.target for merge in plan.merges})
    layers = f"{gone} layer{'' if gone == 1 else 's'} merged into {targets}"
    return f"{layers}, {before - after} of {before} multiply-adds per output position less"


def merge_lines(merges: Sequence[Merge], limit: int | None) -> list[str]:
    """One line for each merge: what became what, and the multiply-adds and parameters before and after."""
    return _cut([f"  {_merge(merge)}" for merge in merges], limit, "merged")


def apart_lines(apart: Sequence[Apart], limit: int | None) -> list[str]:
    """One line for each sum of branches that stays, with the reason."""
    return _cut([f"  {', '.join(entry.nodes)}  [{entry.code}]  {entry.reason}" for entry in apart], limit, "kept apart")


def left_lines(left: Sequence[Left], limit: int | None) -> list[str]:
    """One line for each affine that stays, with the reason."""
    lines = [f"  {' + '.join(entry.nodes)}  [{entry.code}]  {entry.reason}" for entry in left]
    return _cut(lines, limit, "left")


def assumption_lines(assumptions: Sequence[str], limit: int | None) -> list[str]:
    """One line for each thing that a fold of a module takes for granted."""
    return _cut([f"  {sentence}" for sentence in assumptions], limit, "assumed")


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
    sides = {Direction.BACKWARD: "output", Direction.FORWARD: "input", Direction.BOTH: "scale back, shift forward"}
    side = sides[fold.direction]
    targets = _few(fold.targets, SHOWN_NAMES)
    path = [*fold.path] if len(fold.path) <= SHOWN_NAMES else [_few(fold.path, SHOWN_NAMES)]
    return " -> ".join([*fold.nodes, *path, f"{targets} ({side})"])


def _merge(merge: Merge) -> str:
    nodes = _few(merge.nodes, SHOWN_NAMES) or "the identity"
    joint = " then " if merge.kind is MergeKind.CHAIN else " + "
    kernels = joint.join("x".join(map(str, kernel)) or "1" for kernel in merge.kernels)
    return (
        f"{nodes} -> {merge.target}  ({kernels} -> {'x'.join(map(str, merge.kernel)) or '1'};"
        f" {merge.multiply_adds_before} -> {merge.multiply_adds} multiply-adds,"
        f" {merge.parameters_before} -> {merge.parameters} parameters)"
    )


def _few(names: Sequence[str], limit: int) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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
    return table(rows) if report.outputs else []


def site_lines(report: Report, limit: int | None = SHOWN_SITES) -> list[str]:
    """A table of the sites of a verification, worst first, and a line on what could not be measured."""
    measured = [site for site in report.sites if site.ratio is not None]
    header = ("site", "verdict", "x rounding", "channel", "max abs", "rel L2", "nodes")
    rows = [header, *map(_site_row, measured[:limit])]
    lines = table(rows) if measured else []
    if limit is not None and len(measured) > limit:
        lines.append(f"… and {len(measured) - limit} more sites, none worse")
    if report.sites_note:
        lines.append(f"note: {report.sites_note}")
    return lines


def _site_row(site: Site) -> tuple[str, ...]:
    return (
        site.name,
        site.verdict.value,
        _figure(site.ratio, ".3g"),
        "-" if site.channel is None else str(site.channel),
        _figure(site.max_abs, ".2e"),
        _figure(site.rel_l2, ".2e"),
        " + ".join(site.nodes[:3]) + (" …" if len(site.nodes) > 3 else ""),
    )


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of equal length, the first of them a header, with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
