"""What the outputs gate judges for PyTorch: float64 tells what is true.

The original in float64 gives the truth; how far the original as it is lies from that is rounding that nobody minds, and
so is what its outputs move, in float64, when each stored parameter moves by −1, 0 or +1 unit in the last place. What
the folded model adds to that must be no more than a few times as large. Evaluated in float64 as well, nothing remains
of a correct fold but the rounding of its new weights.

Where a model cannot be evaluated in float64, its outputs under moved parameters in its own dtype are the noise, as for
ONNX. So they are where the exact gate proves the fold, as long as the outputs confirm it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bnfold.report.records import OutputMetrics, Verdict
from bnfold.text.progress import each
from bnfold.torch.fx.tensors import to_torch
from bnfold.verification.judging.comparing import Compared, Results
from bnfold.verification.judging.draws import Shifts, judge_by_draws
from bnfold.verification.judging.gate import Oracle
from bnfold.verification.judging.noise import STREAM, Shift, moved_by_one_ulp, shift_between
from bnfold.verification.runtime.devices import Device
from bnfold.verification.torch.run.flatten import to_array
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.subject import RunError, Runner, State, Subject

_CONFIRMED = "the exact gate proves the fold, and the outputs confirm it in their own dtype"
_MOVABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What both models gave as they are.

    Attributes:
        original: The original.
        folded: The folded model; None if it is no PyTorch model.
        device: Where both ran.
        seed: The caller's seed.
        samples: What they were called with.
        references: What the original gave, for each sample.
        results: What the folded model gave, for each sample.
        compared: The two, compared.
        is_exact: Whether the exact gate proves the fold.
        proved: Whether the sites do too, so that the outputs do no more than confirm it.
    """

    original: Subject
    folded: Subject | None
    device: Device
    seed: int
    samples: Sequence[Sample]
    references: Sequence[Results]
    results: Sequence[Results]
    compared: Mapping[str, Compared]
    is_exact: bool
    proved: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Truth:
    """What the original gives in float64 for each sample, and what the folded model does (None if it cannot)."""

    runner: Runner
    original: Sequence[Results]
    folded: Sequence[Results] | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gate found.

    Attributes:
        outputs: Metrics and verdict of every output.
        draws: How many perturbed copies of the original were run.
        has_oracle: Whether float64 told what is true.
        note: Why it did not, or not for the folded model; "" if it did.
    """

    outputs: tuple[OutputMetrics, ...]
    draws: int
    has_oracle: bool
    note: str


def judge_by_noise(measured: Measured) -> Judged:
    """Hold the outputs against the original's own rounding noise."""
    if measured.is_exact:
        judged = _judge(measured, None, _CONFIRMED)
        if all(output.verdict is Verdict.PASS for output in judged.outputs):
            return judged
    return _judge(measured, *_find_truth(measured))


def _judge(measured: Measured, truth: _Truth | None, note: str) -> Judged:
    if truth is None:
        runner, against = measured.original.runner(measured.device), measured.references
        oracles: Mapping[str, Sequence[Oracle]] = {}
    else:
        runner, against = truth.runner, truth.original
        oracles = {name: _distances(name, measured, truth) for name in measured.references[0]}
    parameters = _parameters(measured.original)

    def draw(draws: range, shifts: Shifts) -> tuple[frozenset[str], str]:
        try:
            for moved in _moved_parameters(parameters, measured.seed, draws):
                _add_shifts(shifts, runner, moved, measured, against)
            return _deaf_outputs(shifts, runner, parameters, measured, against), ""
        except RunError as error:
            return frozenset(), str(error)

    outputs, draws = judge_by_draws(measured.compared, draw, oracles, proved=measured.proved)
    return Judged(outputs, draws, truth is not None, note)


def _find_truth(measured: Measured) -> tuple[_Truth | None, str]:
    try:
        runner = measured.original.runner(measured.device, float64=True)
        original = [runner.run(sample, seed=measured.seed) for sample in each(measured.samples, "sample")]
    except RunError as error:
        return None, f"the original does not run in float64, so its own dtype says what noise is: {error}"
    if not all(_is_float64(truth, results) for truth, results in zip(original, measured.references, strict=True)):
        return None, "the original gives other things in float64, so its own dtype says what noise is"
    if measured.folded is None:
        return _Truth(runner, original, None), ""
    try:
        exact = measured.folded.runner(measured.device, float64=True)
        folded = [exact.run(sample, seed=measured.seed) for sample in each(measured.samples, "sample")]
    except RunError as error:
        return _Truth(runner, original, None), f"the folded model does not run in float64: {error}"
    return _Truth(runner, original, folded), ""


