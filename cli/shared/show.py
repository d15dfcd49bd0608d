"""How plans look on a terminal: a headline, and what is left; everything if somebody wants to know."""

from collections.abc import Mapping, Sequence

from bnfold.planning.plan import Plan
from bnfold.text.tables import Block

SHOWN_LINES = 12
MORE = "--verbose lists them all"


def plan_blocks(model: str, plan: Plan, *, verbose: bool, done: bool = True) -> list[Block]:
    """What a plan folds, merges, leaves and takes for granted.

    Args:
        model: What the model is called.
        plan: The plan.
        verbose: Whether to list everything, not the first of what is left alone.
        done: Whether it was carried out.
    """
    limit = None if verbose else SHOWN_LINES
    headline, merges = plan.headline(), plan.merge_headline()
    if not done:
        headline, merges = headline.replace("folded", "can be folded"), merges.replace("merged", "can be merged")
    blocks: list[Block] = [f"{model}: {headline}"]
    blocks += _listed(plan.folds, None) if verbose else []
    blocks += [merges] if plan.merges else []
    blocks += _listed(plan.merges, None) if verbose else []
    if plan.left:
        blocks += ["", "left, with the reason", *_listed(plan.left, limit)]
    if plan.apart and verbose:
        blocks += ["", "branches that stay, with the reason", *_listed(plan.apart, None)]
    if plan.assumptions:
        blocks += ["", "assumed", *_listed(plan.assumptions, limit)]
    return blocks


def count_blocks(before: Mapping[str, int], after: Mapping[str, int]) -> list[Block]:
    """Node counts: a row for each operator whose count changed, and a line for the others."""
    changed = sorted(op for op in {*before, *after} if before.get(op, 0) != after.get(op, 0))
    rows = [("nodes", "before", "after"), *((op, str(before.get(op, 0)), str(after.get(op, 0))) for op in changed)]
    same = ", ".join(f"{op} {count}" for op, count in before.items() if op not in changed)
    return [*([rows] if changed else []), *([f"unchanged: {same}"] if same else [])]


def _listed(entries: Sequence[object], limit: int | None) -> list[str]:
    lines = [f"  {entry}" for entry in entries]
    if limit is None or len(lines) <= limit + 1:
        return lines
    return [*lines[:limit], f"  … and {len(lines) - limit} more; {MORE}"]
