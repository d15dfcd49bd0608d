"""The arithmetic of the outputs gate, on evidence written by hand."""

import math

import numpy as np
import pytest

from bnfold.report import Site, Verdict
from bnfold.verification.judging.comparing import Tolerances, compare_results, judge_without_noise
from bnfold.verification.judging.gate import Evidence, deserves_more_draws, judge
from bnfold.verification.judging.metrics import compare, within_tolerance
from bnfold.verification.judging.noise import Shift, shift_between
from bnfold.verification.judging.sites import SitesOutcome, worst_of
from bnfold.verification.judging.structured_outputs import is_part_of, leaves


def evidence(differences, noises, *, signal=1.0, **options):
    """Samples of one float32 number each: `differences` a sample, `noises` a draw of the same for every sample."""
    original = np.array([signal], np.float64).astype(np.float32)
    comparisons = [compare(original, (original + difference).astype(np.float32)) for difference in differences]
    shifts = [[Shift(noise, changed=False)] * len(differences) for noise in noises]
    return Evidence("y", comparisons, shifts, **options)


STEP = 2.0**-20


@pytest.mark.parametrize(
    ("times", "verdict"), [(0, Verdict.PASS), (1, Verdict.PASS), (4, Verdict.PASS), (5, Verdict.FAIL)]
)
def test_the_limit_is_four_times_the_median_of_the_noise(times, verdict):
    output = judge(evidence([times * STEP] * 2, [0.0, STEP, STEP, 50 * STEP]))
    assert output.noise_ratio == times
    assert output.verdict is verdict


def test_no_output_is_asked_to_be_closer_than_a_rounding_of_itself():
    unit = 2.0**-24
    assert judge(evidence([2 * unit], [unit / 100] * 4)).noise_ratio == 2
    assert judge(evidence([64 * unit], [unit / 100] * 4)).verdict is Verdict.FAIL


def test_samples_count_together():
    output = judge(evidence([3 * STEP, 4 * STEP], [STEP] * 4))
    assert output.noise_ratio == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(("share", "verdict"), [(0.1, Verdict.PASS), (0.11, Verdict.INCONCLUSIVE)])
def test_noise_above_a_tenth_of_the_signal_says_nothing(share, verdict):
    assert judge(evidence([0.0], [share] * 4)).verdict is verdict


def test_zero_against_zero_is_no_difference_and_against_more_is_one():
    quiet = evidence([0.0], [0.0], signal=0.0, has_parameters=False)
    assert judge(quiet).verdict is Verdict.PASS
    assert judge(quiet).noise_ratio == 0
    loud = judge(evidence([1.0], [0.0] * 4, signal=0.0))
    assert loud.verdict is Verdict.FAIL
    assert "is zero in the original" in loud.reason


def test_a_ratio_near_the_limit_or_above_asks_for_more_draws():
    ratios = {1.9: False, 3.0: True, 30.0: True, 1000.0: True}
    for ratio, close in ratios.items():
        assert deserves_more_draws(judge(evidence([ratio * STEP] * 4, [STEP] * 4))) is close
    assert deserves_more_draws(judge(evidence([0.0], [0.0] * 4)))


def test_changes_are_excused_by_noise_that_makes_them_too():
    labels = compare(np.array([1, 2]), np.array([1, 3]))
    still, flips = Shift(0.0, changed=False), Shift(0.0, changed=True)
    assert judge(Evidence("y", [labels], [[still], [still]])).verdict is Verdict.FAIL
    assert judge(Evidence("y", [labels], [[still], [flips]])).verdict is Verdict.INCONCLUSIVE
    same = compare(np.array([1, 2]), np.array([1, 2]))
    assert judge(Evidence("y", [same], [[flips]])).verdict is Verdict.PASS


def test_a_jump_is_excused_by_noise_that_makes_it_too():
    """Two boxes that change places differ by what they are, in the folded model and in a copy of the original."""
    quiet, jumping = [STEP] * 15, [STEP] * 14 + [1000 * STEP]
    assert judge(evidence([1000 * STEP], quiet)).verdict is Verdict.FAIL
    swapped = judge(evidence([1000 * STEP], jumping))
    assert swapped.verdict is Verdict.INCONCLUSIVE
    assert "changes its order" in swapped.reason
    assert judge(evidence([5000 * STEP], jumping)).verdict is Verdict.FAIL
    assert judge(evidence([10 * STEP], jumping)).verdict is Verdict.FAIL


