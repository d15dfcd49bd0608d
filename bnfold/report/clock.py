"""How long the phases of a verification take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from bnfold.text.progress import Progress, telling

_Item = TypeVar("_Item")

_WORDS = {
    "original_session": "loading the original",
    "inputs": "finding inputs",
    "original_runs": "running the original",
    "sites": "measuring the folded layers",
    "original_again": "running the original",
    "folded_session": "loading the folded model",
    "folded_runs": "running the folded model",
    "as_deployed": "running the folded model as deployed",
    "noise": "measuring the rounding noise of the original",
}
"""What is said of a phase when it begins."""


@dataclass(slots=True)
class Clock:
    """Durations of phases in seconds.

    Attributes:
        progress: Told, in words, which phase begins.
        timings_s: The durations.
    """

    progress: Progress | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    _words: str = ""

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Times what is done under it."""
        if phase in _WORDS:
            self._words = _WORDS[phase]
            telling(self.progress)(self._words)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[phase] = time.perf_counter() - start

    def each(self, items: Sequence[_Item]) -> Iterator[_Item]:
        """The items that a phase goes through, with the number of each told when its turn comes."""
        for number, item in enumerate(items, start=1):
            telling(self.progress)(f"{self._words}, sample {number} of {len(items)}")
            yield item
