"""What a measurement found: per batch size, both latencies and their ratio; and where that was found."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass

from bnfold.latency.figures import Latency, Ratio
from bnfold.latency.pair import Setting
from bnfold.report.finite import JsonValue, to_json_value
from bnfold.report.records import InputInfo
from bnfold.text.tables import Block, as_html, as_text, duration, plural
from bnfold.version import __version__

SCHEMA = "bnfold.bench/1"

_DEVICE_NAMES = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}
_OPTIMIZATIONS = {"all": "all optimisations on", "eager": "eager"}


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


@dataclass(frozen=True, slots=True, repr=False)
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

    def summary(self) -> str:
        """Several lines: where both ran, and a table with a row for each batch size."""
        return as_text(self.blocks())

    def blocks(self) -> list[Block]:
        """The lines of `summary`, with its table as a table."""
        header = ("batch", "original", "IQR", "folded", "IQR", "original/folded", "interval", "rounds", "folded is")
        confidence = min(comparison.ratio.confidence for comparison in self.comparisons)
        fell_back = self.setting.fell_back
        return [
            _where(self.setting),
            *([f"not on a GPU: {fell_back}"] if fell_back else []),
            "",
            [header, *map(_row, self.comparisons)],
            "",
            f"median latencies with interquartile range; the ratio is the median of {_counts(self.comparisons)} rounds,"
            f" with its {confidence:.0%} interval and the range over the rounds",
            "only speed was compared: whether the outputs match is for `bnfold verify` to say",
        ]

    def headline(self) -> str:
        """One line: how many times as fast the folded model is, with the interval, and where."""
        ratios = ", ".join(
            f"{'' if each.batch is None else f'batch {each.batch} '}{each.ratio.median:.3f}"
            f" ({each.ratio.low:.3f}-{each.ratio.high:.3f})"
            for each in self.comparisons
        )
        return f"original/folded {ratios} on {_DEVICE_NAMES.get(self.setting.used, self.setting.used)}"

    def __repr__(self) -> str:
        return f"<Timing: {self.headline()}>"

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


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


def _where(setting: Setting) -> str:
    details = [setting.provider] if setting.provider else []
    details += [setting.name, *(["TF32 on"] if setting.tf32 else [])]
    threads = "default threads" if setting.threads is None else plural(setting.threads, "thread")
    device = _DEVICE_NAMES.get(setting.used, setting.used)
    return (
        f"{setting.runtime} {setting.version} on {device} ({', '.join(details)}),"
        f" {threads} on {plural(setting.cpus, 'processor')}, {_OPTIMIZATIONS[setting.optimizations]}"
    )


def _row(comparison: Comparison) -> tuple[str, ...]:
    ratio = comparison.ratio
    return (
        "-" if comparison.batch is None else str(comparison.batch),
        *_latency(comparison.original),
        *_latency(comparison.folded),
        f"{ratio.median:.3f}",
        f"{ratio.low:.3f}-{ratio.high:.3f}",
        f"{min(ratio.rounds):.3f}-{max(ratio.rounds):.3f}",
        "as fast, up to noise" if ratio.within_noise else "faster" if ratio.median > 1 else "slower",
    )


def _latency(latency: Latency) -> tuple[str, str]:
    return duration(latency.median_s), duration(latency.iqr_s)


def _counts(comparisons: tuple[Comparison, ...]) -> str:
    counts = sorted({len(comparison.ratio.rounds) for comparison in comparisons})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