def _is_float64(truth: Results, results: Results) -> bool:
    """Whether a run in float64 has the same outputs, and all that were floating-point in float64."""
    if truth.keys() != results.keys():
        return False
    pairs = [(truth[name], value) for name, value in results.items()]
    arrays = [
        (exact, value) for exact, value in pairs if isinstance(exact, np.ndarray) and isinstance(value, np.ndarray)
    ]
    return all(np.dtype(exact.dtype).kind != "f" or exact.dtype == np.float64 for exact, _ in arrays)


def _distances(name: str, measured: Measured, truth: _Truth) -> list[Oracle]:
    """How far both models are from the truth at one output, for each sample."""
    found = []
    for sample, exact in enumerate(truth.original):
        result = truth.folded[sample].get(name) if truth.folded is not None else None
        found.append(
            Oracle(
                original=_distance(exact.get(name), measured.references[sample].get(name)),
                folded=_distance(exact.get(name), measured.results[sample].get(name)),
                exact=None if result is None else _distance(exact.get(name), result),
            )
        )
    return found


def _distance(truth: object, result: object) -> Shift:
    """How far a result is from the truth, whatever its dtype."""
    if isinstance(truth, np.ndarray) and isinstance(result, np.ndarray) and truth.dtype == np.float64:
        return shift_between(truth, result.astype(np.float64))
    return shift_between(truth, result)


def _parameters(subject: Subject) -> dict[str, torch.Tensor]:
    """What is moved: stored floating-point tensors of rank 1 or more; a number alone may be an exponent or a size."""
    return {name: tensor for name, tensor in subject.state().items() if tensor.dtype in _MOVABLE and tensor.dim() > 0}


def _moved_parameters(parameters: State, seed: int, draws: range) -> Iterator[State]:
    for draw in draws:
        rng = np.random.default_rng([seed, draw, STREAM])
        yield {name: to_torch(moved_by_one_ulp(to_array(tensor), rng)) for name, tensor in parameters.items()}


def _add_shifts(
    shifts: dict[str, list[list[Shift]]],
    runner: Runner,
    moved: State,
    measured: Measured,
    against: Sequence[Results],
) -> None:
    """Run the original with other parameters and note how its outputs move.

    Raises:
        RunError: It does not run.
    """
    found = _runs(runner, moved, measured)
    for name in measured.references[0]:
        pairs = zip(against, found, strict=True)
        shifts[name].append([shift_between(reference.get(name), result.get(name)) for reference, result in pairs])


def _deaf_outputs(
    shifts: Mapping[str, list[list[Shift]]],
    runner: Runner,
    parameters: State,
    measured: Measured,
    against: Sequence[Results],
) -> frozenset[str]:
    """Outputs that no parameter leads to: autograd sees no way, and they stay where every parameter is another one.

    Raises:
        RunError: The original does not run.
    """
    still = [name for name, draws in shifts.items() if not any(shift.norm for draw in draws for shift in draw)]
    if not still:
        return frozenset()
    rng = np.random.default_rng([measured.seed, STREAM])
    other = {
        name: tensor * torch.from_numpy(rng.uniform(0.5, 1.5, tuple(tensor.shape))).to(tensor)
        for name, tensor in parameters.items()
    }
    found = _runs(runner, other, measured)
    reached = runner.reached(measured.samples[0])
    pairs = [*zip(against, found, strict=True)]
    return frozenset(
        name
        for name in still
        if name not in reached
        and all(
            shift_between(first.get(name), second.get(name)) == Shift(0.0, changed=False) for first, second in pairs
        )
    )


def _runs(runner: Runner, moved: State, measured: Measured) -> list[dict[str, object]]:
    return [runner.run(sample, moved=moved, seed=measured.seed) for sample in each(measured.samples, "sample")]