def test_what_may_be_rounding():
    def is_it(first, second, **options):
        return judge(Evidence("y", [compare(first, second)], [[Shift(1e-9, changed=False)]], **options)).may_be_rounding

    one = np.ones(2, np.float32)
    assert is_it(one, 2 * one)
    assert is_it(np.array([1, 2]), np.array([2, 1]))
    assert is_it(one, one[:1])
    assert not is_it(one, one)
    assert not is_it(one, np.array([1, np.nan], np.float32))
    assert not is_it(one, one.astype(np.float16))
    assert not is_it(one, 2 * one, within=[False])
    assert not is_it(0 * one, one)


def test_the_worst_of_several_samples_counts():
    near, far = (Site("a", ("n",), Verdict.PASS, ratio=ratio) for ratio in (1.0, 5.0))
    lost = Site("a", ("n",), Verdict.INCONCLUSIVE)
    other = Site("b", ("n",), Verdict.PASS, ratio=2.0)
    assert worst_of([SitesOutcome((near, other)), SitesOutcome((far,))]).sites == (far, other)
    assert worst_of([SitesOutcome((near,)), SitesOutcome((lost,), "said")]) == SitesOutcome((lost,), "said")


def test_a_shape_that_noise_changes_is_inconclusive():
    same = compare(np.ones(3, np.float32), np.ones(3, np.float32))
    output = judge(Evidence("y", [same], [[Shift(0.1, changed=True)]]))
    assert output.verdict is Verdict.INCONCLUSIVE
    assert "changes the shape" in output.reason


def test_noise_that_could_not_be_measured_is_never_a_pass():
    same = compare(np.ones(3, np.float32), np.ones(3, np.float32))
    output = judge(Evidence("y", [same], noise_failure="no kernel"))
    assert output.verdict is Verdict.INCONCLUSIVE
    assert "no kernel" in output.reason


def test_empty_outputs_compare_nothing():
    empty = compare(np.ones((0, 4), np.float32), np.ones((0, 4), np.float32))
    output = judge(Evidence("boxes", [empty], [[Shift(0.0, changed=False)]]))
    assert output.verdict is Verdict.INCONCLUSIVE
    assert "empty throughout" in output.reason


@pytest.mark.parametrize(
    ("first", "second", "close"),
    [
        (1.0, 1.0 + 1e-3, False),
        (1.0, 1.0 + 1e-5, True),
        (np.nan, np.nan, True),
        (np.nan, 1.0, False),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
    ],
)
def test_tolerances(first, second, close):
    assert within_tolerance(np.array([first]), np.array([second]), 1e-4, 0.0) is close


def test_elements_of_sequences_are_outputs_of_their_own():
    held = leaves({"s": [np.ones(2, np.float32), [np.zeros(3)]], "o": None, "t": np.arange(2)})
    assert {name: np.shape(value) for name, value in held.items()} == {
        "s (length)": (),
        "s[0]": (2,),
        "s[1] (length)": (),
        "s[1][0]": (3,),
        "o": (),
        "t": (2,),
    }
    assert all(is_part_of(name, "s") for name in held if name[0] == "s")
    assert not is_part_of("s2", "s")


def test_maps_of_the_same_keys_are_the_rows_of_a_matrix():
    held = leaves({"p": [{1: 0.25, 2: 0.75}, {1: 0.5, 2: 0.5}], "m": {"a": 0.1}})
    assert np.array_equal(held["p (keys)"], [1, 2])
    assert np.array_equal(held["p"], np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    assert held["p"].dtype == np.float32
    assert held["m"].dtype == np.float64  # what float32 cannot hold stays as it is


def test_elements_of_a_sequence_are_judged_one_by_one():
    """A fault in a small element is not lost beside a large one, and another length is a difference by itself."""
    original = leaves({"s": [np.full(4, 1e3), np.full(4, 1e-3)]})
    for wrong, named in (
        ([np.full(4, 1e3), np.full(4, 1.1e-3)], ["s[1]"]),
        ([np.full(4, 1e3)], ["s (length)"]),
        ([np.full(4, 1e3), np.full(4, 1e-3), np.full(4, 1.0)], ["s (length)"]),
    ):
        compared = compare_results([original], [leaves({"s": wrong})], Tolerances(1e-6, 0.0))
        outputs = judge_without_noise(compared, Tolerances(1e-6, 0.0), "")
        assert [output.name for output in outputs if output.verdict == "fail"] == named


def test_an_optional_that_is_empty_equals_only_itself():
    assert compare(None, None).change == ""
    assert compare(None, np.ones(1)).change
    assert compare(np.ones(1), None).mismatch
    assert shift_between(None, np.ones(1)).changed


def test_rows_agree_where_their_largest_elements_do():
    first = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    second = np.array([[1, 2, 3], [1, 2, 3]], np.float32)
    assert judge(Evidence("y", [compare(first, second)], [[Shift(1e-9, changed=False)]])).top1_agreement == 0.5
