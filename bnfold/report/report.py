"""The report: what was folded, what was left, whether the outputs match, and where that was found out."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from bnfold.planning.plan import Apart, Merge
from bnfold.report.finite import JsonValue, to_json_value
from bnfold.report.records import (
    Costs,
    DeviceInfo,
    Exact,
    FileInfo,
    OutputMetrics,
    PlanEntry,
    Site,
    Verdict,
    VerifyConfig,
)
from bnfold.report.wording import output_table, site_blocks
from bnfold.text.tables import Block, as_html, as_text, plural
from bnfold.version import __version__

SCHEMA = "bnfold.report/1"

_PACKAGES = ("ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxruntime-gpu", "torch")
_DEVICE_NAMES = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What one run found.

    A verification fills the fields up to `sites_note`; a fold adds the plan and the files with `dataclasses.replace`.

    Attributes:
        verdict: The worst of all sites and outputs; FAIL before INCONCLUSIVE before PASS.
        reason: One sentence without a full stop; empty for a plain pass.
        outputs: One entry for each output of the original.
        device: Where it ran; None if nothing ran.
        config: What it takes to repeat it; None if nothing ran.
        timings_s: Duration of each phase in seconds.
        sites: One entry for each value that a fold had to keep, worst first.
        sites_note: Why some sites were not measured; empty if all were.
        exact: What the exact gate found; None where it did not run.
        as_deployed: The outputs of the folded model with the runtime's optimisations and TF32 on, against the same
            original; for information, no part of the verdict. Empty if nobody asked, or the device has no TF32.
        folds: What was folded.
        left: What was not, with reasons.
        merges: Branches that became one map.
        apart: Branches that could have, with the reason why they did not.
        assumptions: What the folds take for granted about how a module is called.
        input: The file that was read.
        output: The file that was written.
        operators_before: How many nodes of each operator the model had; empty unless it was folded.
        operators_after: How many it has.
        costs_before: What a run of the model took; None where that is not known.
        costs_after: What a run of it takes.
        bench: How long both take, as a document of schema "bnfold.bench/1"; None unless somebody asked.
        options: What the fold of one of many files was asked for, by option; empty elsewhere.
    """

    verdict: Verdict
    reason: str = ""
    outputs: tuple[OutputMetrics, ...] = ()
    device: DeviceInfo | None = None
    config: VerifyConfig | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    sites_note: str = ""
    exact: Exact | None = None
    as_deployed: tuple[OutputMetrics, ...] = ()
    folds: tuple[PlanEntry, ...] = ()
    left: tuple[PlanEntry, ...] = ()
    merges: tuple[Merge, ...] = ()
    apart: tuple[Apart, ...] = ()
    assumptions: tuple[str, ...] = ()
    input: FileInfo | None = None
    output: FileInfo | None = None
    operators_before: Mapping[str, int] = field(default_factory=dict)
    operators_after: Mapping[str, int] = field(default_factory=dict)
    costs_before: Costs | None = None
    costs_after: Costs | None = None
    bench: Mapping[str, object] | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def batch_norms_folded(self) -> int:
        """How many BatchNorms are gone, into weights around them or into merged branches."""
        return sum(entry.batch_norms for entry in self.folds) + sum(merge.batch_norms for merge in self.merges)

    @property
    def affines_folded(self) -> int:
        """How many folds are of an affine that is spelled out in other operators."""
        return sum(entry.kind == "affine" for entry in self.folds)

    def to_dict(self) -> dict[str, JsonValue]:
        """The report under schema "bnfold.report/1"; every number is finite."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "tool": _tool(),
            "input": to_json_value(self.input),
            "output": to_json_value(self.output),
            "operators_before": to_json_value(self.operators_before),
            "operators_after": to_json_value(self.operators_after),
            "costs_before": to_json_value(self.costs_before),
            "costs_after": to_json_value(self.costs_after),
            "bench": to_json_value(self.bench),
            "options": to_json_value(self.options),
            "device": to_json_value(self.device),
            "folds": to_json_value(self.folds),
            "merges": to_json_value(self.merges),
            "apart": to_json_value(self.apart),
            "left": to_json_value(self.left),
            "assumptions": to_json_value(self.assumptions),
            "sites": to_json_value(self.sites),
            "sites_note": self.sites_note,
            "exact": to_json_value(self.exact),
            "as_deployed": to_json_value(self.as_deployed),
            "outputs": to_json_value(self.outputs),
            "config": to_json_value(self.config),
            "timings": to_json_value(self.timings_s),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as one JSON document without NaN or Infinity literals; without an indent on one line."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent, ensure_ascii=False)

    def summary_line(self) -> str:
        """One line: the verdict, where it was taken, and what it rests on."""
        facts = [facts for _, facts in self._evidence()]
        return ("; " if self.device is None else ", ").join([self._headline(), *facts])

    def summary(self) -> str:
        """Several lines: the verdict, and tables of the outputs and of the worst folded layers."""
        return as_text(self.blocks())

    def verdict_lines(self) -> list[str]:
        """What `summary_line` says, with a line for each question that was asked."""
        return [self._headline(), *(f"  {question:8} {facts}" for question, facts in self._evidence())]

    def blocks(self) -> list[Block]:
        """The lines of `summary`, with its tables as tables."""
        tables = self.tables()
        return [*self.verdict_lines(), *([""] if tables else []), *tables]

    def tables(self) -> list[Block]:
        """The outputs, and the worst folded layers."""
        parts: list[list[Block]] = [[output_table(self.outputs)]] if self.outputs else []
        parts += [["as deployed, with TF32", output_table(self.as_deployed)]] if self.as_deployed else []
        sites = site_blocks(self.sites, self.sites_note)
        parts += [sites] if sites else []
        return [block for part in parts for block in ("", *part)][1:]

    def __repr__(self) -> str:
        return f"<Report: {self.summary_line()}>"

    def _repr_html_(self) -> str:
        return as_html(self.blocks())

    def _headline(self) -> str:
        if self.device is None or self.config is None:
            return f"{self.verdict}: {self.reason or 'nothing was run'}"
        name = _DEVICE_NAMES.get(self.device.used, self.device.used)
        where = f"{name} ({self.device.provider}, {'TF32 on' if self.device.tf32 else 'TF32 off'})"
        if self.verdict is Verdict.PASS and not self.reason:
            return f"pass: outputs match on {where}"
        return f"{self.verdict}: {self.reason}; on {where}"

    def _evidence(self) -> list[tuple[str, str]]:
        """What was found for each of the questions that were asked; see docs/verdict.md."""
        found = [("algebra", [] if self.exact is None else [self.exact.summary()])]
        if self.device is not None and self.config is not None:
            found += [("layers", self._layers(self.config)), ("outputs", self._outputs(self.config))]
        return [(question, ", ".join(facts)) for question, facts in found if facts]

    def _layers(self, config: VerifyConfig) -> list[str]:
        ratios = [site.ratio for site in self.sites if site.ratio is not None]
        unmeasured = sum(site.verdict is Verdict.SKIPPED for site in self.sites)
        facts = []
        if ratios:
            worst = f"worst {max(ratios):.3g} rounding bounds (limit {config.site_limit:g})"
            facts.append(f"{plural(len(ratios), 'site')}, {worst}")
        if unmeasured:
            facts.append(f"{plural(unmeasured, 'site')} judged by the outputs alone")
        elif self.sites_note and not self.sites:
            facts.append("no sites measured")
        return facts

    def _outputs(self, config: VerifyConfig) -> list[str]:
        facts = [plural(config.samples, "sample")]
        ratios = [output.noise_ratio for output in self.outputs if output.noise_ratio is not None]
        if ratios:
            facts.append(f"worst noise ratio {max(ratios):.3g} (limit {config.noise_limit:g})")
        if config.rtol is not None or config.atol is not None:
            facts.append(f"rtol {config.rtol or 0.0:g} and atol {config.atol or 0.0:g} instead of the noise ratio")
        if config.inputs_note:
            facts.append(f"in the inputs {config.inputs_note}")
        differences = [output.max_abs for output in self.outputs if output.max_abs is not None]
        if differences:
            facts.append(f"max abs {max(differences):.2g}")
        return facts


def _tool() -> dict[str, JsonValue]:
    """Versions of what took part, from the installed metadata: importing the packages would cost seconds."""
    packages: dict[str, JsonValue] = {}
    for package in _PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"version": __version__, "python": platform.python_version(), "packages": packages}
