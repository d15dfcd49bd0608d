"""Medians and intervals, against their definitions."""

import numpy as np
import pytest

from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.timing import Round


def rounds_with(ratios):
    """Rounds of one call each, with these ratios."""
    return [Round((ratio,), (1.0,)) for ratio in ratios]


def test_quartiles_are_those_of_numpy():
    durations = np.random.default_rng(0).lognormal(size=101)
    latency = Latency.of(list(durations))
    assert (latency.q1_s, latency.median_s, latency.q3_s) == pytest.approx(
        tuple(np.percentile(durations, [25, 50, 75]))
    )
    assert latency.iqr_s == pytest.approx(latency.q3_s - latency.q1_s)
    assert (latency.min_s, latency.max_s, latency.calls) == (durations.min(), durations.max(), 101)


def test_a_ratio_is_the_median_over_rounds_of_medians():
    rounds = [
        Round((2.0, 2.0, 50.0), (1.0, 1.0, 1.0)),  # 2: a call that was disturbed does not count
        Round((30.0, 30.0, 30.0), (10.0, 10.0, 10.0)),  # 3: a slow machine slows both
        Round((4.0, 4.0, 4.0), (1.0, 1.0, 1.0)),  # 4
    ]
    ratio = Ratio.of(rounds)
    assert ratio.rounds == (2.0, 3.0, 4.0)
    assert ratio.median == 3.0


@pytest.mark.parametrize(
    # Ranks from a table of the sign test at 95 %, and their exact levels.
    ("number", "rank", "confidence"),
    [(6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.958611), (30, 10, 0.957226)],
)
def test_the_interval_is_that_of_the_sign_test(number, rank, confidence):
    ratios = np.random.default_rng(number).permutation(np.arange(1.0, number + 1))
    ratio = Ratio.of(rounds_with(ratios))
    assert (ratio.low, ratio.high) == (rank, number + 1 - rank)
    assert ratio.confidence == pytest.approx(confidence, abs=1e-6)


def test_too_few_rounds_say_how_little_they_are_worth():
    assert Ratio.of(rounds_with([2.0])).confidence == 0
    five = Ratio.of(rounds_with([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (five.low, five.high, five.confidence) == (1.0, 5.0, 0.9375)


def test_the_interval_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits, trials = 0, 2000
    for _ in range(trials):
        ratio = Ratio.of(rounds_with(rng.lognormal(mean=0.3, sigma=0.1, size=25)))
        hits += ratio.low <= np.exp(0.3) <= ratio.high
    # 25 rounds give 95.7 %; four standard deviations of 2000 trials are 1.8 %.
    assert hits / trials == pytest.approx(ratio.confidence, abs=0.018)


@pytest.mark.parametrize(
    ("ratios", "within_noise"),
    [
        ([0.98, 1.01, 1.02, 0.99, 1.0, 1.03], True),
        ([1.012, 1.02, 1.05, 1.02, 1.02, 1.03], False),
        ([0.91, 0.92, 0.95, 0.91, 0.92, 0.988], False),
        # However narrow the interval, two sessions of one model differ by that much.
        ([1.007, 1.007, 1.008, 1.007, 1.007, 1.007], True),
        ([0.993, 0.993, 0.993, 0.993, 0.992, 0.993], True),
    ],
)
def test_noise_is_told_from_a_difference(ratios, within_noise):
    assert Ratio.of(rounds_with(ratios)).within_noise is within_noise


def test_the_rounds_of_several_measurements_are_put_together():
    first, second = Ratio.of(rounds_with([1.0, 3.0, 5.0])), Ratio.of(rounds_with([2.0, 4.0, 6.0]))
    both = Ratio.of_ratios([*first.rounds, *second.rounds])
    assert (both.median, both.low, both.high, both.confidence) == (3.5, 1.0, 6.0, 0.96875)
    assert both.rounds == (1.0, 3.0, 5.0, 2.0, 4.0, 6.0)
