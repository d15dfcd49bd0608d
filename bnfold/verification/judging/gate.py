"""The outputs gate: what the comparisons of one output, and the noise of the original, amount to.

    ratio = ‖folded − original‖ / max(median over draws ‖perturbed − original‖, u·‖original‖)

Where float64 can tell what is true (see `Oracle`), distances are taken from that, the draws are evaluated in float64,
and what the original itself is off counts as noise too:

    ratio = ‖folded − truth‖ / max(median over draws ‖perturbed − truth‖, ‖original − truth‖, u·‖original‖)

The folded model in float64 is off by the rounding of its weights alone: it is held to the same without the second
term.

The norms run over all samples as if they were one batch: an output of one or two numbers would otherwise be judged by
the luck of a few draws. u is the unit roundoff of the output: none is asked to be closer than one rounding of itself,
so that an output whose noise is zero is judged by that bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bnfold.report.records import OutputMetrics, Verdict
from bnfold.verification.judging.metrics import Comparison
from bnfold.verification.judging.noise import Shift

NOISE_LIMIT = 4.0
"""A fold passes up to this ratio; correct folds reach 0.2 to 1.5."""

NOISE_SHARE_LIMIT = 0.1
"""Where the noise is more than this share of the signal, nothing can be told from it."""

_JUMP = 16.0
"""Where a draw moves an output by so many times the noise, something nearly equal has changed its place or its side."""

_CLOSE = (NOISE_LIMIT / 2, NOISE_LIMIT * 16)
"""A ratio between these deserves more draws before it counts; a few draws may well give too little noise."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """How far one output of one sample is from what the original gives in float64.

    Attributes:
        original: The original as it is.
        folded: The folded model as it is.
        exact: The folded model in float64; None if it cannot be had.
    """

    original: Shift
    folded: Shift
    exact: Shift | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one output.

    Attributes:
        name: Name of the output.
        comparisons: One for each sample.
        shifts: For each draw, one for each sample; empty where no noise was measured.
        within: For each sample, whether the caller's tolerances hold; empty where the noise decides.
        tolerances: The caller's tolerances in words.
        has_parameters: Whether a parameter on the way to this output was moved.
        random_node: A node that draws random numbers; "" where there is none.
        noise_failure: Why no noise could be measured; "" where it could.
        oracle: For each sample, the distances from the truth; empty where there is none. Shifts are then from it, too.
    """

    name: str
    comparisons: Sequence[Comparison]
    shifts: Sequence[Sequence[Shift]] = ()
    within: Sequence[bool] = ()
    tolerances: str = ""
    has_parameters: bool = True
    random_node: str = ""
    noise_failure: str = ""
    oracle: Sequence[Oracle] = ()


@dataclass(frozen=True, slots=True)
class _Noise:
    """The noise of an output and the difference in its terms; see the formula above.

    Attributes:
        ratio: The noise ratio.
        share: Median of the noise over draws, relative to the signal.
        largest: Largest noise of a draw.
        jumps: Whether that and the difference are of one size, far more than the noise.
        float64_ratio: The same for the folded model in float64; None where that is not known.
    """

    ratio: float
    share: float
    largest: float
    jumps: bool
    float64_ratio: float | None = None


def judge(evidence: Evidence) -> OutputMetrics:
    """The verdict on one output, with its metrics over all samples."""
    noise = _measure(evidence)
    verdict, reason = _decide(evidence, noise)
    first = evidence.comparisons[0]
    judged_by_numbers = not evidence.random_node and not any(item.mismatch for item in evidence.comparisons)
    comparisons = evidence.comparisons if judged_by_numbers else ()
    floats = [item for item in comparisons if item.roundoff]
    relative = max((_quotient(item.difference, item.signal) for item in floats), default=None)
    rows = sum(item.top1_rows for item in floats)
    return OutputMetrics(
        name=evidence.name,
        dtype=first.dtype,
        shape=first.shape,
        verdict=verdict,
        reason=reason,
        samples=len(evidence.comparisons),
        max_abs=max((item.max_abs for item in comparisons), default=None),
        rel_l2=relative,
        sqnr_db=-20 * math.log10(relative) if relative else None,
        cosine=min((item.cosine for item in floats if item.cosine is not None), default=None),
        top1_agreement=sum(item.top1_same for item in floats) / rows if rows else None,
        noise_ratio=noise.ratio if noise else None,
        noise_rel_l2=noise.share if noise else None,
        float64_ratio=noise.float64_ratio if noise else None,
        nonfinite_original=sum(item.nonfinite_original for item in comparisons),
        nonfinite_folded=sum(item.nonfinite_folded for item in comparisons),
        may_be_rounding=verdict is Verdict.FAIL and _may_be_rounding(evidence, noise),
    )


def deserves_more_draws(output: OutputMetrics) -> bool:
    """Whether the verdict on an output might be another one with a better estimate of the noise."""
    if output.verdict is Verdict.INCONCLUSIVE and output.noise_rel_l2 == 0:
        return True  # a single number may stay as it is in a few draws
    if output.may_be_rounding:
        return True  # an order that nearly equal numbers have changes in some draws alone
    low, high = _CLOSE
    return any(ratio is not None and low < ratio < high for ratio in (output.noise_ratio, output.float64_ratio))


def _may_be_rounding(evidence: Evidence, noise: _Noise | None) -> bool:
    """Whether rounding could be all that makes an output fail; it makes nothing that is not finite."""
    if evidence.within or any(item.mismatch or (item.change and item.roundoff) for item in evidence.comparisons):
        return False
    return noise is None or math.isfinite(noise.ratio)


