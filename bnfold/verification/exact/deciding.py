"""What the exact gate and the other gates say together."""

from __future__ import annotations

from dataclasses import replace

from bnfold.report.records import Exact, Verdict
from bnfold.report.report import Report


def decided(report: Report, exact: Exact) -> Report:
    """The report of the other gates, with what the exact gate found.

    A wrong region fails, whatever the outputs are. Where the outputs alone are inconclusive, because the original's own
    rounding noise drowns them, and every region is right exactly and every site within its rounding bound, the fold is
    proved without them.

    Args:
        report: What the other gates found.
        exact: What the exact gate found.
    """
    report = replace(report, exact=exact, timings_s={**report.timings_s, "exact": exact.duration_s})
    if exact.verdict is Verdict.FAIL:
        return replace(report, verdict=Verdict.FAIL, reason=exact.reason)
    proved = exact.verdict is Verdict.PASS and report.sites and not report.sites_note
    proved = proved and all(site.verdict is Verdict.PASS for site in report.sites)
    asked_for = report.config is not None and (report.config.rtol is not None or report.config.atol is not None)
    if report.verdict is Verdict.INCONCLUSIVE and proved and not asked_for:
        reason = f"the sites and the exact gate prove it, the outputs could not: {report.reason}"
        return replace(report, verdict=Verdict.PASS, reason=reason)
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
