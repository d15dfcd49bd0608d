"""What the exact gate and the other gates say together."""

from __future__ import annotations

from dataclasses import replace

from bnfold.report.records import Exact, Verdict
from bnfold.report.report import Report
from bnfold.verification.judging.sites import all_pass


def decided(report: Report, exact: Exact) -> Report:
    """The report of the other gates, with what the exact gate found.

    A wrong region fails, whatever the outputs are. Where every region is right exactly, and every site within its
    rounding bound on every sample for which an output fails, the fold is proved without the outputs: what they differ
    by has grown from rounding, in a model whose noise drowns them, or that puts in order what is nearly equal. A wrong
    fold does not hide there. What is wrong with its structure, the exact gate finds; what is wrong with its numbers
    alone is more than the rounding bound of a site, or else no more than what another order of summation may do.

    Args:
        report: What the other gates found.
        exact: What the exact gate found.
    """
    report = replace(report, exact=exact, timings_s={**report.timings_s, "exact": exact.duration_s})
    if exact.verdict is Verdict.FAIL:
        return replace(report, verdict=Verdict.FAIL, reason=exact.reason)
    proved = exact.verdict is Verdict.PASS and all_pass(report.sites, report.sites_note)
    asked_for = report.config is not None and (report.config.rtol is not None or report.config.atol is not None)
    if not proved or asked_for:
        return report
    if report.verdict is Verdict.INCONCLUSIVE:
        reason = f"the sites and the exact gate prove it, the outputs could not: {report.reason}"
        return replace(report, verdict=Verdict.PASS, reason=reason)
    failing = [output for output in report.outputs if output.verdict is Verdict.FAIL]
    if failing and all(output.may_be_rounding for output in failing):
        reason = f"the sites and the exact gate prove it, so that this has grown from rounding: {report.reason}"
        outputs = (replace(o, verdict=Verdict.INCONCLUSIVE) if o in failing else o for o in report.outputs)
        return replace(report, verdict=Verdict.PASS, reason=reason, outputs=tuple(outputs))
    return report


def failed(exact: Exact) -> Report:
    """The report of a fold that the exact gate found to be wrong, so that nothing else was run."""
    return Report(Verdict.FAIL, exact.reason, exact=exact, timings_s={"exact": exact.duration_s})


def together(first: Exact, second: Exact) -> Exact:
    """What the gate found of a model that was folded twice, in two forms."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.SKIPPED)
    worst = min(first, second, key=lambda exact: order.index(exact.verdict))
    return Exact(
        worst.verdict,
        worst.reason,
        first.regions + second.regions,
        first.equal + second.equal,
        max(first.sizes, second.sizes),
        (*first.unproved, *second.unproved),
        first.duration_s + second.duration_s,
    )
