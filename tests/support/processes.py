"""Whole processes, timed from outside by what the system accounts to them, in turns."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Usage:
    """What one process took.

    Attributes:
        cpu_s: Processor time of all its threads, that of the system included.
        wall_s: From its start to its end.
        peak_mb: Its resident set at its largest.
        good: Whether it left with 0.
        printed: What it printed last.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float
    good: bool
    printed: str


def run(code: str) -> Usage:
    """Runs Python code in a process of its own, with bytecode that is kept, as after an installation."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=tempfile.gettempdir(),  # in a checkout its files would be imported in the place of those installed
        text=True,
    )
    printed = process.stdout.read().rstrip().rpartition("\n")[2]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    return Usage(cpu_s, time.perf_counter() - start, usage.ru_maxrss / 1000, process.returncode == 0, printed)


def in_turns(codes: Mapping[str, str], rounds: int, before: Callable[[], None]) -> dict[str, list[Usage]]:
    """Runs several pieces of code in turns, once without counting; those that fail at first are left out.

    Args:
        codes: Python code by name.
        rounds: How often each counts.
        before: Called before every run.
    """
    found: dict[str, list[Usage]] = {}
    for number in range(rounds + 1):
        for name, code in codes.items():
            if number and name not in found:
                continue
            before()
            usage = run(code)
            if usage.good:
                found.setdefault(name, []).append(usage)
    return {name: runs[1:] or runs for name, runs in found.items()}


def ratio(ours: list[Usage], theirs: list[Usage], figure: str) -> float:
    """The median of the ratios of neighbouring runs: a machine whose speed drifts moves both."""
    return median(
        getattr(our, figure) / max(1e-9, getattr(their, figure)) for our, their in zip(ours, theirs, strict=True)
    )
