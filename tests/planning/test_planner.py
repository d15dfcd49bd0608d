"""What becomes of every affine: small graphs by hand, then random ones against their own values."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from graphs import SHAPE, SIZE, Builder, carry_out, evaluate, is_captured, is_output
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.tensor import ArrayTensor
from bnfold.errors import UsageError
from bnfold.graph import AffineNode, Graph, Kind, MapNode, Node, Op, OpNode, Value
from bnfold.planning import planner
from bnfold.planning.plan import Direction, Fold, Left, Plan
from bnfold.planning.planner import plan
from bnfold.reasons import Stop, StopCode
from bnfold.rules import TABLE, Row


def check(graph: Graph, done: Plan) -> Graph:
    """Everything that holds for any plan; returns the graph that it makes."""
    batch_norms = [node.name for node in graph.affines]
    listed = [name for entry in (*done.folds, *done.left) for name in entry.nodes]
    assert Counter(listed) == Counter(batch_norms), "each is in exactly one entry"
    assert done.batch_norms == len(batch_norms)
    assert done.batch_norms_folded == sum(len(fold.nodes) for fold in done.folds)
    assert done.batch_norms_left == sum(len(left.nodes) for left in done.left)
    assert {name for fold in done.folds for name in fold.targets} <= {node.name for node in done.foldings}
    assert all(left.reason for left in done.left)

    new, stands_for = carry_out(graph, done)
    assert [node.name for node in new.affines] == [left.nodes[-1] for left in done.left]
    rng = np.random.default_rng(1)
    inputs = [value for value in _sources(graph) if value.producer is None]
    draws = {value: rng.normal(size=SHAPE) for value in inputs}
    before = evaluate(graph, draws.items())
    after = evaluate(new, [(stands_for[value], array) for value, array in draws.items()])
    for value in _must_keep_their_meaning(graph):
        old, now = before[value], after[stands_for[value]]
        np.testing.assert_allclose(now, old, rtol=0, atol=1e-10 * max(1.0, np.abs(old).max()))
    return new


def _sources(graph: Graph) -> list[Value]:
    return list(dict.fromkeys(value for node in graph.nodes for value in node.inputs))


def _must_keep_their_meaning(graph: Graph) -> list[Value]:
    """What is seen from outside, and what operators read that no affine moves past."""
    seen = {value for node in graph.nodes for value in (*node.inputs, *node.outputs) if value.observer}
    read = {
        value
        for node in graph.nodes
        if (isinstance(node, OpNode) and node.op is Op.OPAQUE)
        or (isinstance(node, AffineNode) and node.stop is not None)
        for value in node.inputs
    }
    return [*seen, *read]


def only_fold(graph: Graph) -> Fold:
    done = plan(graph)
    check(graph, done)
    [fold] = done.folds
    assert done.left == ()
    return fold


def only_left(graph: Graph, **options: tuple[str, ...]) -> Left:
    done = plan(graph, **options)
    check(graph, done)
    [left] = done.left
    assert done.folds == ()
    return left


# ---------------------------------------------------------------- into maps


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_backward_into_a_convolution_padded_or_not(pads: int, *, bias: bool) -> None:
    build = Builder()
    y = build.batch_norm(build.conv(build.input(), "conv", kernel=3, pads=pads, bias=bias), "bn")
    is_output(y)
    fold = only_fold(build.graph)
    assert fold == Fold(("bn",), Kind.BATCH_NORM, Direction.BACKWARD, (), ("conv",))


def test_forward_into_a_convolution() -> None:
    build = Builder()
    build.relu(build.conv(build.batch_norm(build.input(), "bn"), "conv", kernel=3), "relu")
    assert only_fold(build.graph) == Fold(("bn",), Kind.BATCH_NORM, Direction.FORWARD, (), ("conv",))


def test_forward_into_a_padded_convolution_needs_a_zero_shift() -> None:
    build = Builder()
    y = build.batch_norm(build.input(), "bn", affine=build.affine(shift=False))
    is_output(build.conv(y, "conv", kernel=3, pads=1))
    assert only_fold(build.graph).direction is Direction.FORWARD

    build = Builder()
    is_output(build.conv(build.batch_norm(build.input(), "bn"), "conv", kernel=3, pads=1))
    left = only_left(build.graph)
    assert left.code is StopCode.PADDED_SHIFT
    assert "forward: Conv 'conv' pads with zeros, and the shift is not zero" in left.reason


def test_backward_comes_first() -> None:
    build = Builder()
    y = build.batch_norm(build.conv(build.input(), "first"), "bn")
    is_output(build.conv(y, "second"))
    assert only_fold(build.graph).targets == ("first",)


def test_identities_are_passed_nearest_first() -> None:
    build = Builder()
    x = build.conv(build.input(), "conv")
    x = build.identity(build.identity(x, "far"), "near")
    is_output(build.batch_norm(x, "bn"))
    fold = only_fold(build.graph)
    assert (fold.direction, fold.path, fold.targets) == (Direction.BACKWARD, ("near", "far"), ("conv",))
    [step] = plan(build.graph).steps
    assert [node.name for node in step.passed] == ["near", "far"]

    build = Builder()
    x = build.identity(build.identity(build.batch_norm(build.input(), "bn"), "near"), "far")
    is_output(build.conv(x, "conv"))
    fold = only_fold(build.graph)
    assert (fold.direction, fold.path, fold.targets) == (Direction.FORWARD, ("near", "far"), ("conv",))


def test_forward_into_every_reader() -> None:
    build = Builder()
    y = build.batch_norm(build.input(), "bn")
    is_output(build.conv(y, "one"), build.conv(build.identity(y, "id"), "two", kernel=3), build.conv(y, "three"))
    fold = only_fold(build.graph)
    assert sorted(fold.targets) == ["one", "three", "two"]
    assert fold.path == ("id",)


@pytest.mark.parametrize("first", ["conv", "relu"])
def test_one_reader_that_does_not_absorb_stops_all(first: str) -> None:
    build = Builder()
    y = build.batch_norm(build.input(), "bn")
    for name in (first, "relu" if first == "conv" else "conv"):
        is_output(build.conv(y, name) if name == "conv" else build.relu(y, name))
    left = only_left(build.graph)
    assert "forward: Relu 'relu' is not linear, nothing moves past it" in left.reason
    assert plan(build.graph).foldings == {}


def test_one_map_absorbs_affines_on_both_sides() -> None:
    build = Builder()
    x = build.relu(build.input(), "relu")
    for name in ("a", "b", "c"):
        x = build.identity(build.batch_norm(x, name), f"after_{name}")
    x = build.conv(x, "conv", kernel=3, groups=3)
    for name in ("d", "e"):
        x = build.batch_norm(build.identity(x, f"before_{name}"), name)
    is_output(x)
    done = plan(build.graph)
    assert check(build.graph, done).affines == []
    assert [(fold.nodes[0], fold.direction, fold.targets) for fold in done.folds] == [
        ("a", Direction.FORWARD, ("conv",)),
        ("b", Direction.FORWARD, ("conv",)),
        ("c", Direction.FORWARD, ("conv",)),
        ("d", Direction.BACKWARD, ("conv",)),
        ("e", Direction.BACKWARD, ("conv",)),
    ]
    assert len(done.foldings) == 1


def test_an_output_after_the_affine_does_not_matter_backward() -> None:
    """The value that is seen is the affine's own, and it keeps its meaning."""
    build = Builder()
    y = build.batch_norm(build.conv(build.input(), "conv"), "bn")
    is_output(y)
    is_output(build.relu(y, "relu"))
    assert only_fold(build.graph).direction is Direction.BACKWARD


