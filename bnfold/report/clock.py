"""How long the phases of a verification take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """Durations of phases in seconds."""

    timings_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Times what is done under it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[phase] = time.perf_counter() - start
