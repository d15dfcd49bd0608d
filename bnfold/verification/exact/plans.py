"""Whether two plans are the same, step for step, for models that differ in their numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnfold.graph import Node, Value
from bnfold.planning.plan import Plan


def difference(plan: Plan, other: Plan) -> str:
    """What the first difference between two plans is about, a clause; "" if they are the same.

    Reasons may name numbers, and are not compared; their codes are.
    """
    for part, mine, theirs in zip(_PARTS, _signature(plan), _signature(other), strict=True):
        if mine == theirs:
            continue
        first = next((item for item in [*mine, *theirs] if item not in mine or item not in theirs), part)
        return f"{part} are others with other numbers, {first!r} among them"
    return ""


_PARTS = ("folds", "reasons", "merges", "steps", "junctions", "weights", "leftovers")


def _signature(plan: Plan) -> tuple[Sequence[object], ...]:
    return (
        [(fold.nodes, fold.direction, fold.path, fold.targets) for fold in plan.folds],
        [(left.nodes, left.code) for left in plan.left] + [(apart.nodes, apart.code) for apart in plan.apart],
        [(merge.nodes, merge.kind, merge.target, merge.kernel) for merge in plan.merges],
        [
            (step.source.name, step.direction, _values(step.changed), _nodes(step.passed), _nodes(step.targets))
            for step in plan.steps
        ],
        [
            (
                junction.target.name,
                [(node.name, position) for node, position in junction.collapsed],
                _nodes(junction.gone),
                _values(junction.changed),
                junction.after,
            )
            for junction in plan.junctions
        ],
        sorted(node.name for node in plan.foldings),
        sorted(node.name for node in plan.leftovers),
    )


def _nodes(nodes: Iterable[Node]) -> list[str]:
    return [node.name for node in nodes]


def _values(values: Iterable[Value]) -> list[str]:
    return [value.name for value in values]
