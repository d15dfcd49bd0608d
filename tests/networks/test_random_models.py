"""Random models from all rows of the rule table: a fold changes no output and no value that keeps its name."""

from collections import Counter

import numpy as np
import onnx
import pytest
import random_rejoined
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx_fold import as_bytes, check_values, fold, random_feeds
from random_models import models, of_seed

import bnfold
from bnfold.graph import Op
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.lift.lift import lift
from bnfold.planning import backward

# The evaluator's Sigmoid computes exp(x) and exp(-x), and uses the one that is finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx.reference")

SEEDS = st.integers(0, 2**32 - 1)
RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True)


def assert_fold_is_right(model: onnx.ModelProto, *, exactly: bool = True) -> None:
    """All that `onnx_fold.fold` asserts, and that each BN is accounted for once; the model is shown if it is not."""
    onnx.checker.check_model(model, full_check=True)
    try:
        plan = fold(model, exactly=exactly).plan
        names = Counter(name for entry in (*plan.folds, *plan.left) for name in entry.nodes)
        assert all(count == 1 for count in names.values())
        assert plan.batch_norms == sum(node.op_type == "BatchNormalization" for node in model.graph.node)
        assert all(left.reason for left in plan.left)
    except Exception:
        print(onnx.printer.to_text(model))
        raise


@pytest.mark.parametrize("seed", range(100))
def test_folding_changes_no_value(seed: int) -> None:
    assert_fold_is_right(of_seed(seed))


@pytest.mark.parametrize("seed", range(100))
def test_what_comes_by_two_ways_is_put_together(seed: int) -> None:
    assert_fold_is_right(random_rejoined.of_seed(seed))


@pytest.mark.slow
@settings(RANDOM, max_examples=1_500)
@given(seed=SEEDS, rejoined=st.booleans())
def test_folding_changes_no_value_at_length(seed: int, rejoined: bool) -> None:
    # The exact gate takes many times what a fold takes.
    assert_fold_is_right(random_rejoined.of_seed(seed) if rejoined else of_seed(seed), exactly=seed % 50 == 0)


@pytest.mark.slow
@settings(RANDOM, max_examples=400)
@given(model=models())
def test_folding_changes_no_value_in_models_that_can_be_made_smaller(model: onnx.ModelProto) -> None:
    assert_fold_is_right(model, exactly=False)


def to_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float32: what stays may then be written as a depthwise Conv."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in single.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in single.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = TensorProto.FLOAT
    return single


def assert_every_form_is_final(model: onnx.ModelProto) -> None:
    """A second fold of a float32 model changes nothing, in whatever form its leftovers were written."""
    single = to_single(model)
    for leftover in ("conv", "mul-add", "keep"):
        once = bnfold.fold(single, leftover=leftover).model
        onnx.checker.check_model(once, full_check=True)
        again = bnfold.fold(once, leftover=leftover)
        if as_bytes(again.model) != as_bytes(once):
            print(onnx.printer.to_text(single))
            pytest.fail(f"with leftover={leftover} a second fold does {again.plan.folds}")


@pytest.mark.parametrize("seed", range(1000, 1060))
def test_a_second_fold_changes_nothing(seed: int) -> None:
    assert_every_form_is_final(of_seed(seed))


@pytest.mark.parametrize("seed", [50680, 13117])
def test_a_second_fold_changes_nothing_where_it_once_did(seed: int) -> None:
    assert_every_form_is_final(of_seed(seed))


def test_a_shift_does_not_reach_a_model_output_through_a_split() -> None:
    """An output of the Split that only an affine read, which is gone, is an output of the model now."""
    assert_fold_is_right(of_seed(764))


@pytest.mark.slow
@settings(RANDOM, max_examples=500)
@given(seed=SEEDS)
def test_a_second_fold_changes_nothing_at_length(seed: int) -> None:
    assert_every_form_is_final(of_seed(seed))


@pytest.mark.parametrize("seed", range(2000, 2030))
def test_plans_are_deterministic(seed: int) -> None:
    model = of_seed(seed)
    first, second = bnfold.fold(model), bnfold.fold(model)
    assert (first.plan.folds, first.plan.left) == (second.plan.folds, second.plan.left)
    assert as_bytes(first.model) == as_bytes(second.model)


def test_every_row_is_drawn() -> None:
    """The models hold every operator of the table, and folds really move past most of them, either way."""
    seen: Counter[Op] = Counter()
    passed: Counter[str] = Counter()

    for seed in range(3000, 3500):
        model = of_seed(seed)
        graph = lift(from_proto(model))
        ops = {node.name: getattr(node, "op", None) for node in graph.nodes}
        seen.update(op for op in ops.values() if op is not None)
        for move in bnfold.inspect(model).folds:
            passed.update({f"{move.direction} {ops[name]}" for name in move.path if ops.get(name) is not None})
    assert set(seen) == set(Op)
    assert len(passed) >= 20, passed


def test_many_affines_come_by_two_ways() -> None:
    """Through a Split, or past values that are read twice, to an operator that joins them."""
    plans = [bnfold.inspect(random_rejoined.of_seed(seed)) for seed in range(3000, 3300)]
    parts, joins = ("Split", "Slice", "Gather"), ("Concat", "Add", "Sub", "Sum", "Mul")
    both: Counter[str] = Counter()
    for fold_ in (fold_ for plan in plans for fold_ in plan.folds):
        if all(any(name.startswith(kinds) for name in fold_.path) for kinds in (parts, joins)):
            both[fold_.direction] += 1
    assert both["backward"] >= 20, both
    assert both["forward"] >= 10, both


def test_what_comes_by_the_second_way_is_not_lost_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an end took only what the last way brings, the models would show it."""
    monkeypatch.setattr(backward, "_joined", lambda found, _: dict(found))
    wrong = 0
    for seed in range(100):
        try:
            fold(random_rejoined.of_seed(seed))
        except AssertionError:
            wrong += 1
    assert wrong > 1


def test_the_comparison_can_fail() -> None:
    """A shift that is off by one part in 10^8 is seen."""

    model = next(model for model in map(of_seed, range(100)) if len(bnfold.inspect(model).folds) > 2)
    bn = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    for tensor in broken.graph.initializer:
        if tensor.name == bn.input[2]:
            array = numpy_helper.to_array(tensor) + 1e-8
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(AssertionError, match="off by"):
        check_values(model, broken, random_feeds(model))
