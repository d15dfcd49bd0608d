"""Figures, sizes and routes as a page says them."""

import math
from collections.abc import Sequence

from bnfold.planning.plan import Merge, MergeKind
from bnfold.report.records import PlanEntry, Verdict
from bnfold.report.report import Report
from bnfold.report.wording import cost_rows, latency_rows
from bnfold.text.tables import size

_SIDES = {"output": "on its output", "input": "on its input", "both": "scale back, shift forward"}
_VERDICTS = {
    Verdict.PASS: "The outputs match",
    Verdict.FAIL: "The models differ",
    Verdict.INCONCLUSIVE: "Nothing can be concluded",
    Verdict.SKIPPED: "Nothing was compared",
}


def figure(value: float | None, form: str = ".3g") -> str:
    """A number, in three digits unless said; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{form}}"


def headline(report: Report) -> str:
    """The verdict as a sentence without a full stop."""
    return _VERDICTS[report.verdict]


def side(entry: PlanEntry) -> str:
    """Where the targets of a fold took it."""
    return _SIDES[entry.direction or "output"]


def kernels(merge: Merge) -> str:
    """The kernels of the branches of a merge, and what became of them."""
    joint = ", then " if merge.kind is MergeKind.CHAIN else " + "
    return f"{joint.join(map(_kernel, merge.kernels))} → {_kernel(merge.kernel)}"


def counted(number: int, word: str) -> str:
    """A number and its noun."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('ch') else 's'}"


def _kernel(lengths: Sequence[int]) -> str:
    return "×".join(map(str, lengths)) or "1"


def changes(report: Report) -> list[tuple[str, str, str]]:
    """What there was before and after a fold: a name, and both figures; empty for a mere comparison."""
    old, new = report.operators_before, report.operators_after
    if not old:
        return []
    left = sum(entry.batch_norms for entry in report.left)
    rows = [
        ("BatchNorms, however written", str(report.batch_norms_folded + left), str(left)),
        ("nodes", str(sum(old.values())), str(sum(new.values()))),
    ]
    operators = sorted(name for name in {*old, *new} if old.get(name, 0) != new.get(name, 0))
    rows += [(f"{name} nodes", str(old.get(name, 0)), str(new.get(name, 0))) for name in operators]
    if report.costs_before is not None and report.costs_after is not None:
        rows += cost_rows(report.costs_before, report.costs_after)
    elif report.merges:
        before = sum(merge.multiply_adds_before for merge in report.merges)
        after = sum(merge.multiply_adds for merge in report.merges)
        rows.append(("multiply-adds a position, merged layers", str(before), str(after)))
    if report.input is not None and report.output is not None:
        rows.append(("size", size(report.input.bytes), size(report.output.bytes)))
    return [*rows, *latency_rows(report.bench)]


def reasons(report: Report) -> list[tuple[str, int]]:
    """How often each code is among what was left, the most frequent first."""
    codes = [entry.code or "" for entry in report.left]
    return sorted(((code, codes.count(code)) for code in set(codes)), key=lambda pair: (-pair[1], pair[0]))