# ------------------------------------------------- after another has moved


def test_a_fold_that_another_fold_makes_possible() -> None:
    """The first affine is stuck until the second has gone into its convolution."""
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    is_output(build.conv(build.batch_norm(x, "second"), "one"), build.conv(x, "two"))
    done = plan(build.graph, compose=False)
    assert check(build.graph, done).affines == []
    assert [step.source.name for step in done.steps] == ["second", "first"]
    assert {fold.nodes[0]: set(fold.targets) for fold in done.folds} == {
        "first": {"one", "two"},
        "second": {"one"},
    }


def test_a_fold_that_a_composition_makes_possible() -> None:
    """Two shifts that cancel: neither affine may enter a padded convolution, together they may."""
    build = Builder()
    ones, shift = np.ones((1, SIZE, 1, 1)), np.full((1, SIZE, 1, 1), 0.75)
    x = build.batch_norm(build.relu(build.input(), "relu"), "up", affine=Affine(2 * ones, shift))
    x = build.batch_norm(x, "down", affine=Affine(ones, -shift))
    is_output(build.conv(x, "conv", kernel=3, pads=1))
    done = plan(build.graph)
    assert check(build.graph, done).affines == []
    assert [fold.targets for fold in done.folds] == [("conv",), ("conv",)]
    assert [left.code for left in plan(build.graph, compose=False).left] == [
        StopCode.NONLINEAR,
        StopCode.PADDED_SHIFT,
    ]


def test_affines_with_nowhere_to_go_become_one() -> None:
    build = Builder()
    x = build.relu(build.input(), "relu")
    for name in ("a", "b", "c"):
        x = build.batch_norm(build.identity(x, f"before_{name}"), name)
    is_output(build.relu(x, "last"))
    left = only_left(build.graph)
    assert left.nodes == ("a", "b", "c")
    done = plan(build.graph)
    [(node, affine)] = done.leftovers.items()
    a, b, c = build.graph.affines
    assert node is c
    x = np.random.default_rng(0).normal(size=SHAPE)
    expected = x
    for each in (a, b, c):
        expected = each.affine.scale * expected + each.affine.shift  # type: ignore[union-attr]
    np.testing.assert_allclose(affine.scale * x + affine.shift, expected, rtol=1e-13, atol=1e-13)
    assert [len(entry.nodes) for entry in plan(build.graph, compose=False).left] == [1, 1, 1]


