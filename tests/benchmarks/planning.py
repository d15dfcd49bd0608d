"""How the time to plan grows with the number of nodes, on residual streams.

    python tests/benchmarks/planning.py [--rounds 5]

The streams of `tests/streams.py`, neutral nodes made without any model: pre-activation (each branch is BN, Relu, conv,
and reads a value that goes on), post-activation (conv, BN, Add, Relu), two in which the shift of every BN travels down
the whole stream, to be stopped at its end or to go into a conv there, and one in which a scale goes back into every
branch. The best of the rounds counts.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
from streams import STREAMS

from bnfold.graph import Graph
from bnfold.planning import planner

SIZES = (500, 1000, 2000, 5000)


def best_duration_s(make: Callable[[int], Graph], nodes: int, rounds: int) -> float:
    durations_s = []
    for _ in range(rounds):
        graph = make(nodes)
        start = time.perf_counter()
        planner.plan(graph, merge=True)
        durations_s.append(time.perf_counter() - start)
    return min(durations_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"| stream | {' | '.join(f'{size} nodes' for size in SIZES)} | time per node, last to first |")
    print(f"|---|{'---|' * (len(SIZES) + 1)}")
    for name, make in STREAMS.items():
        durations_s = [best_duration_s(make, size, arguments.rounds) for size in SIZES]
        growth = (durations_s[-1] / SIZES[-1]) / (durations_s[0] / SIZES[0])
        print(f"| {name} | {' | '.join(f'{duration * 1e3:.0f} ms' for duration in durations_s)} | {growth:.2f} |")


if __name__ == "__main__":
    main()
