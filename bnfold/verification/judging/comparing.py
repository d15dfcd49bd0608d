"""The outputs of two models, compared one by one, and judged where no noise is needed for that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bnfold.errors import UsageError
from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.judging.gate import Evidence, judge
from bnfold.verification.judging.metrics import Comparison, compare, within_tolerance
from bnfold.verification.judging.structured_outputs import count_of

Results = Mapping[str, object]
"""Outputs of one run, by name."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What the caller accepts instead of the noise ratio: |folded − original| ≤ atol + rtol·|original|."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g} and atol {self.atol:g}"

    @staticmethod
    def of(rtol: float | None, atol: float | None) -> Tolerances | None:
        """What the caller accepts; None if he says nothing.

        Raises:
            UsageError: One of the two is negative or not finite.
        """
        if rtol is None and atol is None:
            return None
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}", hint="A tolerance is a finite number, 0 or more.")
        return Tolerances(rtol or 0.0, atol or 0.0)


@dataclass(frozen=True, slots=True)
class Compared:
    """One output over all samples.

    Attributes:
        comparisons: One for each sample.
        within: Whether the caller's tolerances hold, for each sample; empty where there are none.
    """

    comparisons: tuple[Comparison, ...]
    within: tuple[bool, ...]


def compare_results(
    references: Sequence[Results], found: Iterable[Results], tolerances: Tolerances | None
) -> dict[str, Compared]:
    """Compare every output of the folded model with the original's.

    Args:
        references: What the original gave, for each sample.
        found: What the folded model gave, for each sample.
        tolerances: What the caller accepts, or None.

    Returns:
        An entry for each output of either model.
    """
    names = list(dict.fromkeys(name for reference in references for name in reference))
    comparisons: dict[str, list[Comparison]] = {name: [] for name in names}
    within: dict[str, list[bool]] = {name: [] for name in names}
    added: dict[str, Compared] = {}
    for reference, results in zip(references, found, strict=True):
        for name in names:
            if count_of(name) in reference and (name not in reference or name not in results):
                comparisons[name].append(Comparison())  # how long the sequence is, is compared by itself
                continue
            expected = reference[name]
            if name not in results:
                comparisons[name].append(Comparison(mismatch="is missing from the folded model"))
                continue
            comparisons[name].append(compare(expected, results[name]))
            if tolerances is not None:
                within[name].append(within_tolerance(expected, results[name], tolerances.rtol, tolerances.atol))
        for name in results:
            if name not in comparisons and count_of(name) not in comparisons:
                added[name] = Compared((Comparison(mismatch="is not an output of the original"),), ())
    return {name: Compared(tuple(comparisons[name]), tuple(within[name])) for name in comparisons} | added


def metrics_only(compared: Mapping[str, Compared]) -> tuple[OutputMetrics, ...]:
    """The metrics of every output, without a verdict."""
    judged = (judge(Evidence(name, runs.comparisons, noise_failure="nobody asked")) for name, runs in compared.items())
    return tuple(replace(output, verdict=Verdict.SKIPPED, reason="") for output in judged)


def judge_without_noise(
    compared: Mapping[str, Compared], tolerances: Tolerances | None, random_node: str
) -> tuple[OutputMetrics, ...]:
    """Metrics and verdict of every output by what the caller accepts.

    Args:
        compared: The outputs.
        tolerances: What the caller accepts, or None.
        random_node: A node that draws random numbers, so that nothing can be told; "" where there is none.
    """
    return tuple(
        judge(Evidence(name, runs.comparisons, (), runs.within, str(tolerances), random_node=random_node))
        for name, runs in compared.items()
    )
