"""Outputs held against the noise of the original: a few draws of it, and more where these leave a verdict close."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from bnfold.report.records import OutputMetrics
from bnfold.verification.judging.comparing import Compared
from bnfold.verification.judging.gate import Evidence, Oracle, deserves_more_draws, judge
from bnfold.verification.judging.noise import DRAWS, MORE_DRAWS, Shift

Shifts = dict[str, list[list[Shift]]]
"""For each output, for each draw, how it moved on each sample."""


def judge_by_draws(
    compared: Mapping[str, Compared],
    draw: Callable[[range, Shifts], tuple[Collection[str], str]],
    oracles: Mapping[str, Sequence[Oracle]],
) -> tuple[tuple[OutputMetrics, ...], int]:
    """Metrics and verdict of every output, and the number of draws behind them.

    Args:
        compared: The outputs.
        draw: Runs the copies of these numbers and adds how they moved; gives the outputs that no parameter leads to,
            and why the copies do not run, "" if they do.
        oracles: For each output the distances from the truth, where something tells the truth.
    """
    shifts: Shifts = {name: [] for name in compared}
    outputs: tuple[OutputMetrics, ...] = ()
    for draws in (range(DRAWS), range(DRAWS, DRAWS + MORE_DRAWS)):
        deaf, failure = draw(draws, shifts)
        outputs = tuple(
            judge(
                Evidence(
                    name,
                    runs.comparisons,
                    shifts[name],
                    has_parameters=name not in deaf,
                    noise_failure=failure,
                    oracle=oracles.get(name, ()),
                )
            )
            for name, runs in compared.items()
        )
        if failure or not any(map(deserves_more_draws, outputs)):
            break
    return outputs, max(map(len, shifts.values()), default=0)
