"""How many draws of the noise an output gets: as many as its distance leaves a question."""

import numpy as np
import pytest

from bnfold.report.records import Verdict
from bnfold.verification.judging.comparing import Compared
from bnfold.verification.judging.draws import judge_by_draws
from bnfold.verification.judging.metrics import compare
from bnfold.verification.judging.noise import Shift

NOISE = 1e-4


def judged(ratio: float, noises: list[float], numbers: int = 4, *, proved: bool = False) -> tuple[Verdict, int]:
    """An output that is `ratio` times as far off as the usual noise, under draws of these sizes, then of the usual."""
    original = np.ones(numbers, np.float32)
    folded = original + np.float32(ratio * NOISE / 2)
    compared = {"y": Compared((compare(original, folded),), ())}

    def draw(draws: range, shifts: dict) -> tuple[list[str], str]:
        shifts["y"] += [[Shift([*noises, *[NOISE] * 16][number], changed=False)] for number in draws]
        return [], ""

    (output,), draws = judge_by_draws(compared, draw, {}, proved=proved)
    return output.verdict, draws


@pytest.mark.parametrize(
    ("ratio", "noises", "verdict", "draws"),
    [
        (0.5, [], Verdict.PASS, 1),
        (1.3, [], Verdict.PASS, 1),
        (1.4, [], Verdict.PASS, 4),
        (3, [], Verdict.PASS, 16),
        (5, [], Verdict.FAIL, 16),
        (100, [], Verdict.FAIL, 16),  # what is nearly equal may change its order in some draws alone
        (1, [NOISE / 8], Verdict.PASS, 4),  # a draw that is too small by chance fails nothing
        (5, [3 * NOISE], Verdict.FAIL, 16),  # one that is too large lets nothing pass
        (5, [0.0], Verdict.FAIL, 16),
    ],
)
def test_draws_are_made_until_a_verdict_is_plain(ratio: float, noises: list, verdict: Verdict, draws: int) -> None:
    assert judged(ratio, noises) == (verdict, draws)


def test_of_a_few_numbers_one_draw_decides_nothing() -> None:
    assert judged(0.5, [], numbers=3) == (Verdict.PASS, 4)


@pytest.mark.parametrize(
    ("ratio", "noises", "verdict", "draws"),
    [(3, [], Verdict.PASS, 1), (5, [], Verdict.FAIL, 16), (3, [0.0], Verdict.PASS, 16)],
)
def test_outputs_of_a_proved_fold_confirm_it_by_one_draw(
    ratio: float, noises: list, verdict: Verdict, draws: int
) -> None:
    assert judged(ratio, noises, numbers=3, proved=True) == (verdict, draws)
