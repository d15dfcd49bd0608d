"""The sites gate: every region that a fold changed, fed with the original's own activations, gives what that gives.

    ratio = max |folded − original| / (u · Σ |terms|)      per channel, u the unit roundoff of the storage type

Two correct ways to compute one sum differ by a small multiple of u · Σ |terms|, whatever the network; a fault does not
depend on u at all. See `sites_model` for how the difference is taken and `bounds` for the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.onnx.load import OnnxModel
from bnfold.report.records import Site, Verdict
from bnfold.verification.devices import Device
from bnfold.verification.runtimes import Array, RuntimeFailure, Session
from bnfold.verification.sites_model import NoSitesError, Probe, SitesModel, build_sites_model
from bnfold.verification.source import injected_values

SITE_LIMIT = 32.0
"""A site passes up to this ratio; tests/verification/MUTATIONS.md has what correct and wrong folds reach."""

_FAR_OFF = 1e4  # ratio


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


def measure_sites(original: OnnxModel, folded: OnnxModel, device: Device, feed: Mapping[str, Array]) -> SitesOutcome:
    """Run both sides of every site on one sample.

    Args:
        original: The original.
        folded: The folded model.
        device: Where to run.
        feed: The sample.

    Raises:
        DeviceError: A heavy node does not run on the device.
    """
    try:
        built = build_sites_model(original, folded)
        outcome = _measure(built, original, device, feed)
        misnamed = _misnamed(built, outcome)
        if misnamed:
            unpaired = [probe.value for probe in misnamed]
            longer = _measure(build_sites_model(original, folded, unpaired), original, device, feed)
            if _explained(longer, [probe.site for probe in misnamed]):
                said = f"{_list(unpaired)} in the folded model only share a name with values of the original"
                return replace(longer, note="; ".join(filter(None, [said, longer.note])))
    except NoSitesError as error:
        return SitesOutcome(note=f"sites were not measured: {error}")
    except RuntimeFailure as failure:
        return SitesOutcome(note=f"sites were not measured: {failure}")
    return outcome


def _measure(built: SitesModel, original: OnnxModel, device: Device, feed: Mapping[str, Array]) -> SitesOutcome:
    """Run the model and judge its sites.

    Raises:
        RuntimeFailure: It does not run.
    """
    if not built.probes:
        return SitesOutcome(
            tuple(built.unreached),
            unreached_note(built.unreached, lost=built.pairing.matters and not built.probes),
        )
    model = built.model
    session = Session(model.proto.SerializeToString(), device, injected_values(model), in_order=True)
    results = session.run({**feed, **{tensor.name: model.array(tensor) for tensor in built.weights}})
    measured = [judge_site(probe, results) for probe in built.probes]
    measured.sort(key=badness, reverse=True)
    names = [value.name for value in original.proto.graph.output]
    return SitesOutcome(
        (*measured, *built.unreached),
        unreached_note(built.unreached, lost=built.pairing.matters and not built.probes),
        {name: results[name] for name in names},
    )


def _misnamed(built: SitesModel, outcome: SitesOutcome) -> list[Probe]:
    """Sites of folded values that seem to be something else than the original's of that name.

    Nothing but the name speaks for them, and they are far off. A fault that large would be seen in a longer region too;
    small ones are never measured in longer regions, where they might be lost.
    """
    far_off = {site.name for site in outcome.sites if site.ratio is not None and site.ratio > _FAR_OFF}
    return [
        probe for probe in built.probes if probe.site.name in far_off and probe.value not in built.pairing.confirmed
    ]


def _explained(longer: SitesOutcome, misnamed: list[Site]) -> bool:
    """Whether longer regions pass, and what failed before is in them."""
    passed = {node for site in longer.sites if site.verdict is Verdict.PASS for node in site.nodes}
    return not worst_failure(longer.sites) and all(passed.issuperset(site.nodes) for site in misnamed)


def worst_failure(sites: tuple[Site, ...]) -> str:
    """One sentence on the worst site that fails; "" if none does."""
    failed = [site for site in sites if site.verdict is Verdict.FAIL]
    if not failed:
        return ""
    more = f" (and {len(failed) - 1} more sites)" if len(failed) > 1 else ""
    return failed[0].reason + more


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


def listed(site: Site) -> str:
    """What a message calls the nodes of a site."""
    return " + ".join(repr(name) for name in site.nodes) if len(site.nodes) <= 3 else f"{len(site.nodes)} nodes"


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
