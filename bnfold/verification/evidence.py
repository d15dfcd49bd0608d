"""What the outputs gate judges: runs of the folded model, and of the original under rounding noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bnfold.onnx.load import OnnxModel
from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.devices import Device
from bnfold.verification.feeds import Feed
from bnfold.verification.gate import Evidence, deserves_more_draws, judge
from bnfold.verification.metrics import Comparison, compare, within_tolerance
from bnfold.verification.noise import DRAWS, MORE_DRAWS, Shift, perturbed_runs, shift_between
from bnfold.verification.parameters import OpenModel, open_model
from bnfold.verification.randomness import find_random_node
from bnfold.verification.runtimes import RuntimeFailure, Session

Results = Mapping[str, object]
"""Outputs of one run, by name."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What the caller accepts instead of the noise ratio: |folded − original| ≤ atol + rtol·|original|."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g} and atol {self.atol:g}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the original did.

    Attributes:
        model: The original.
        device: Where it ran.
        seed: The caller's seed.
        feeds: The samples.
        references: What the original gave, for each sample.
    """

    model: OnnxModel
    device: Device
    seed: int
    feeds: Sequence[Feed]
    references: Sequence[Results]


@dataclass(frozen=True, slots=True)
class Compared:
    """One output over all samples.

    Attributes:
        comparisons: One for each sample.
        within: Whether the caller's tolerances hold, for each sample; empty where there are none.
    """

    comparisons: tuple[Comparison, ...]
    within: tuple[bool, ...]


def compare_runs(session: Session, baseline: Baseline, tolerances: Tolerances | None) -> dict[str, Compared]:
    """Run the folded model and compare every output with the original's.

    Args:
        session: The folded model.
        baseline: What the original did.
        tolerances: What the caller accepts, or None.

    Returns:
        An entry for each output of either model.

    Raises:
        RuntimeFailure: The folded model does not run.
    """
    return compare_results(baseline.references, map(session.run, baseline.feeds), tolerances)


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
    comparisons: dict[str, list[Comparison]] = {name: [] for name in references[0]}
    within: dict[str, list[bool]] = {name: [] for name in references[0]}
    added: dict[str, Compared] = {}
    for reference, results in zip(references, found, strict=True):
        for name, expected in reference.items():
            if name not in results:
                comparisons[name].append(Comparison(mismatch="is missing from the folded model"))
                continue
            comparisons[name].append(compare(expected, results[name]))
            if tolerances is not None:
                within[name].append(within_tolerance(expected, results[name], tolerances.rtol, tolerances.atol))
        for name in results:
            if name not in comparisons:
                added[name] = Compared((Comparison(mismatch="is not an output of the original"),), ())
    return {name: Compared(tuple(comparisons[name]), tuple(within[name])) for name in comparisons} | added


def metrics_only(compared: Mapping[str, Compared]) -> tuple[OutputMetrics, ...]:
    """The metrics of every output, without a verdict."""
    judged = (judge(Evidence(name, runs.comparisons, noise_failure="nobody asked")) for name, runs in compared.items())
    return tuple(replace(output, verdict=Verdict.SKIPPED, reason="") for output in judged)


def judge_outputs(
    compared: Mapping[str, Compared], baseline: Baseline, tolerances: Tolerances | None
) -> tuple[tuple[OutputMetrics, ...], int]:
    """Metrics and verdict of every output, and the number of noise draws behind them.

    Raises:
        DeviceError: A perturbed copy of the original does not run on the device.
    """
    random_node = find_random_node(baseline.model.proto) or ""
    if tolerances is not None or random_node:
        return tuple(
            judge(Evidence(name, runs.comparisons, (), runs.within, str(tolerances), random_node=random_node))
            for name, runs in compared.items()
        ), 0
    opened = open_model(baseline.model)
    if not opened.reached:
        unmoved = [[Shift(0.0, changed=False)] * len(baseline.feeds)]
        return tuple(
            judge(Evidence(name, runs.comparisons, unmoved, has_parameters=False)) for name, runs in compared.items()
        ), 0
    return _judge_by_noise(compared, baseline, opened)


def _judge_by_noise(
    compared: Mapping[str, Compared], baseline: Baseline, opened: OpenModel
) -> tuple[tuple[OutputMetrics, ...], int]:
    shifts: dict[str, list[list[Shift]]] = {name: [] for name in compared}
    failure = ""
    outputs: tuple[OutputMetrics, ...] = ()
    for draws in (range(DRAWS), range(DRAWS, DRAWS + MORE_DRAWS)):
        try:
            _measure_noise(opened, baseline, draws, shifts)
        except RuntimeFailure as error:
            failure = str(error)
        outputs = tuple(
            judge(
                Evidence(
                    name,
                    runs.comparisons,
                    shifts[name],
                    has_parameters=name in opened.reached,
                    noise_failure=failure,
                )
            )
            for name, runs in compared.items()
        )
        if failure or not any(map(deserves_more_draws, outputs)):
            break
    return outputs, max(map(len, shifts.values()))


def _measure_noise(opened: OpenModel, baseline: Baseline, draws: range, shifts: dict[str, list[list[Shift]]]) -> None:
    """Run the original with perturbed parameters, and add to `shifts` how its outputs moved.

    Args:
        opened: The original with open parameters.
        baseline: What the original did.
        draws: Numbers of the copies.
        shifts: For each output, for each draw, the shift of each sample.

    Raises:
        DeviceError: A copy does not run on the device.
        RuntimeFailure: The runtime refuses a copy.
    """
    for moved in perturbed_runs(opened, baseline.device, baseline.seed, draws, baseline.feeds):
        for name in baseline.references[0]:
            shifts[name].append(
                [
                    shift_between(reference[name], result[name])
                    for reference, result in zip(baseline.references, moved, strict=True)
                ]
            )
