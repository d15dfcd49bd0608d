"""Two functions timed in turns: warm-up, then rounds in which each has one block of calls.

What disturbs a machine (clock rates, other programs) lasts longer than a round, so it disturbs both halves of a round
alike, and the ratio of a round is steadier than either duration. Who goes first alternates, so that a drift over the
rounds cancels. The first call of a block is not counted: it finds the caches full of the other model's weights, as no
call does where a model is deployed alone.

A block has as many calls as fit into a `ROUNDS`th of the time, one at least, so that a slow model is measured in fewer
rounds and a fast one in `ROUNDS` or a few more, with many calls each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

ROUNDS = 30
"""Rounds that the time is divided into."""

MIN_ROUNDS = 6
"""Rounds that are taken however long they last: the fewest whose smallest and largest ratio make a 95 % interval."""

WARM_UP_SHARE = 0.2
"""Part of the time that a model is run without counting."""

MIN_WARM_UP_CALLS = 2
"""The first call of a session allocates and, on a GPU, chooses algorithms; the second may still find a cold cache."""

_MAX_BLOCK_CALLS = 1000

Call = Callable[[], None]
"""One inference; it returns when the result is there."""


@dataclass(frozen=True, slots=True)
class Round:
    """The calls of one round, in seconds each.

    Attributes:
        original_s: Durations of the original's calls.
        folded_s: Durations of the folded model's calls.
    """

    original_s: tuple[float, ...]
    folded_s: tuple[float, ...]


def interleave(
    original: Call, folded: Call, seconds: float, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[Round, ...]:
    """Time two calls in turns.

    Args:
        original: Runs the original once.
        folded: Runs the folded model once.
        seconds: How long each of the two is run, warm-up included; longer only where `MIN_ROUNDS` take longer.
        clock: Time in seconds.
    """
    calls = (original, folded)
    warm_up_s = seconds * WARM_UP_SHARE
    block_s = (seconds - warm_up_s) / ROUNDS
    sizes = tuple(_block_size(_warm_up(call, warm_up_s, clock), block_s) for call in calls)
    rounds: list[Round] = []
    end = clock() + 2 * (seconds - warm_up_s)
    while len(rounds) < MIN_ROUNDS or clock() < end:
        first = len(rounds) % 2
        durations = {index: _block(calls[index], sizes[index], clock) for index in (first, 1 - first)}
        rounds.append(Round(durations[0], durations[1]))
    return tuple(rounds)


def _warm_up(call: Call, seconds: float, clock: Callable[[], float]) -> float:
    """Run for a while; the duration of a warm call in seconds."""
    durations: list[float] = []
    end = clock() + seconds
    while len(durations) < MIN_WARM_UP_CALLS or clock() < end:
        durations.append(_timed(call, clock))
    return median(durations[1:])


def _block_size(call_s: float, block_s: float) -> int:
    if call_s <= 0:
        return _MAX_BLOCK_CALLS
    return min(max(int(block_s / call_s), 1), _MAX_BLOCK_CALLS)


def _block(call: Call, size: int, clock: Callable[[], float]) -> tuple[float, ...]:
    if size > 1:  # a call that fills a block by itself is too long for caches to matter
        call()
    return tuple(_timed(call, clock) for _ in range(size))


def _timed(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
