"""The verdict on a model: what all of its outputs and sites amount to, and what it was taken under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnfold.report.records import InputInfo, OutputMetrics, Site, Verdict, VerifyConfig
from bnfold.report.report import Report
from bnfold.verification.judging.comparing import Tolerances
from bnfold.verification.judging.gate import NOISE_LIMIT
from bnfold.verification.judging.sites import SITE_LIMIT, all_pass, worst_failure


def config_of(seed: int, samples: int, inputs: tuple[InputInfo, ...], tolerances: Tolerances | None) -> VerifyConfig:
    """What a verdict is taken under."""
    config = VerifyConfig(seed, samples, inputs, noise_limit=NOISE_LIMIT, site_limit=SITE_LIMIT)
    return config if tolerances is None else replace(config, rtol=tolerances.rtol, atol=tolerances.atol)


def decide(
    outputs: Sequence[OutputMetrics], sites: tuple[Site, ...], tolerances: Tolerances | None
) -> tuple[Verdict, str]:
    """The verdict, and one sentence on what decides it.

    Args:
        outputs: All outputs, judged.
        sites: All sites, judged, worst first.
        tolerances: What the caller accepts: then the outputs alone decide.
    """
    verdict, reason = worst_output(outputs)
    wrong_layer = "" if tolerances else worst_failure(sites)
    if not wrong_layer:
        return verdict, reason
    return Verdict.FAIL, "; ".join([wrong_layer, reason] if verdict is Verdict.FAIL else [wrong_layer])


def sites_do_not_explain(outputs: Sequence[OutputMetrics], sites: Sequence[Site]) -> bool:
    """Whether outputs fail by what may be rounding, and no site does: then those of other samples tell more."""
    failing = any(output.verdict is Verdict.FAIL and output.may_be_rounding for output in outputs)
    return failing and all_pass(sites, "")


def worst_output(outputs: Sequence[OutputMetrics]) -> tuple[Verdict, str]:
    """The verdict of all outputs together, and one sentence on the first that decides it."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        reasons = [output.reason for output in outputs if output.verdict is verdict]
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            return verdict, reasons[0] + more
    if not outputs:
        return Verdict.INCONCLUSIVE, "the original has no outputs"
    return Verdict.PASS, ""


def does_not_run(report: Report, why: object) -> Report:
    """A folded model that does not run, where the original did, is a failed verification."""
    return replace(report, verdict=Verdict.FAIL, reason=f"the folded model does not run where the original does: {why}")
