"""The search of routes on neutral graphs: how much it does, and in which order it tries."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, is_output
from streams import STREAMS, add

from bnfold.algebra.affine import Affine
from bnfold.graph import Graph, Op
from bnfold.planning import backward, forward, planner
from bnfold.planning.plan import Direction, Plan
from bnfold.rules import TABLE, Row

ONES = np.ones((1, 1, 1, 1))


def rule_calls(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> int:
    """How often planning a graph asks the table for anything."""
    calls: Counter[Op] = Counter()

    def counting(op: Op, row: Row) -> Row:
        def backward(*arguments: object) -> object:
            calls[op] += 1
            return row.backward(*arguments)  # type: ignore[arg-type]

        def forward(*arguments: object) -> object:
            calls[op] += 1
            return row.forward(*arguments)  # type: ignore[arg-type]

        return replace(row, backward=backward, forward=forward)

    with monkeypatch.context() as patch:
        table = {op: counting(op, row) for op, row in TABLE.items()}
        patch.setattr(backward, "TABLE", table)
        patch.setattr(forward, "TABLE", table)
        planner.plan(graph)
    return calls.total()


def written_down(plan: Plan) -> int:
    steps = sum(len(step.changed) + len(step.passed) + len(step.targets) for step in plan.steps)
    return steps + sum(len(fold.path) + len(fold.targets) for fold in plan.folds)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_work_grows_with_the_number_of_nodes(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[[int], Graph] = STREAMS[stream]
    few, many = (rule_calls(monkeypatch, make(nodes)) for nodes in (100, 400))
    assert many <= 4.5 * few + 10, f"{few} calls for 100 nodes, {many} for 400"


@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_written_down_grows_with_the_number_of_nodes(stream: str) -> None:
    """Many shifts that travel down one stream do not each list all of it."""
    few, many = (written_down(planner.plan(STREAMS[stream](nodes))) for nodes in (100, 400))
    assert many <= 4.5 * few + 10, f"{few} names and values for 100 nodes, {many} for 400"


def test_the_count_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many BNs behind one long chain crosses all of it."""

    def make(nodes: int) -> Graph:
        builder = Builder()
        x = builder.conv(builder.input(), "conv")
        for index in range(nodes // 2):
            x = builder.identity(x, f"identity{index}")
        for index in range(nodes // 2):
            x = builder.batch_norm(x, f"bn{index}")
        is_output(x)
        return builder.graph

    few, many = (rule_calls(monkeypatch, make(nodes)) for nodes in (40, 160))
    assert many > 10 * few


def test_a_bn_tries_the_conv_before_it_first() -> None:
    builder = Builder()
    x = builder.batch_norm(builder.conv(builder.input(), "before"), "bn")
    is_output(builder.conv(x, "after"))
    (fold,) = planner.plan(builder.graph).folds
    assert fold.direction is Direction.BACKWARD
    assert fold.targets == ("before",)


def test_the_path_names_what_is_passed_nearest_first() -> None:
    builder = Builder()
    x = builder.identity(builder.identity(builder.conv(builder.input(), "conv"), "first"), "second")
    is_output(builder.batch_norm(x, "bn"))
    (fold,) = planner.plan(builder.graph).folds
    assert fold.path == ("second", "first")


def test_each_shift_of_a_sweep_has_its_own_path_and_its_own_ends() -> None:
    """Two blocks on a stream that a conv reads between them, and one behind: only the first shift reaches both."""
    builder = Builder()
    stream = builder.input()
    for index in range(2):
        y = builder.opaque("Sigmoid", f"gate{index}", builder.input())
        y = builder.batch_norm(y, f"shift{index}", affine=Affine(ONES, builder.affine().shift))
        stream = add(builder, f"add{index}", stream, builder.identity(y, f"own{index}"))
        is_output(builder.conv(stream, f"reads{index}"))
    folds = {fold.nodes[0]: fold for fold in planner.plan(builder.graph).folds}
    assert folds.keys() == {"shift0", "shift1"}
    assert folds["shift0"].path == ("own0", "add0", "add1")
    assert set(folds["shift0"].targets) == {"reads0", "reads1"}
    assert folds["shift1"].path == ("own1", "add1")
    assert folds["shift1"].targets == ("reads1",)


@pytest.mark.parametrize("part", ["pruned", "swept"])
def test_every_reader_is_told(part: str) -> None:
    """A BN that three convs read goes into all of them; if one of them cannot take it, into none."""
    builder = Builder()
    x = builder.batch_norm(builder.input(), "bn")
    is_output(*(builder.conv(x, f"conv{index}") for index in range(3)))
    if part == "pruned":
        is_output(builder.opaque("Sigmoid", "gate", x))
    plan = planner.plan(builder.graph)
    assert [set(fold.targets) for fold in plan.folds] == ([] if part == "pruned" else [{"conv0", "conv1", "conv2"}])
    assert [str(left.code) for left in plan.left] == (["model_input"] if part == "pruned" else [])
