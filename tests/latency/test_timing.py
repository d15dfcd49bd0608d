"""Taking turns, on a clock that only the calls move."""

import pytest

from bnfold.latency.timing import MIN_ROUNDS, ROUNDS, interleave


class Machine:
    """A clock, and models whose calls move it; notes who ran."""

    def __init__(self):
        self.now_s = 0.0
        self.ran = []

    def clock(self):
        return self.now_s

    def model(self, name, duration_s):
        """A model whose n-th call takes `duration_s(n)` seconds, or always the same."""
        count = iter(range(10**9))

        def call():
            number = next(count)
            self.ran.append(name)
            self.now_s += duration_s(number) if callable(duration_s) else duration_s

        return call

    def blocks(self):
        """Who ran, and how often in a row."""
        found = []
        for name in self.ran:
            if found and found[-1][0] == name:
                found[-1][1] += 1
            else:
                found.append([name, 1])
        return [tuple(entry) for entry in found]


def test_durations_are_those_of_the_clock():
    machine = Machine()
    rounds = interleave(machine.model("a", 0.003), machine.model("b", 0.002), 3.0, clock=machine.clock)
    assert len(rounds) in (ROUNDS, ROUNDS + 1, ROUNDS + 2)
    for each in rounds:
        assert each.original_s == pytest.approx([0.003] * len(each.original_s))
        assert each.folded_s == pytest.approx([0.002] * len(each.folded_s))


def test_each_model_gets_the_time_that_was_asked_for():
    machine = Machine()
    interleave(machine.model("a", 0.003), machine.model("b", 0.002), 3.0, clock=machine.clock)
    spent_s = {"a": machine.ran.count("a") * 0.003, "b": machine.ran.count("b") * 0.002}
    assert spent_s["a"] == pytest.approx(3.0, rel=0.1)
    assert spent_s["b"] == pytest.approx(3.0, rel=0.1)


def test_the_model_that_goes_first_alternates():
    machine = Machine()
    rounds = interleave(machine.model("a", 1.0), machine.model("b", 1.0), 1.0, clock=machine.clock)
    # Warm-up of two calls each, then a b, b a, a b …, one call a block.
    assert len(rounds) == MIN_ROUNDS
    assert "".join(machine.ran) == "aabb" + "abba" * (MIN_ROUNDS // 2)


def test_the_first_call_of_a_block_is_not_counted():
    machine = Machine()
    rounds = interleave(machine.model("a", 2**-7), machine.model("b", 2**-7), 3.0, clock=machine.clock)
    counted = len(rounds[0].original_s)
    assert counted == 10  # 2.4 s in 30 blocks of 0.08 s
    assert machine.blocks()[2] == ("a", counted + 1)


def test_warm_up_is_not_counted():
    machine = Machine()

    def cold(number):
        return 5.0 if number == 0 else 0.01

    rounds = interleave(machine.model("a", cold), machine.model("b", 0.01), 1.0, clock=machine.clock)
    assert max(duration for each in rounds for duration in each.original_s) == pytest.approx(0.01)


def test_a_slow_model_still_gets_enough_rounds():
    machine = Machine()
    rounds = interleave(machine.model("a", 100.0), machine.model("b", 1.0), 3.0, clock=machine.clock)
    assert len(rounds) == MIN_ROUNDS
    assert machine.ran.count("a") == 2 + MIN_ROUNDS


def test_a_clock_that_stands_still_for_a_call_ends():
    machine = Machine()
    steps = {"count": 0}

    def coarse():
        # Every thousandth look shows a millisecond more: most calls seem to take no time.
        steps["count"] += 1
        return steps["count"] // 1000 / 1000

    rounds = interleave(machine.model("a", 0.0), machine.model("b", 0.0), 0.1, clock=coarse)
    assert len(rounds) >= MIN_ROUNDS
