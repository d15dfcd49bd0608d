"""The outputs and the sites of a verification as tables, and what a fold saves as rows of one."""

from collections.abc import Mapping, Sequence

from bnfold.report.records import Costs, OutputMetrics, Site
from bnfold.text.tables import Block, Table, duration, size

SHOWN_SITES = 5


def output_table(outputs: Sequence[OutputMetrics]) -> Table:
    """One row for each output."""
    header = ("output", "verdict", "max abs", "rel L2", "SQNR", "cosine", "top-1", "noise ratio")
    return [header, *map(_output_row, outputs)]


def site_blocks(sites: Sequence[Site], note: str, limit: int | None = SHOWN_SITES) -> list[Block]:
    """A table of sites, worst first, and a line on what could not be measured."""
    measured = [site for site in sites if site.ratio is not None]
    header = ("site", "verdict", "x rounding", "channel", "max abs", "rel L2", "nodes")
    blocks: list[Block] = [[header, *map(_site_row, measured[:limit])]] if measured else []
    if limit is not None and len(measured) > limit:
        blocks.append(f"… and {len(measured) - limit} more sites, none worse")
    if note:
        blocks.append(f"note: {note}")
    return blocks


def cost_rows(before: Costs, after: Costs) -> list[tuple[str, str, str]]:
    """What a run takes, before and after."""
    return [
        ("multiply-adds", f"{before.multiply_adds:,}", f"{after.multiply_adds:,}"),
        ("peak activations", size(before.peak_activation_bytes), size(after.peak_activation_bytes)),
    ]


def latency_rows(bench: Mapping[str, object] | None) -> list[tuple[str, str, str]]:
    """How long a run takes, before and after, for each batch size of a document of schema "bnfold.bench/1"."""
    rows = []
    for each in bench["comparisons"] if bench else ():  # type: ignore[attr-defined]
        name = "latency" if each["batch"] is None else f"latency, batch {each['batch']}"
        rows.append((name, duration(each["original"]["median_s"]), duration(each["folded"]["median_s"])))
    return rows


def _output_row(output: OutputMetrics) -> tuple[str, ...]:
    return (
        output.name,
        output.verdict.value,
        _figure(output.max_abs, ".2e"),
        _figure(output.rel_l2, ".2e"),
        _figure(output.sqnr_db, ".1f", " dB"),
        _figure(output.cosine, ".6f"),
        _figure(output.top1_agreement, ".1%"),
        _figure(output.noise_ratio, ".2f"),
    )


def _site_row(site: Site) -> tuple[str, ...]:
    return (
        site.name,
        site.verdict.value,
        _figure(site.ratio, ".3g"),
        "-" if site.channel is None else str(site.channel),
        _figure(site.max_abs, ".2e"),
        _figure(site.rel_l2, ".2e"),
        " + ".join(site.nodes[:3]) + (" …" if len(site.nodes) > 3 else ""),
    )


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
