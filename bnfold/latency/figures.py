"""What is said about measured durations: medians, and how far they can be trusted.

Latencies have long tails to the right, so nothing here assumes a distribution. The spread of a latency is its
interquartile range. The ratio is the median over the rounds of original/folded, each round's from the medians of its
two blocks. Its interval is that of the sign test: between the k-th smallest and the k-th largest of n ratios the true
median lies with a probability of 1 − 2·P(X < k), X binomial with n trials of ½, where the rounds are independent.

What that is worth was tried out with models against themselves on two processors (`bench_selfcheck` does it again).
ResNet-18 at 224 and at 64 pixels and the digits sample, six times 3 s each on a machine with little else to do, gave
ratios of 0.985 to 1.021 (the sample 0.997 to 1.008), and all 18 intervals held 1. With other programs at work, 1.5 s
each, the ratios of models of several threads went from 0.83 to 1.14, with intervals 0.3 wide, of which 19 of 20 held 1.
A chain of small convolutions is hardly disturbed: 30 ratios went from 0.994 to 1.009 with intervals 0.005 wide, but of
the first ten only five held 1. By so much two sessions of one model do differ, each for as long as it lives, depending
on where their memory happens to lie; hence `RESOLUTION`, with which the other twenty were all called as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles

from bnfold.latency.timing import Round

CONFIDENCE = 0.95
"""Least probability of an interval."""

RESOLUTION = 0.01
"""A difference of the ratio from 1 that two sessions of the very same model may show, however long they run."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Durations of one model's calls.

    Attributes:
        median_s: Median in seconds.
        q1_s: First quartile in seconds.
        q3_s: Third quartile in seconds.
        min_s: Shortest in seconds.
        max_s: Longest in seconds.
        calls: Number of calls.
    """

    median_s: float
    q1_s: float
    q3_s: float
    min_s: float
    max_s: float
    calls: int

    @property
    def iqr_s(self) -> float:
        """Interquartile range in seconds: the middle half of the calls lies within."""
        return self.q3_s - self.q1_s

    @staticmethod
    def of(durations_s: Sequence[float]) -> Latency:
        """Describe at least two durations."""
        first, middle, third = quantiles(durations_s, n=4, method="inclusive")
        return Latency(middle, first, third, min(durations_s), max(durations_s), len(durations_s))


@dataclass(frozen=True, slots=True)
class Ratio:
    """The original's latency over the folded model's: above 1, the folded model is faster.

    Attributes:
        median: Median over the rounds.
        low: Lower end of the interval of the median.
        high: Upper end of the interval.
        confidence: Probability of the interval, at least `CONFIDENCE` from 6 rounds on.
        rounds: The ratio of each round, in order.
    """

    median: float
    low: float
    high: float
    confidence: float
    rounds: tuple[float, ...]

    @property
    def within_noise(self) -> bool:
        """Whether the interval comes within `RESOLUTION` of 1, so that neither model was seen to be faster."""
        return self.low - RESOLUTION <= 1 <= self.high + RESOLUTION

    @staticmethod
    def of(rounds: Sequence[Round]) -> Ratio:
        """Describe at least one round."""
        return Ratio.of_ratios([median(each.original_s) / median(each.folded_s) for each in rounds])

    @staticmethod
    def of_ratios(ratios: Sequence[float]) -> Ratio:
        """Describe at least one ratio, such as those of all rounds of several measurements."""
        ordered = sorted(ratios)
        rank, confidence = _sign_interval(len(ordered))
        return Ratio(median(ordered), ordered[rank - 1], ordered[-rank], confidence, tuple(ratios))


def _sign_interval(number: int) -> tuple[int, float]:
    """The largest k that keeps the interval from the k-th smallest to the k-th largest at `CONFIDENCE`; and what it is.

    Where there are too few, k is 1: the whole range.
    """

    def confidence(rank: int) -> float:
        return 1 - 2 * sum(comb(number, below) for below in range(rank)) / (1 << number)

    rank = 1
    while 2 * rank < number and confidence(rank + 1) >= CONFIDENCE:
        rank += 1
    return rank, confidence(rank)