def test_an_affine_goes_into_a_map_and_an_affine_at_once() -> None:
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    is_output(build.conv(x, "conv"), build.relu(build.batch_norm(x, "second"), "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert done.folds == ()
    [left] = done.left
    assert left.nodes == ("first", "second")
    assert [node.name for node in done.foldings] == ["conv"]
    assert [node.name for node in done.steps[0].targets] == ["conv", "second"]


def test_an_affine_composed_into_two_that_stay_is_listed_once() -> None:
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    is_output(*[build.relu(build.batch_norm(x, name), f"after_{name}") for name in ("second", "third")])
    done = plan(build.graph)
    check(build.graph, done)
    assert [left.nodes for left in done.left] == [("first", "second"), ("third",)]


def test_an_affine_composed_into_one_that_folds_and_one_that_stays_is_left() -> None:
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    folds = build.batch_norm(x, "folds")
    stays = build.batch_norm(x, "stays")
    is_output(build.conv(folds, "conv"), build.relu(stays, "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert [fold.nodes for fold in done.folds] == [("folds",)]
    assert [left.nodes for left in done.left] == [("first", "stays")]


def test_an_affine_is_not_composed_into_one_whose_reader_is_not_alone() -> None:
    """One reader is an affine, the other no map: nothing may be duplicated."""
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    is_output(build.relu(x, "other"), build.relu(build.batch_norm(x, "second"), "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert done.steps == ()
    assert [left.nodes for left in done.left] == [("first",), ("second",)]


def test_an_affine_of_an_unknown_dtype_is_not_composed() -> None:
    build = Builder(dtype="")
    x = build.batch_norm(build.relu(build.input(), "relu"), "first")
    is_output(build.relu(build.batch_norm(x, "second"), "last"))
    assert [left.nodes for left in plan(build.graph).left] == [("first",), ("second",)]


# ---------------------------------------------------------------- axes


@pytest.mark.parametrize(("from_left", "folding_axis"), [(False, 3), (True, 2)], ids=["x @ W", "W @ x"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_product_takes_an_affine_on_its_own_axis_only(axis: int, folding_axis: int, *, from_left: bool) -> None:
    """Batch aside all sizes are equal here (N, L, C with L == C), so that the size proves nothing."""
    for forward in (False, True):
        build = Builder()
        x = build.relu(build.input(), "relu")
        if forward:
            x = build.batch_norm(x, "bn", axis=axis)
            is_output(build.relu(build.matmul(x, "matmul", from_left=from_left, bias=True), "last"))
        else:
            x = build.batch_norm(build.matmul(x, "matmul", from_left=from_left), "bn", axis=axis)
            is_output(build.relu(x, "last"))
        if axis == folding_axis:
            assert only_fold(build.graph).targets == ("matmul",)
        else:
            left = only_left(build.graph)
            assert left.code is StopCode.CHANNEL_AXIS
            side = "input" if forward else "output"
            assert f"it does not act on the {side} channels of MatMul 'matmul'" in left.reason


@pytest.mark.parametrize("axis", [2, 3])
def test_a_map_whose_two_channel_axes_differ(axis: int) -> None:
    """xᵀ @ W, as in Gemm with transA: the input's channels are its rows, the output's are its columns."""
    for forward in (False, True):
        build = Builder()
        weight = build.rng.normal(size=(SIZE, SIZE))
        linear = LinearMap(weight=ArrayTensor(weight), out_first=False, input_axis=-2, output_axis=-1)

        def run(values: np.ndarray, map_: LinearMap) -> np.ndarray:
            product = values.swapaxes(-1, -2) @ map_.weight.read()
            return product if map_.bias is None else product + map_.bias.read()

        x = build.relu(build.input(), "relu")
        x = build.batch_norm(x, "bn", axis=axis) if forward else x
        x = build.map(x, "gemm", "Gemm", linear, run)
        x = x if forward else build.batch_norm(x, "bn", axis=axis)
        is_output(build.relu(x, "last"))
        if axis == (2 if forward else 3):
            assert only_fold(build.graph).targets == ("gemm",)
        else:
            assert only_left(build.graph).code is StopCode.CHANNEL_AXIS


def test_one_number_for_all_channels_acts_on_every_axis() -> None:
    for from_left in (False, True):
        build = Builder()
        scalar = Affine(np.full((1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1), -1.0))
        y = build.matmul(build.input(), "matmul", from_left=from_left)
        is_output(build.batch_norm(y, "bn", affine=scalar))
        assert only_fold(build.graph).targets == ("matmul",)


def test_affines_on_two_axes_compose_and_no_map_takes_the_product() -> None:
    build = Builder()
    x = build.batch_norm(build.relu(build.input(), "relu"), "channels")
    x = build.batch_norm(x, "columns", axis=3)
    is_output(build.relu(x, "last"))
    check(build.graph, plan(build.graph))


# ------------------------------------------------ what stays, and its reasons


def test_model_input() -> None:
    build = Builder()
    is_output(build.relu(build.batch_norm(build.input(), "bn"), "relu"))
    left = only_left(build.graph)
    assert left.code is StopCode.MODEL_INPUT
    assert left.reason == (
        "backward: it is an input of the model; forward: Relu 'relu' is not linear, nothing moves past it"
    )


def test_a_source_that_is_no_model_input_says_what_it_is() -> None:
    build = Builder()
    x = build.input()
    x.source = Stop(StopCode.CAPTURED, "its input comes from the graph around it")
    is_output(build.relu(build.batch_norm(x, "bn"), "relu"))
    left = only_left(build.graph)
    assert left.code is StopCode.CAPTURED
    assert left.reason.startswith("backward: its input comes from the graph around it; forward: ")


def test_model_output_before_the_affine() -> None:
    build = Builder()
    x = build.conv(build.input(), "conv")
    is_output(x, build.relu(build.batch_norm(x, "bn"), "relu"))
    left = only_left(build.graph)
    assert left.code is StopCode.MODEL_OUTPUT
    backward, _ = left.reason.split("; ")
    assert "'conv.out'" in backward
    assert backward.endswith(" is an output of the model")


def test_model_output_behind_the_affine() -> None:
    build = Builder()
    y = build.batch_norm(build.input(), "bn")
    is_output(y, build.conv(y, "conv"))
    left = only_left(build.graph)
    assert "forward: 'bn.out' is an output of the model" in left.reason


def test_an_output_behind_an_identity_stops_as_well() -> None:
    build = Builder()
    y = build.identity(build.batch_norm(build.input(), "bn"), "id")
    is_output(y, build.conv(y, "conv"))
    assert "forward: 'id.out' is an output of the model" in only_left(build.graph).reason

    build = Builder()
    x = build.conv(build.input(), "conv")
    is_output(x)
    is_output(build.relu(build.batch_norm(build.identity(x, "id"), "bn"), "relu"))
    assert only_left(build.graph).code is StopCode.MODEL_OUTPUT


def test_the_output_that_stops_is_named_also_after_an_affine_has_gone() -> None:
    """conv → first → [output] → second: once first is folded, it is 'first.out' that is seen, not 'conv.out'."""
    build = Builder()
    x = build.batch_norm(build.conv(build.input(), "conv"), "first")
    is_output(x, build.relu(build.batch_norm(x, "second"), "relu"))
    done = plan(build.graph)
    check(build.graph, done)
    [left] = done.left
    assert (left.nodes, left.code) == (("second",), StopCode.MODEL_OUTPUT)
    assert "'first.out'" in left.reason
    assert "'conv.out'" not in left.reason


def test_captured_values() -> None:
    build = Builder()
    x = build.conv(build.input(), "conv")
    is_captured(x)
    is_output(build.relu(build.batch_norm(x, "bn"), "relu"))
    left = only_left(build.graph)
    assert left.code is StopCode.CAPTURED
    backward, _ = left.reason.split("; ")
    assert "'conv.out'" in backward
    assert backward.endswith(" is read inside a nested graph")

    build = Builder()
    y = build.batch_norm(build.input(), "bn")
    is_captured(y)
    is_output(build.conv(y, "conv"))
    left = only_left(build.graph)
    assert left.code is StopCode.CAPTURED
    assert "forward: 'bn.out' is read inside a nested graph" in left.reason


@pytest.mark.parametrize(
    ("readers", "text"),
    [
        (1, "'add_0'"),
        (3, "'add_0', 'add_1', 'add_2'"),
        (4, "'add_0', 'add_1', 'add_2' and 1 more"),
        (9, "'add_0', 'add_1', 'add_2' and 6 more"),
    ],
)
def test_other_consumers(readers: int, text: str) -> None:
    build = Builder()
    x = build.conv(build.input(), "conv")
    is_output(build.relu(build.batch_norm(x, "bn"), "relu"))
    is_output(*[build.opaque("Add", f"add_{number}", x, x) for number in range(readers)])
    left = only_left(build.graph)
    assert left.code is StopCode.OTHER_CONSUMERS
    for name in ("bn", "relu"):
        assert f"read by '{name}'" not in left.reason
    once = left.reason.split("; forward")[0]
    assert once == f"backward: the output of Conv 'conv' is also read by {text}"


def test_a_value_that_one_node_reads_twice_has_two_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`x + x` in front of an affine, with a row that gives a part to each input."""
    row = Row(
        backward=lambda node, _, array, __: [(array,) * len(node.inputs)],
        forward=lambda _, arrays, __: arrays,
    )
    monkeypatch.setitem(TABLE, Op.IDENTITY, row)
    build = Builder()
    x = build.conv(build.input(), "conv")
    y = Value("both.out", SHAPE, "float64")
    node = OpNode(name="both", op_type="Add", inputs=(x, x), outputs=(y,), op=Op.IDENTITY)
    build.graph.add(node)
    is_output(build.relu(build.batch_norm(y, "bn"), "relu"))
    [left] = plan(build.graph).left
    assert left.code is StopCode.OTHER_CONSUMERS
    assert "the output of Conv 'conv' is also read by the same node a second time" in left.reason


def test_a_reader_that_is_gone_is_replaced_by_its_own_readers() -> None:
    """conv → {first → one, second → relu}: with first gone into one, it is one that reads the convolution."""
    build = Builder()
    x = build.conv(build.input(), "conv")
    is_output(build.conv(build.batch_norm(x, "first"), "one"), build.relu(build.batch_norm(x, "second"), "relu"))
    done = plan(build.graph)
    check(build.graph, done)
    assert [fold.nodes for fold in done.folds] == [("first",)]
    [left] = done.left
    assert "the output of Conv 'conv' is also read by 'one'" in left.reason


def test_nothing_reads_the_output() -> None:
    build = Builder()
    build.batch_norm(build.input(), "bn")
    left = only_left(build.graph)
    assert "forward: nothing reads its output" in left.reason
    assert left.code is StopCode.UNUSED


def test_no_rule() -> None:
    build = Builder()
    x = build.opaque("MyOp", "before", build.input())
    is_output(build.opaque("Concat", "behind", build.batch_norm(x, "bn"), build.input("y")))
    left = only_left(build.graph)
    assert left.code is StopCode.NO_RULE
    assert left.reason == (
        "backward: no exact rule moves an affine past MyOp 'before'; "
        "forward: no exact rule moves an affine past Concat 'behind'"
    )


def test_nonlinear() -> None:
    build = Builder()
    x = build.relu(build.input(), "before")
    is_output(build.relu(build.batch_norm(x, "bn"), "behind"))
    left = only_left(build.graph)
    assert left.code is StopCode.NONLINEAR
    assert left.reason == (
        "backward: Relu 'before' is not linear, nothing moves past it; "
        "forward: Relu 'behind' is not linear, nothing moves past it"
    )


def test_what_the_front_end_knows_about_an_operator_is_the_reason() -> None:
    build = Builder()
    stop = Stop(StopCode.WEIGHT_NOT_CONSTANT, "the weight of Conv 'conv' is computed")
    x = build.opaque("Conv", "conv", build.input(), stop=stop)
    is_output(build.relu(build.batch_norm(x, "bn"), "relu"))
    left = only_left(build.graph)
    assert left.code is StopCode.WEIGHT_NOT_CONSTANT
    assert left.reason.startswith("backward: the weight of Conv 'conv' is computed; ")


def test_a_batch_norm_that_is_no_affine_keeps_its_reason() -> None:
    build = Builder()
    stop = Stop(StopCode.TRAINING_MODE, "it normalises with the statistics of the batch")
    x = build.batch_norm(build.conv(build.input(), "before"), "bn", stop=stop)
    is_output(build.conv(x, "behind"))
    assert only_left(build.graph) == Left(("bn",), Kind.BATCH_NORM, stop.code, stop.reason, 1)
    assert plan(build.graph).leftovers == {}


def test_a_stop_counts_also_where_the_affine_is_known() -> None:
    build = Builder()
    is_output(build.batch_norm(build.conv(build.input(), "conv"), "bn"))
    [node] = build.graph.affines
    node.stop = Stop(StopCode.OVERRIDABLE, "a caller may override its scale")
    done = plan(build.graph)
    assert [(left.nodes, left.code) for left in done.left] == [(("bn",), StopCode.OVERRIDABLE)]
    assert (done.foldings, done.leftovers) == ({}, {})


def test_nothing_moves_past_or_into_a_batch_norm_that_is_no_affine() -> None:
    build = Builder()
    stop = Stop(StopCode.TRAINING_MODE, "it normalises with the statistics of the batch")
    x = build.batch_norm(build.relu(build.input(), "relu"), "before")
    x = build.batch_norm(x, "training", stop=stop)
    is_output(build.relu(build.batch_norm(x, "behind"), "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert [left.nodes for left in done.left] == [("before",), ("training",), ("behind",)]
    before, _, behind = done.left
    assert "forward: its output goes to BatchNormalization 'training', which stays" in before.reason
    assert "backward: its input comes from BatchNormalization 'training', which stays" in behind.reason


def half(scale: float) -> Affine:
    shape = (1, SIZE, 1, 1)
    return Affine(np.full(shape, scale), np.zeros(shape))


def test_overflow_in_a_map() -> None:
    for forward in (False, True):
        build = Builder(dtype="float16")
        x = build.relu(build.input(), "relu")
        x = build.batch_norm(x, "bn", affine=half(1e6)) if forward else build.conv(x, "conv")
        x = build.conv(x, "conv") if forward else build.batch_norm(x, "bn", affine=half(1e6))
        is_output(build.relu(x, "last"))
        [left] = plan(build.graph).left
        assert left.code is StopCode.OVERFLOW
        assert "Conv 'conv': the new weight overflows float16 in output channel 0" in left.reason


def test_a_weight_that_float16_has_no_digits_for_is_none_to_fold_into() -> None:
    build = Builder(dtype="float16")
    x = build.batch_norm(build.conv(build.input(), "conv"), "bn", affine=half(1e-7))
    is_output(build.relu(x, "last"))
    [left] = plan(build.graph).left
    assert left.code is StopCode.OVERFLOW
    assert "Conv 'conv': the new weight is too small for the digits of float16" in left.reason


def test_an_overflow_of_several_affines_together_stops_the_last() -> None:
    """Each fits alone. The one that does not fit any more goes elsewhere: forward."""
    build = Builder(dtype="float16")
    x = build.conv(build.input(), "conv", bias=False)
    for name in ("first", "second"):
        x = build.batch_norm(x, name, affine=half(2000.0))
    is_output(build.relu(x, "last"))
    done = plan(build.graph)
    assert [fold.nodes for fold in done.folds] == [("first",)]
    assert [(left.nodes, left.code) for left in done.left] == [(("second",), StopCode.OVERFLOW)]
    assert done.foldings[build.graph.nodes[0]].defect() is None  # type: ignore[index]


def test_a_composition_that_cannot_be_stored_is_not_made() -> None:
    build = Builder(dtype="float16")
    x = build.relu(build.input(), "relu")
    for name in ("first", "second"):
        x = build.batch_norm(x, name, affine=half(2000.0))
    is_output(build.relu(x, "last"))
    done = plan(build.graph)
    assert [left.nodes for left in done.left] == [("first",), ("second",)]
    first, _ = done.left
    assert "forward: composed with 'second' it cannot be stored" in first.reason
    assert first.code is StopCode.OVERFLOW


def test_a_composition_that_fits_later_is_made_later() -> None:
    """2000 · 2000 is too much for float16; once the second has met 1 / 1024, the first fits as well."""
    build = Builder(dtype="float16")
    x = build.relu(build.input(), "relu")
    for name, scale in (("first", 2000.0), ("second", 2000.0), ("third", 2.0**-10)):
        x = build.batch_norm(x, name, affine=half(scale))
    is_output(build.relu(x, "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert [left.nodes for left in done.left] == [("first", "second", "third")]
    [affine] = done.leftovers.values()
    np.testing.assert_array_equal(affine.scale.reshape(-1), [4_000_000 / 1024] * SIZE)


def test_of_two_telling_codes_the_backward_one_is_given() -> None:
    build = Builder()
    x = build.conv(build.input(), "before")
    is_output(build.relu(x, "relu"), build.conv(build.batch_norm(x, "bn"), "behind", kernel=3, pads=1))
    left = only_left(build.graph)
    assert left.code is StopCode.OTHER_CONSUMERS
    assert "pads with zeros" in left.reason


def test_the_more_telling_of_two_codes_is_given() -> None:
    """Backward ends at an input of the model, which says little; forward names something to act on."""
    build = Builder()
    is_output(build.conv(build.batch_norm(build.input(), "bn"), "conv", kernel=3, pads=1))
    assert only_left(build.graph).code is StopCode.PADDED_SHIFT


# ---------------------------------------------------------------- skip, only


def three_folds() -> Graph:
    build = Builder()
    x = build.input()
    for name in ("stem.bn", "layer1.bn", "layer2.BN[0]"):
        x = build.relu(build.batch_norm(build.conv(x, f"{name}.conv"), name), f"{name}.relu")
    is_output(x)
    return build.graph


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, []),
        ({"skip": ("stem.bn",)}, ["stem.bn"]),
        ({"skip": ("*.bn",)}, ["stem.bn", "layer1.bn"]),
        ({"skip": ("stem*", "layer1*")}, ["stem.bn", "layer1.bn"]),
        ({"skip": ("layer?.*",)}, ["layer1.bn", "layer2.BN[0]"]),
        ({"skip": ("*[[]0]",)}, ["layer2.BN[0]"]),
        ({"only": ("stem.bn",)}, ["layer1.bn", "layer2.BN[0]"]),
        ({"only": ("*.bn", "*BN*")}, []),
        ({"only": ("layer*",), "skip": ("layer1.bn",)}, ["stem.bn", "layer1.bn"]),
        ({"skip": ("*",)}, ["stem.bn", "layer1.bn", "layer2.BN[0]"]),
    ],
)
def test_patterns(options: dict[str, tuple[str, ...]], left: list[str]) -> None:
    graph = three_folds()
    done = plan(graph, **options)
    check(graph, done)
    assert [entry.nodes for entry in done.left] == [(name,) for name in left]
    assert {entry.code for entry in done.left} <= {StopCode.SKIPPED}
    assert all(entry.reason == "it was asked to stay (skip/only)" for entry in done.left)
    assert done.leftovers == {}, "what was asked to stay is not rewritten"


@pytest.mark.parametrize("option", ["skip", "only"])
@pytest.mark.parametrize("pattern", ["stem.BN", "*.conv", "nothing*", ""])
def test_a_pattern_that_matches_nothing_is_a_usage_error(option: str, pattern: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} pattern '.*' matches no BatchNorm of this model$") as caught:
        plan(three_folds(), **{option: ("stem.bn", pattern)})
    assert f"'{pattern}'" in str(caught.value)
    assert caught.value.hint.endswith("`bnfold inspect` lists their names.")
    assert caught.value.hint.startswith("Perhaps stem.bn? ") is (pattern == "stem.BN")


def test_nothing_is_composed_into_or_past_what_is_skipped() -> None:
    build = Builder()
    x = build.relu(build.input(), "relu")
    for name in ("before", "skipped", "behind"):
        x = build.batch_norm(x, name)
    is_output(build.conv(x, "conv", kernel=3, pads=1))
    done = plan(build.graph, skip=("skipped",))
    check(build.graph, done)
    assert [left.nodes for left in done.left] == [("before",), ("skipped",), ("behind",)]


# ---------------------------------------------------------------- the search


def test_a_model_without_affines() -> None:
    build = Builder()
    is_output(build.relu(build.conv(build.input(), "conv"), "relu"))
    done = plan(build.graph)
    assert (done.folds, done.left, done.steps, done.batch_norms) == ((), (), (), 0)
    assert plan(Graph()).batch_norms == 0


def test_a_search_that_ended_too_early_is_a_bug_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for phase in ("fold_all", "compose_all"):
        monkeypatch.setattr(planner._Search, phase, lambda _: False)
    build = Builder()
    is_output(build.batch_norm(build.conv(build.input(), "conv"), "bn"))
    with pytest.raises(AssertionError, match="'bn' can still move after the search has ended"):
        plan(build.graph)


class CountingTensor(ArrayTensor):
    """A constant that counts how often it is read."""

    def __init__(self, array: np.ndarray, reads: Counter[str]) -> None:
        super().__init__(array)
        object.__setattr__(self, "reads", reads)

    def read(self) -> np.ndarray:
        self.reads["weights"] += 1  # type: ignore[attr-defined]
        return self.array


class CountingUses(list[Node]):
    """The uses of a value, counting how many of them are looked at."""

    def __init__(self, uses: list[Node], looks: Counter[str]) -> None:
        super().__init__(uses)
        self.looks = looks

    def __iter__(self) -> Iterator[Node]:
        self.looks["uses"] += len(self)
        return super().__iter__()


def residual_stream(build: Builder, blocks: int) -> None:
    x = build.input()
    for number in range(blocks):
        y = build.batch_norm(build.conv(x, f"conv_{number}"), f"bn_{number}")
        y = build.batch_norm(build.relu(y, f"relu_{number}"), f"left_{number}")
        x = build.opaque("Add", f"add_{number}", x, build.relu(y, f"second_{number}"))
    is_output(x)


def hub(build: Builder, readers: int) -> None:
    """One value, normalised anew by each of its readers, as in a dense block."""
    x = build.relu(build.input(), "relu")
    for number in range(readers):
        is_output(build.relu(build.batch_norm(x, f"bn_{number}"), f"relu_{number}"))


def batch_norm_chain(build: Builder, length: int) -> None:
    x = build.conv(build.input(), "conv")
    ones = np.ones((1, SIZE, 1, 1))
    for number in range(length):
        x = build.batch_norm(x, f"bn_{number}", affine=Affine(ones, ones))
    is_output(x)


def counts(make: Callable[[Builder, int], None], size: int) -> Counter[str]:
    build, counter = Builder(), Counter[str]()
    make(build, size)
    for node in build.graph.nodes:
        if isinstance(node, MapNode):
            weight = CountingTensor(node.linear.weight.read(), counter)
            node.linear = replace(node.linear, weight=weight)
        for value in (*node.inputs, *node.outputs):
            if not isinstance(value.uses, CountingUses):
                value.uses = CountingUses(value.uses, counter)
    plan(build.graph)
    return counter


@pytest.mark.parametrize("make", [residual_stream, hub, batch_norm_chain])
def test_the_work_grows_with_the_model_and_not_with_its_square(make: Callable[[Builder, int], None]) -> None:
    small, large = counts(make, 40), counts(make, 160)
    assert small["uses"] > 0
    for what in ("weights", "uses"):
        assert large[what] <= 4.5 * small[what]


def test_a_weight_is_read_a_few_times_for_each_fold() -> None:
    assert counts(residual_stream, 50)["weights"] <= 4 * 50


@pytest.mark.parametrize("forward", [False, True])
def test_a_chain_longer_than_the_stack(*, forward: bool) -> None:
    build = Builder()
    x = build.input()
    x = build.batch_norm(x, "bn") if forward else build.conv(x, "conv")
    for number in range(3000):
        x = build.identity(x, f"id_{number}")
    is_output(build.conv(x, "conv") if forward else build.batch_norm(x, "bn"))
    assert only_fold(build.graph).targets == ("conv",)


@pytest.mark.parametrize("with_map", [False, True])
def test_more_affines_in_a_row_than_the_stack_holds(*, with_map: bool) -> None:
    build = Builder()
    x = build.conv(build.input(), "conv") if with_map else build.relu(build.input(), "relu")
    ones = np.ones((1, SIZE, 1, 1))
    for number in range(1500):
        x = build.batch_norm(x, f"bn_{number}", affine=Affine(ones, 0 * ones))
    is_output(build.relu(x, "last"))
    done = plan(build.graph)
    check(build.graph, done)
    assert (done.batch_norms_folded, done.batch_norms_left) == ((1500, 0) if with_map else (0, 1500))


# ---------------------------------------------------------------- random graphs

NODES: dict[str, Callable[[Builder, str, Value, Value], Value]] = {
    "conv": lambda build, name, x, _: build.conv(x, name),
    "conv 3x3": lambda build, name, x, _: build.conv(x, name, kernel=3),
    "padded": lambda build, name, x, _: build.conv(x, name, kernel=3, pads=1, bias=False),
    "depthwise": lambda build, name, x, _: build.conv(x, name, kernel=2, groups=3),
    "x @ W": lambda build, name, x, _: build.matmul(x, name),
    "x @ W + b": lambda build, name, x, _: build.matmul(x, name, bias=True),
    "W @ x": lambda build, name, x, _: build.matmul(x, name, from_left=True),
    "W @ x + b": lambda build, name, x, _: build.matmul(x, name, from_left=True, bias=True),
    "bn": lambda build, name, x, _: build.batch_norm(x, name),
    "bn again": lambda build, name, x, _: build.batch_norm(x, name),
    "scale": lambda build, name, x, _: build.batch_norm(x, name, affine=build.affine(shift=False)),
    "rows": lambda build, name, x, _: build.batch_norm(x, name, axis=2),
    "columns": lambda build, name, x, _: build.batch_norm(x, name, axis=3),
    "training": lambda build, name, x, _: build.batch_norm(
        x, name, stop=Stop(StopCode.TRAINING_MODE, "it is in training mode")
    ),
    "identity": lambda build, name, x, _: build.identity(x, name),
    "relu": lambda build, name, x, _: build.relu(x, name),
    "add": lambda build, name, x, y: build.opaque("Add", name, x, y),
    "twice": lambda build, name, x, _: build.opaque("Add", name, x, x),
}

# What an affine meets in a network is drawn more often than what ends its way.
DRAWN = [*sorted(NODES), *["conv", "conv 3x3", "padded", "x @ W", "identity"] * 2, *["bn", "scale"] * 4]

node_draws = st.tuples(st.sampled_from(DRAWN), st.sampled_from([0, 0, 0, 1, 2, 5]), st.integers(0, 9))
Draw = tuple[str, int, int]


def built(draws: list[Draw], observed: set[int], seed: int) -> tuple[Graph, list[Value]]:
    build = Builder(rng=np.random.default_rng(seed))
    values = [build.input("x")]
    for number, (kind, back, other) in enumerate(draws):
        x, y = values[max(0, len(values) - 1 - back)], values[other % len(values)]
        values.append(NODES[kind](build, f"node_{number}", x, y))
    for number in observed:
        value = values[1 + number % (len(values) - 1)]
        (is_captured if number % 2 else is_output)(value)
    is_output(values[-1])
    return build.graph, values


def through_identities(value: Value, *, upward: bool) -> tuple[list[Node], bool]:
    """The nodes next to a value, through identities, and whether a value on the way is watched, shared or unread."""
    shared = len(value.uses) != 1 if upward else not value.uses
    blocked = value.observer is not None or shared
    nodes: list[Node] = []
    neighbours = [value.producer] if upward else value.uses
    for node in neighbours:
        if node is None:
            blocked = True
        elif isinstance(node, OpNode) and node.op is Op.IDENTITY:
            found, stuck = through_identities((node.inputs if upward else node.outputs)[0], upward=upward)
            nodes += found
            blocked |= stuck
        else:
            nodes.append(node)
    return nodes, blocked


def takes(node: Node, affine: Affine, *, upward: bool) -> bool:
    """Whether a linear map absorbs an affine, from the definition of its axes alone. Nothing overflows here."""
    if not isinstance(node, MapNode):
        return False
    axis = node.linear.output_axis if upward else node.linear.input_axis
    elsewhere = [array.shape[i] for array in (affine.scale, affine.shift) for i in range(4) if i != axis % 4]
    if any(size != 1 for size in elsewhere):
        return False
    return upward or not node.linear.partial_kernel or not affine.shift.any()


def composes(reader: Node, node: AffineNode, alive: list[AffineNode]) -> bool:
    """Whether an affine may be merged into the one behind it: that must not vary along more axes than before."""
    if reader not in alive or not isinstance(reader, AffineNode) or reader.affine is None or node.affine is None:
        return False
    return all(size == 1 or reader.affine.scale.shape[axis] > 1 for axis, size in enumerate(node.affine.scale.shape))


def nothing_moves(graph: Graph, skipped: set[str]) -> None:
    """No affine of a finished graph has a neighbour that could take it: written anew, one step deep."""
    alive = [node for node in graph.affines if node.stop is None and node.name not in skipped]
    for node in alive:
        assert node.affine is not None
        producers, blocked = through_identities(node.inputs[0], upward=True)
        assert blocked or not takes(producers[0], node.affine, upward=True), node.name
        readers, blocked = through_identities(node.outputs[0], upward=False)
        absorbed = [composes(reader, node, alive) or takes(reader, node.affine, upward=False) for reader in readers]
        assert blocked or not all(absorbed), node.name


def check_random_graph(draws: list[Draw], observed: set[int], skips: set[int], seed: int) -> None:
    graph, _ = built(draws, observed, seed)
    names = [node.name for node in graph.affines]
    skip = tuple({names[number % len(names)] for number in skips}) if names else ()
    affines = {node: node.affine for node in graph.affines}
    links = {value: list(value.uses) for node in graph.nodes for value in (*node.inputs, *node.outputs)}

    done = plan(graph, skip=skip)
    new = check(graph, done)
    nothing_moves(new, set(skip))
    assert {left.nodes[-1] for left in done.left if left.code is StopCode.SKIPPED} <= set(skip)
    for left in done.left:
        if left.nodes[-1] in skip:
            assert len(left.nodes) == 1

    again = plan(graph, skip=skip)
    assert (again.folds, again.left) == (done.folds, done.left), "it is deterministic"
    assert [step.source for step in again.steps] == [step.source for step in done.steps]
    assert {node: node.affine for node in graph.affines} == affines, "the graph is only read"
    assert {value: list(value.uses) for value in links} == links

    second = plan(new, skip=skip)
    assert (second.folds, second.steps) == ((), ()), "a second plan finds nothing"
    assert dict(second.leftovers) == {node: node.affine for node in new.affines if node in second.leftovers}
    assert [left.code for left in second.left] == [left.code for left in done.left]

    apart = plan(graph, skip=skip, compose=False)
    check(graph, apart)
    assert all(len(left.nodes) == 1 for left in apart.left)
    assert apart.batch_norms_folded <= done.batch_norms_folded


random_graphs = given(
    draws=st.lists(node_draws, min_size=1, max_size=14),
    observed=st.sets(st.integers(0, 40), max_size=3),
    skips=st.just(set()) | st.sets(st.integers(0, 20), max_size=2),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@random_graphs
@example(draws=[("conv", 0, 0), ("bn", 0, 0), ("bn", 0, 0), ("relu", 0, 0)], observed={2}, skips=set(), seed=0)
@example(draws=[("bn", 0, 0), ("x @ W", 0, 0)], observed=set(), skips=set(), seed=0)
@example(draws=[("W @ x", 0, 0), ("bn", 0, 0), ("rows", 0, 0)], observed=set(), skips=set(), seed=0)
def test_any_graph_keeps_its_meaning(draws: list[Draw], observed: set[int], skips: set[int], seed: int) -> None:
    check_random_graph(draws, observed, skips, seed)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=1000)
@random_graphs
def test_any_graph_keeps_its_meaning_at_length(
    draws: list[Draw], observed: set[int], skips: set[int], seed: int
) -> None:
    check_random_graph(draws, observed, skips, seed)


def test_the_random_graphs_are_worth_their_time() -> None:
    """Of graphs drawn in the same way, most have something to fold and something to leave."""
    rng = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(200):
        draws = [
            (DRAWN[rng.integers(len(DRAWN))], int(rng.choice([0, 0, 0, 1, 2, 5])), int(rng.integers(10)))
            for _ in range(14)
        ]
        done = plan(built(draws, set(), 0)[0])
        seen["folds"] += bool(done.folds)
        seen["left"] += bool(done.left)
        seen["composed"] += any(len(left.nodes) > 1 for left in done.left)
        seen["forward"] += any(fold.direction is Direction.FORWARD for fold in done.folds)
        seen["several"] += any(len(fold.targets) > 1 for fold in done.folds)
    assert seen["folds"] > 120
    assert seen["left"] > 100
    assert min(seen.values()) >= 5


def test_the_check_of_meaning_can_fail() -> None:
    """A plan that forgets an affine, or folds it along the wrong axis, is found out."""
    build = Builder()
    is_output(build.relu(build.batch_norm(build.conv(build.input(), "conv"), "bn"), "relu"))
    done = plan(build.graph)
    check(build.graph, done)
    with pytest.raises(AssertionError):
        check(build.graph, replace(done, foldings={}))
    [(node, folding)] = done.foldings.items()
    assert isinstance(folding.linear, LinearMap)
    with pytest.raises(AssertionError):
        check(build.graph, replace(done, foldings={node: replace(folding, inner=folding.outer)}))


def test_the_check_of_completeness_can_fail() -> None:
    for forward in (False, True):
        build = Builder()
        x = build.relu(build.input(), "relu")
        x = build.batch_norm(x, "bn") if forward else build.conv(x, "conv")
        x = build.identity(x, "id")
        is_output(build.conv(x, "conv") if forward else build.batch_norm(x, "bn"))
        with pytest.raises(AssertionError):
            nothing_moves(build.graph, set())
        nothing_moves(build.graph, {"bn"})
