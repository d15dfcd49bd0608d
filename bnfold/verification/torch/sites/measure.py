"""The sites gate for PyTorch: every region that a fold changed, fed with the original's own activations.

The original runs once, node by node; what a region reads is kept until the value that it must give is there, and no
longer. See `bnfold.verification.onnx.sites.measure` for what is measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from bnfold.report.records import Site, Verdict
from bnfold.text.progress import each
from bnfold.torch.fx.function_transforms import all_ended, is_wrapped
from bnfold.torch.fx.nodes import all_reads
from bnfold.torch.fx.unwritten import unwritten
from bnfold.verification.judging.sites import (
    TINY,
    NoBoundError,
    Probe,
    SitesOutcome,
    badness,
    judge_site,
    listed,
    unreached_note,
)
from bnfold.verification.runtime.devices import Device
from bnfold.verification.torch.run.devices import first_line, settings
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.subject import Subject
from bnfold.verification.torch.run.traced import NotTracedError, Traced, label, leaves_by_input, traced
from bnfold.verification.torch.sites.pairing import Guess, Pairing, by_name, pair
from bnfold.verification.torch.sites.planned import NotPairedError, by_plan
from bnfold.verification.torch.sites.regions import Region, UnreachedError, call, moved, region_to


@dataclass(frozen=True, slots=True, eq=False)
class _Twin:
    """What stands on both sides of a site.

    Attributes:
        site: The site, without numbers.
        folded: The region of the folded program.
        original: The region of the original that it stands for.
        partners: For each edge of the folded region the node of the original that gives its value.
    """

    site: Site
    folded: Region
    original: Region
    partners: Mapping[fx.Node, fx.Node]

    @property
    def needs(self) -> set[fx.Node]:
        """The nodes of the original whose values are needed."""
        return {*self.partners.values(), *self.original.edges, self.original.end}


def measure_sites(original: Subject, folded: Subject, device: Device, sample: Sample) -> SitesOutcome:
    """Run both sides of every site on one sample.

    Args:
        original: The original.
        folded: The folded model.
        device: Where to run.
        sample: The sample.
    """
    try:
        first, second = traced(original, sample), traced(folded, sample)
        pairing = pair(first, second, _guess(first, second, folded))
        if pairing is None:
            return SitesOutcome(note="sites were not measured: the two do not take the same inputs")
        twins = _twins(first, second, pairing)
        stored = [held for side in (first, second) for held in side.stored.values() if isinstance(held, torch.Tensor)]
        with settings(tf32=False), all_ended(), unwritten(stored):
            measured = _run(first, twins, sample, torch.device(device.kind))
    except (NotTracedError, NotPairedError) as error:
        return SitesOutcome(note=f"sites were not measured, the outputs decide: {error}")
    unreached = [site for site in measured if site.verdict is Verdict.SKIPPED]
    reached = sorted((site for site in measured if site.verdict is not Verdict.SKIPPED), key=badness, reverse=True)
    lost = pairing.changed and not twins
    return SitesOutcome((*reached, *unreached), unreached_note(unreached, lost=bool(lost)))


def _guess(original: Traced, folded: Traced, subject: Subject) -> Guess:
    """By what a plan says; by name for a program that is more than the original without some batch norms.

    Raises:
        NotPairedError: Neither tells.
    """
    try:
        return by_plan(original, folded)
    except NotPairedError:
        if subject.program is None:
            raise
        return by_name(original, folded)


def _twins(original: Traced, folded: Traced, pairing: Pairing) -> list[_Twin]:
    partners = pairing.partners
    shared = {partners[node] for node in pairing.changed if node in partners}
    shared |= {partner for node, partner in partners.items() if node not in set(pairing.changed)}
    ours, theirs = folded.order(), original.order()
    twins = []
    names = Counter(label(partners[end]) for end in pairing.changed if end in partners)
    for end in pairing.changed:
        partner = partners.get(end)
        if partner is None:
            continue
        region = region_to(folded, end, partners.__contains__, ours)
        origin = region_to(original, partner, shared.__contains__, theirs)
        name = label(partner) if names[label(partner)] == 1 else f"{label(partner)}/{partner.name}"
        site = Site(name, tuple(dict.fromkeys(map(label, region.computing))), Verdict.SKIPPED)
        twins.append(_Twin(site, region, origin, {edge: partners[edge] for edge in region.edges}))
    return twins


def _run(original: Traced, twins: list[_Twin], sample: Sample, device: torch.device) -> list[Site]:
    """Run the original and measure each site as soon as everything that it needs is there.

    Raises:
        NotTracedError: It does not run on the sample.
    """
    order = original.order()
    ready: defaultdict[fx.Node, list[_Twin]] = defaultdict(list)
    for twin in twins:
        ready[max(twin.needs, key=order.__getitem__)].append(twin)
    uses = Counter(read for node in original.nodes for read in set(all_reads(node)))
    uses.update(node for twin in twins for node in twin.needs)
    values: dict[fx.Node, object] = dict(leaves_by_input(original, sample, device))
    values |= {node: moved(stored, device) for node, stored in original.stored.items()}
    versions = {node: _version(stored) for node, stored in original.stored.items()}
    sites: list[Site] = []
    for node in each([*original.program.graph.nodes], "operation"):
        if node.op == "call_function":
            try:
                values[node] = call(node, values.__getitem__, device)
            except Exception as error:
                raise NotTracedError(f"the program does not run at {node.name!r}: {first_line(error)}") from error
        if node in values and node not in versions:
            versions[node] = _version(values[node])
        sites += [_measure(twin, values, versions, device) for twin in ready[node]]
        used = [*(set(all_reads(node)) if node.op == "call_function" else ())]
        for read in (*used, *(need for twin in ready[node] for need in twin.needs)):
            uses[read] -= 1
            if not uses[read]:
                values.pop(read, None)
    return sites


def _measure(
    twin: _Twin, values: Mapping[fx.Node, object], versions: Mapping[fx.Node, int], device: torch.device
) -> Site:
    held = {node: twin.original.traced.stored[node] for node in twin.original.stored}
    now = {**{node: values[node] for node in twin.needs}, **held}
    changed = [node.name for node, value in now.items() if _version(value) != versions[node]]
    if changed:
        return replace(
            twin.site, reason=f"{changed[0]!r} is changed in place before all that it is compared with is known"
        )
    given = {edge: values[partner] for edge, partner in twin.partners.items()}
    expected = values[twin.original.end]
    if any(is_wrapped(value) for value in (*given.values(), expected) if isinstance(value, torch.Tensor)):
        return replace(twin.site, reason="it is inside of a transform of torch.func")
    try:
        result, magnitude = twin.folded.run(given, device)
        try:
            _, other = twin.original.run({edge: values[edge] for edge in twin.original.edges}, device)
        except (NoBoundError, UnreachedError):
            other = magnitude
    except NoBoundError as error:
        return replace(twin.site, reason=f"no rounding bound is known for {error}")
    except UnreachedError as error:
        return replace(twin.site, reason=str(error))
    except Exception as error:  # noqa: BLE001 - whatever the operators of the folded program raise
        reason = f"{listed(twin.site)} does not run: {first_line(error)}"
        return replace(twin.site, verdict=Verdict.FAIL, reason=reason, ratio=float("inf"))
    assert isinstance(expected, torch.Tensor)  # only tensors are paired
    return _judge(twin, result, expected, magnitude, other)


def _judge(
    twin: _Twin, result: torch.Tensor, expected: torch.Tensor, magnitude: torch.Tensor, other: torch.Tensor
) -> Site:
    axis = twin.folded.channel_axis(expected.dim())
    probe = Probe(
        twin.site,
        twin.folded.end.name,
        ratio="ratio",
        max_abs="max_abs",
        difference="difference",
        signal="signal",
        shapes=("folded", "original"),
        roundoff=max(twin.folded.roundoff, twin.original.roundoff) if expected.is_floating_point() else 0.0,
        has_channels=axis is not None,
    )
    shapes = {"folded": np.array(result.shape), "original": np.array(expected.shape)}
    if result.dtype != expected.dtype:
        reason = f"{listed(twin.site)} gives {result.dtype} instead of {expected.dtype}"
        return replace(twin.site, verdict=Verdict.FAIL, reason=reason, ratio=float("inf"))
    if result.shape != expected.shape:
        return judge_site(probe, {**shapes, **dict.fromkeys(("ratio", "max_abs", "difference", "signal"), np.ones(1))})
    kind = torch.float64 if expected.dtype is torch.float64 else torch.float32
    value = expected.to(kind)
    difference = result.to(kind) - value
    distance = difference.abs()
    ratio = distance / torch.maximum(magnitude, other).clamp_min(TINY) if probe.roundoff else distance
    if ratio.numel() and axis is not None:
        ratio = ratio.amax([other_axis for other_axis in range(ratio.dim()) if other_axis != axis])
    numbers = {
        "ratio": ratio,
        "max_abs": distance.amax() if distance.numel() else distance,
        "difference": difference.square().sum(),
        "signal": value.square().sum(),
    }
    return judge_site(probe, {**shapes, **{name: number.cpu().numpy() for name, number in numbers.items()}})


def _version(value: object) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_version, value))
    return value._version if isinstance(value, torch.Tensor) else 0