def _decide(evidence: Evidence, noise: _Noise | None) -> tuple[Verdict, str]:
    name, comparisons = f"output {evidence.name!r}", evidence.comparisons
    for comparison in comparisons:
        if comparison.mismatch:
            return Verdict.FAIL, f"{name} {comparison.mismatch}"
    if evidence.random_node:
        reason = f"{name} may depend on {evidence.random_node}, which draws random numbers"
        return Verdict.INCONCLUSIVE, reason
    if evidence.within:
        if all(evidence.within):
            return Verdict.PASS, ""
        return Verdict.FAIL, f"{name} is outside of {evidence.tolerances}"
    if evidence.noise_failure:
        reason = f"the rounding noise of {name} could not be measured: {evidence.noise_failure}"
        return Verdict.INCONCLUSIVE, reason
    for sample, comparison in enumerate(comparisons):
        if comparison.change and _noise_changes(evidence, sample):
            reason = f"{name} {comparison.change}, but rounding noise alone changes it too; give real inputs"
            return Verdict.INCONCLUSIVE, reason
        if comparison.change:
            return Verdict.FAIL, f"{name} {comparison.change}"
    if not any(comparison.roundoff for comparison in comparisons):
        return Verdict.PASS, ""
    return _decide_by_noise(name, evidence, noise)


def _decide_by_noise(name: str, evidence: Evidence, noise: _Noise | None) -> tuple[Verdict, str]:
    if noise is None:
        what = "NaN or Inf" if any(item.nonfinite_original for item in evidence.comparisons) else "empty"
        return Verdict.INCONCLUSIVE, f"{name} is {what} throughout, so nothing was compared; give real inputs"
    if any(shift.changed for draw in evidence.shifts for shift in draw):
        return Verdict.INCONCLUSIVE, f"rounding noise alone changes the shape or the NaNs of {name}"
    if noise.share > NOISE_SHARE_LIMIT:
        share = f"{noise.share:.0%} of" if math.isfinite(noise.share) else "all there is of"
        reason = f"rounding noise alone is {share} {name}, too much to judge by; give real inputs, or tolerances"
        return Verdict.INCONCLUSIVE, reason
    if noise.jumps and max(noise.ratio, noise.float64_ratio or 0) > NOISE_LIMIT:
        reason = f"{name} differs, and as much in copies of the original that rounding alone tells apart: what is"
        return Verdict.INCONCLUSIVE, f"{reason} nearly equal changes its order or its side there; give real inputs"
    if noise.ratio > NOISE_LIMIT and not evidence.has_parameters:
        reason = f"{name} differs, and no floating-point parameter leads to it to measure rounding noise by"
        return Verdict.INCONCLUSIVE, f"{reason}; give tolerances"
    if noise.ratio > NOISE_LIMIT:
        if math.isfinite(noise.ratio):
            return Verdict.FAIL, f"{name} differs by {noise.ratio:.3g} times the model's own rounding noise"
        return Verdict.FAIL, f"{name} is zero in the original, whatever the rounding, but not in the folded model"
    if noise.float64_ratio is not None and noise.float64_ratio > NOISE_LIMIT and evidence.has_parameters:
        reason = f"{name} differs, in float64, by {noise.float64_ratio:.3g} times what rounding the parameters does"
        return Verdict.FAIL, reason
    if evidence.has_parameters and not noise.largest:
        reason = f"{name} does not react to the parameters (saturated or cut off), so equality proves nothing"
        return Verdict.INCONCLUSIVE, f"{reason}; give real inputs"
    return Verdict.PASS, ""


def _measure(evidence: Evidence) -> _Noise | None:
    """The noise over all samples that have numbers to compare; None if there are none, or no draws."""
    usable = [
        (sample, item)
        for sample, item in enumerate(evidence.comparisons)
        if item.finite and item.roundoff and not item.mismatch and not item.change
    ]
    if not usable or not evidence.shifts:
        return None
    noise = [math.hypot(*(draw[sample].norm for sample, _ in usable)) for draw in evidence.shifts]
    difference = math.hypot(*(item.difference for _, item in usable))
    signal = math.hypot(*(item.signal for _, item in usable))
    bound = max(median(noise), usable[0][1].roundoff * signal)
    jumps = min(max(noise), difference) > _JUMP * bound and difference <= NOISE_LIMIT * max(noise)
    if not evidence.oracle:
        return _Noise(_quotient(difference, bound), _quotient(median(noise), signal), max(noise), jumps)
    oracles = [evidence.oracle[sample] for sample, _ in usable]
    own = math.hypot(*(oracle.original.norm for oracle in oracles))
    difference = math.hypot(*(oracle.folded.norm for oracle in oracles))
    exact = [oracle.exact.norm for oracle in oracles if oracle.exact is not None]
    return _Noise(
        ratio=_quotient(difference, max(bound, own)),
        share=_quotient(max(median(noise), own), signal),
        largest=max(noise),
        jumps=jumps,
        float64_ratio=_quotient(math.hypot(*exact), bound) if exact else None,
    )


def _noise_changes(evidence: Evidence, sample: int) -> bool:
    """Whether rounding alone changes what is discrete in an output."""
    own = [evidence.oracle[sample].original] if evidence.oracle else []
    return any(shift.changed for shift in (*own, *(draw[sample] for draw in evidence.shifts)))


def _quotient(numerator: float, denominator: float) -> float:
    if denominator and not math.isinf(numerator):
        return numerator / denominator
    return math.inf if numerator else 0.0
