"""How long the phases of a verification take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bnfold.text.progress import begin

_WORDS = {
    "original_session": "loading the original",
    "inputs": "finding inputs",
    "original_runs": "running the original",
    "sites": "measuring the folded layers",
    "original_again": "running the original",
    "folded_session": "loading the folded model",
    "folded_runs": "running the folded model",
    "as_deployed": "running the folded model as deployed",
    "noise": "measuring the rounding noise",
}
"""What is said of a phase when it begins."""


@dataclass(slots=True)
class Clock:
    """Durations of phases in seconds.

    Attributes:
        timings_s: The durations.
    """

    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Times what is done under it."""
        if phase in _WORDS:
            begin(_WORDS[phase])
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[phase] = time.perf_counter() - start
