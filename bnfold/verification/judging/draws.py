"""Outputs held against the noise of the original: one draw of it, a few, and more where these leave a verdict close.

One draw decides only in favour of outputs within a third of the limit. To let one pass that is beyond the limit
it would have to be three times too large by chance, which is rarer than that the median of a few, which decides up to
half of the limit, is twice too large. Of fewer than four numbers, all samples together, chance makes much, and one draw
decides nothing. Where the other gates prove the fold, outputs that pass by one draw confirm it: more draws could find
no more than that the outputs do not tell, which would not be the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.judging.comparing import Compared
from bnfold.verification.judging.gate import NOISE_LIMIT, Evidence, Oracle, deserves_more_draws, judge
from bnfold.verification.judging.noise import DRAWS, MORE_DRAWS, Shift

Shifts = dict[str, list[list[Shift]]]
"""For each output, for each draw, how it moved on each sample."""

_ENOUGH_NUMBERS = 4


def judge_by_draws(
    compared: Mapping[str, Compared],
    draw: Callable[[range, Shifts], tuple[Collection[str], str]],
    oracles: Mapping[str, Sequence[Oracle]],
    *,
    proved: bool = False,
) -> tuple[tuple[OutputMetrics, ...], int]:
    """Metrics and verdict of every output, and the number of draws behind them.

    Args:
        compared: The outputs.
        draw: Runs the copies of these numbers and adds how they moved; gives the outputs that no parameter leads to,
            and why the copies do not run, "" if they do.
        oracles: For each output the distances from the truth, where something tells the truth.
        proved: Whether the other gates prove the fold.
    """
    shifts: Shifts = {name: [] for name in compared}
    outputs: tuple[OutputMetrics, ...] = ()
    for draws in (range(1), range(1, DRAWS), range(DRAWS, DRAWS + MORE_DRAWS)):
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
        is_plain = _passes if proved else _is_plain
        enough = all(map(is_plain, outputs)) if draws.stop == 1 else not any(map(deserves_more_draws, outputs))
        if failure or enough:
            break
    return outputs, max(map(len, shifts.values()), default=0)


def _passes(output: OutputMetrics) -> bool:
    return output.verdict is Verdict.PASS


def _is_plain(output: OutputMetrics) -> bool:
    """Whether one draw is enough: the output passes, and well, by more than a few numbers."""
    if math.prod(output.shape) * output.samples < _ENOUGH_NUMBERS:
        return False
    ratios = (output.noise_ratio, output.float64_ratio)
    return _passes(output) and all(ratio is None or ratio <= NOISE_LIMIT / 3 for ratio in ratios)
