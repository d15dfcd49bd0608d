"""The sites gate: every region that a fold changed, fed with the original's own activations, gives what that gives.

    ratio = max |folded − original| / (u · Σ |terms|)      per channel, u the unit roundoff of the storage type

Two correct ways to compute one sum differ by a small multiple of u · Σ |terms|, whatever the network; a fault does not
depend on u at all. See `sites_model` for how the difference is taken and `bounds` for the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bnfold.input_spec import Array
from bnfold.onnx.file.load import OnnxModel
from bnfold.report.records import Site, Verdict
from bnfold.verification.judging.sites import Probe, SitesOutcome, badness, judge_site, unreached_note, worst_failure
from bnfold.verification.judging.structured_outputs import is_part_of
from bnfold.verification.onnx.sites.model import NoSitesError, SitesModel, build_sites_model
from bnfold.verification.runtime.devices import Device
from bnfold.verification.runtime.initializers import referred_initializers
from bnfold.verification.runtime.parts import InParts
from bnfold.verification.runtime.sessions import RuntimeFailure

_FAR_OFF = 1e4  # ratio


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
    tensors = {tensor.name: tensor for tensor in (*built.weights, *referred_initializers(model.proto.graph))}
    nbytes = {name: model.store.nbytes(tensor) for name, tensor in tensors.items()}
    parts = InParts(model.proto, nbytes, device, in_order=True)
    (results,) = parts.run([feed], lambda name: model.array(tensors[name]))
    measured = [judge_site(probe, results) for probe in built.probes]
    measured.sort(key=badness, reverse=True)
    outputs = [value.name for value in original.proto.graph.output]
    references = {name: value for name, value in results.items() if any(is_part_of(name, output) for output in outputs)}
    return SitesOutcome(
        (*measured, *built.unreached),
        unreached_note(built.unreached, lost=built.pairing.matters and not built.probes),
        references,
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


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
