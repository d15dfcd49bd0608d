"""What a measurement found: per batch size, both latencies and their ratio; and where that was found."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass

from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.pair import Setting
from bnfold.report.finite import JsonValue, to_json_value
from bnfold.report.records import InputInfo
from bnfold.version import __version__

SCHEMA = "bnfold.bench/1"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models at one batch size.

    Attributes:
        batch: The batch size that was asked for; None if none was.
        inputs: What both were fed.
        original: Latency of the original.
        folded: Latency of the folded model.
        ratio: The one over the other.
    """

    batch: int | None
    inputs: tuple[InputInfo, ...]
    original: Latency
    folded: Latency
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class Timing:
    """What `benchmark` returns. It is about speed alone: nothing says that the outputs match.

    Attributes:
        original: What the original is called: its path, or words.
        folded: What the folded model is called.
        setting: Where both ran.
        seed: Seed of the inputs.
        seconds: Time for each model and batch size that was asked for.
        comparisons: One entry for each batch size.
    """

    original: str
    folded: str
    setting: Setting
    seed: int
    seconds: float
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """The document under schema "bnfold.bench/1"; durations in seconds, every number finite."""
        return {
            "schema": SCHEMA,
            "tool": {"version": __version__, "python": platform.python_version()},
            "original": self.original,
            "folded": self.folded,
            "verified": False,
            "setting": to_json_value(self.setting),
            "config": {"seed": self.seed, "seconds": self.seconds},
            "comparisons": [_entry(comparison) for comparison in self.comparisons],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=2, ensure_ascii=False)


def _entry(comparison: Comparison) -> dict[str, JsonValue]:
    return {
        "batch": comparison.batch,
        "inputs": to_json_value(comparison.inputs),
        "original": to_json_value(comparison.original),
        "folded": to_json_value(comparison.folded),
        "ratio": {
            "median": comparison.ratio.median,
            "low": comparison.ratio.low,
            "high": comparison.ratio.high,
            "confidence": comparison.ratio.confidence,
            "within_noise": comparison.ratio.within_noise,
            "rounds": list(comparison.ratio.rounds),
        },
    }
