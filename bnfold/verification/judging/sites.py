"""The numbers of one changed region, and what they say; the same for every format.

    ratio = max |folded − original| / (u · Σ |terms|)      per channel, u the unit roundoff of the storage type

Two correct ways to compute one sum differ by a small multiple of u · Σ |terms|, whatever the network; a fault does not
depend on u at all. To the terms belongs how far a sum of one sign is carried while it grows; see `drift`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.report.records import Site, Verdict

SITE_LIMIT = 32.0
"""A site passes up to this ratio; tests/verification/MUTATIONS.md has what correct and wrong folds reach."""

TINY = 1e-30  # what a magnitude is at least: an exact zero must not be divided by


class NoBoundError(Exception):
    """An operation through which no magnitude can be carried; the message is its operator."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Names of the model's outputs that tell about one site.

    Attributes:
        site: The site, without numbers.
        value: Name of the folded value; that of the original's is the site's.
        ratio: max |twin − original| / magnitude, for each channel; or one number.
        max_abs: max |twin − original|.
        difference: Σ (twin − original)².
        signal: Σ original².
        shapes: The two shapes.
        roundoff: Unit roundoff of the storage dtype; 0 for values that must be equal.
        has_channels: Whether `ratio` is a vector.
    """

    site: Site
    value: str
    ratio: str
    max_abs: str
    difference: str
    signal: str
    shapes: tuple[str, str]
    roundoff: float
    has_channels: bool


@dataclass(frozen=True, slots=True)
class SitesOutcome:
    """What the gate found.

    Attributes:
        sites: Worst first.
        note: Why sites were not measured, for a person; "" if all were.
        references: The original's outputs on the sample, None if the model with the sites did not run.
    """

    sites: tuple[Site, ...] = ()
    note: str = ""
    references: Mapping[str, object] | None = None

    @property
    def all_pass(self) -> bool:
        """Whether everything that changed was measured, and is within its rounding bound."""
        return all_pass(self.sites, self.note)


def all_pass(sites: Sequence[Site], note: str | None) -> bool:
    """Whether everything that changed was measured (no note says why not), and is within its rounding bound."""
    return bool(sites) and not note and all(site.verdict is Verdict.PASS for site in sites)


def worst_of(outcomes: Sequence[SitesOutcome]) -> SitesOutcome:
    """What the gate found on several samples: of each site the worst, and what is not a pass before what is one."""
    worst: dict[tuple[str, tuple[str, ...]], Site] = {}
    for site in (site for outcome in outcomes for site in outcome.sites):
        before = worst.setdefault((site.name, site.nodes), site)
        worst[site.name, site.nodes] = max(
            before, site, key=lambda one: (one.verdict is not Verdict.PASS, badness(one))
        )
    notes = dict.fromkeys(outcome.note for outcome in outcomes if outcome.note)
    sites = tuple(sorted(worst.values(), key=badness, reverse=True))
    return replace(outcomes[0], sites=sites, note="; ".join(notes))


def judge_site(probe: Probe, results: Mapping[str, object]) -> Site:
    """The numbers of one site, and what they say."""
    ratios, largest, difference, signal = (
        np.asarray(results[name], np.float64) for name in (probe.ratio, probe.max_abs, probe.difference, probe.signal)
    )
    if ratios.size == 0:
        return replace(probe.site, reason="it is empty, so nothing was compared")
    if not math.isfinite(signal):
        reason = "the original has NaN or Inf there, so the outputs gate decides"
        return replace(probe.site, verdict=Verdict.INCONCLUSIVE, reason=reason)
    layer = f"{listed(probe.site)} (value {probe.site.name!r})"
    folded_shape, shape = (np.asarray(results[name]).tolist() for name in probe.shapes)
    if folded_shape != shape:
        reason = f"{layer} has shape {folded_shape} instead of {shape}"
        return replace(probe.site, verdict=Verdict.FAIL, reason=reason, ratio=math.inf)
    if not math.isfinite(difference):
        reason = f"{layer} gives NaN, Inf or numbers beyond float32 where the original gives finite ones"
        return replace(probe.site, verdict=Verdict.FAIL, reason=reason, ratio=math.inf)
    channel = int(np.argmax(ratios)) if probe.has_channels else None
    worst = float(np.max(ratios))
    if not probe.roundoff and worst:
        reason = f"{layer} is not equal, and as rounding alone may flip integers, the outputs gate decides"
        return replace(probe.site, verdict=Verdict.INCONCLUSIVE, reason=reason, max_abs=float(largest))
    ratio = worst / probe.roundoff if probe.roundoff else 0.0
    failed = ratio > SITE_LIMIT
    where = "" if channel is None else f" in channel {channel}"
    return replace(
        probe.site,
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        reason=f"{layer} differs by {ratio:.3g} times its rounding bound{where}" if failed else "",
        ratio=ratio,
        max_abs=float(largest),
        rel_l2=math.sqrt(float(difference) / float(signal)) if signal else math.inf if difference else 0.0,
        channel=channel,
    )


def worst_failure(sites: tuple[Site, ...]) -> str:
    """One sentence on the worst site that fails; "" if none does."""
    failed = [site for site in sites if site.verdict is Verdict.FAIL]
    if not failed:
        return ""
    more = f" (and {len(failed) - 1} more sites)" if len(failed) > 1 else ""
    return failed[0].reason + more


def listed(site: Site) -> str:
    """What a message calls the nodes of a site."""
    return " + ".join(repr(name) for name in site.nodes) if len(site.nodes) <= 3 else f"{len(site.nodes)} nodes"


def badness(site: Site) -> tuple[bool, float]:
    """What sites are sorted by."""
    return site.verdict is Verdict.FAIL, site.ratio if site.ratio is not None else 0.0


def unreached_note(unreached: Sequence[Site], *, lost: bool) -> str:
    """What was not measured, and why; "" if everything that changed was.

    Args:
        unreached: The sites that were not measured.
        lost: Whether something changed, but leads to no site at all.
    """
    if not unreached:
        return "sites were not measured: what changed leads to no value that both models have" if lost else ""
    first = unreached[0]
    more = f" (and {len(unreached) - 1} more)" if len(unreached) > 1 else ""
    return f"{first.name!r} was not measured on its own, the outputs decide: {first.reason}{more}"
