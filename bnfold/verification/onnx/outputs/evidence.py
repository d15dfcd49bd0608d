"""What the outputs gate judges: runs of the folded model, and of the original under rounding noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from bnfold.onnx.file.load import OnnxModel
from bnfold.report.records import OutputMetrics
from bnfold.verification.inputs.feeds import Feed
from bnfold.verification.judging.comparing import Compared, Results, Tolerances, compare_results, judge_without_noise
from bnfold.verification.judging.draws import Shifts, judge_by_draws
from bnfold.verification.judging.gate import Evidence, judge
from bnfold.verification.judging.noise import Shift, shift_between
from bnfold.verification.judging.structured_outputs import is_part_of
from bnfold.verification.onnx.outputs.noise import perturbed_runs
from bnfold.verification.onnx.outputs.parameters import open_model
from bnfold.verification.onnx.outputs.randomness import find_random_node
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.sessions import RuntimeFailure, Session
from bnfold.verification.runtime.source import LargeModel


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the original did.

    Attributes:
        model: The original.
        device: Where it ran.
        seed: The caller's seed.
        feeds: The samples.
        references: What the original gave, for each sample.
        proved: Whether the other gates prove the fold, so that the outputs do no more than confirm it.
    """

    model: OnnxModel
    device: Device
    seed: int
    feeds: Sequence[Feed]
    references: Sequence[Results]
    proved: bool


def compare_runs(
    session: Session | LargeModel, baseline: Baseline, tolerances: Tolerances | None
) -> dict[str, Compared]:
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


def judge_outputs(
    compared: Mapping[str, Compared], baseline: Baseline, tolerances: Tolerances | None
) -> tuple[tuple[OutputMetrics, ...], int]:
    """Metrics and verdict of every output, and the number of noise draws behind them.

    Raises:
        DeviceError: A perturbed copy of the original does not run on the device.
    """
    random_node = find_random_node(baseline.model.proto) or ""
    if tolerances is not None or random_node:
        return judge_without_noise(compared, tolerances, random_node), 0
    opened = open_model(baseline.model)
    if not opened.reached:
        unmoved = [[Shift(0.0, changed=False)] * len(baseline.feeds)]
        return tuple(
            judge(Evidence(name, runs.comparisons, unmoved, has_parameters=False)) for name, runs in compared.items()
        ), 0

    deaf = [name for name in compared if not any(is_part_of(name, output) for output in opened.reached)]
    copies = perturbed_runs(opened, baseline.device, baseline.seed, count(), baseline.feeds)

    def draw(draws: range, shifts: Shifts) -> tuple[list[str], str]:
        try:
            _measure_noise(islice(copies, len(draws)), baseline, shifts)
        except RuntimeFailure as failure:
            return deaf, str(failure)
        return deaf, ""

    return judge_by_draws(compared, draw, {}, proved=baseline.proved)


def _measure_noise(copies: Iterable[Sequence[Results]], baseline: Baseline, shifts: Shifts) -> None:
    """Run the original with perturbed parameters, and add to `shifts` how its outputs moved.

    Args:
        copies: What each copy gives, for each sample.
        baseline: What the original did.
        shifts: For each output, for each draw, the shift of each sample.

    Raises:
        DeviceError: A copy does not run on the device.
        RuntimeFailure: The runtime refuses a copy.
    """
    for moved in copies:
        for name, drawn in shifts.items():
            drawn.append(
                [
                    shift_between(reference.get(name), result.get(name))
                    for reference, result in zip(baseline.references, moved, strict=True)
                ]
            )
