"""The page of a report: what is on it, that nothing of a stranger's file acts in it, and how it is written."""

import os
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import reports
from markdown_it import MarkdownIt

from bnfold.errors import OutputError
from bnfold.report.page import write_page
from bnfold.report.page.chart import chart_of
from bnfold.report.page.colours import GRAPHIC_PAIRS, PALETTES, TEXT_PAIRS
from bnfold.report.page.index import Entry, write_index
from bnfold.report.page.rendering import html, inert, markdown

VOID = {"meta", "link", "br", "line", "rect"}
APART = {"td", "th", "br", "li", "p", "h1", "h2", "strong", "summary", "svg"}


class Page(HTMLParser):
    """The text of a page, its elements, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts += [" "] if tag in APART else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & {*self.open}:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@pytest.mark.parametrize("name", reports.ALL)
def test_a_page_stands_for_itself_and_has_no_script(name):
    page = Page(html(reports.ALL[name]))
    assert not {"script", "img", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.elements}
    attributes = {key: value for _, attrs in page.elements for key, value in attrs.items()}
    assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "style")]
    assert {attrs["href"] for _, attrs in page.elements if "href" in attrs} == {"data:,"}
    policy = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in html(reports.ALL[name])
    assert "@import" not in html(reports.ALL[name])


def test_verdict_and_device_come_first():
    assert Page(html(reports.FAILED)).text.startswith(
        "bnfold report on a.onnx fail The models differ: 'conv_bn3' differs by 5.98e+04 times its rounding bound in"
        " channel 7. a processor, CPUExecutionProvider, TF32 off, 4 samples. Not on a GPU: no GPU. Outputs"
    )


def test_everything_folded_merged_and_left_is_told():
    text = Page(html(reports.MERGED)).text
    assert "bn52 → relu → concat → conv_bn52 (on its output)" in text
    assert (
        "c0 holds 4 branches took c1, c2, bn kernels 3×3 + 3×3 + 1×1 + 1 → 3×3; multiply-adds a position 888 → 216"
        in text
    )
    assert "d0 holds 2 branches took the identity" in text
    assert "e0 holds two layers in a row took e1 kernels 1×1, then 3×3 → 3×3" in text
    assert "add strides their strides are 1 and 2" in text
    assert f"read resnet.onnx, onnx, 102.0 MB SHA-256 {'ab' * 32} written folded.onnx" in text
    assert "BatchNorms, however written 54 0 nodes 106 53 BatchNormalization nodes 53 0" in text
    assert "multiply-adds 4,100,298,240 4,089,184,256 peak activations 9.6 MB 9.6 MB" in text
    assert "latency 31.5 ms 30.2 ms" in text
    leftovers = Page(html(reports.LEFTOVERS)).text
    assert "nonlinear 60" in leftovers
    assert all(f"{reports.LONG}{number} nonlinear backward: Relu 'r'" in leftovers for number in range(60))


def test_the_chart_has_the_worst_first_and_the_limit_where_it_is():
    page = Page(html(replace(reports.FAILED, sites=(*reports.FAILED.sites[1:2], reports.site("ok", 3.2)))))
    bars = [attrs for tag, attrs in page.elements if tag == "rect"]
    assert [bar.get("class") for bar in bars] == ["failed", None]
    failed, good = (float(bar["width"].rstrip("%")) for bar in bars)
    (limit,) = [
        float(attrs["x1"].rstrip("%"))
        for tag, attrs in page.elements
        if attrs.get("class") == "limit" and tag == "line"
    ]
    # The axis goes from 1 to 1e6: a decade is a sixth of the width.
    assert failed == pytest.approx(100 * 4.7767 / 6, abs=0.01)
    assert good == pytest.approx(100 * 0.50515 / 6, abs=0.01)
    assert limit == pytest.approx(100 * 1.50515 / 6, abs=0.01)


def test_bars_of_nothing_and_of_no_number_have_a_place():
    page = Page(html(reports.FAILED))
    assert [attrs["width"] for tag, attrs in page.elements if tag == "rect"][::2] == ["100.0%", "0.3%"]
    assert "nan not finite" in page.text


@pytest.mark.parametrize("ratio", [1e-300, 1e-40, 1e40, 1e300])
def test_one_odd_bar_leaves_room_for_the_others(ratio):
    chart = chart_of((reports.site("odd", ratio), reports.site("ok", 3.2)), 32.0)
    assert 10 < chart.limit < 95
    ends = {bar.name: bar.percent for bar in chart.bars}
    assert ends["odd"] == (100.0 if ratio > 1 else 0.0)
    assert chart.limit - ends["ok"] > 5


def test_nothing_measured_makes_no_chart():
    assert "<svg" not in html(reports.INCONCLUSIVE)
    assert "skipped&#39; was not measured on its own" in html(reports.INCONCLUSIVE)


def test_names_of_strangers_are_text():
    page = Page(html(reports.STRANGE))
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in html(reports.STRANGE)
    assert "\u202e" not in markdown(reports.STRANGE)


def test_markdown_is_inert():
    text = markdown(reports.STRANGE)
    assert "<script" not in text
    assert "@someone" not in text
    assert "](javascript" not in text
    tags = set(re.findall(r"<[^>]*>", text))
    assert tags == {"<code>", "</code>", "<details>", "<details open>", "</details>", "<summary>", "</summary>"}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4, 7, 5}


@pytest.mark.parametrize("name", reports.ALL)
def test_a_reader_of_markdown_finds_no_more_than_text_and_tables(name):
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(reports.ALL[name]))
    kinds = {token.tag for token in tokens} | {child.tag for token in tokens for child in token.children or ()}
    assert kinds <= {"", "h2", "p", "ul", "li", "br", "table", "thead", "tbody", "tr", "th", "td"}
    widths = [0]
    for token in tokens:
        widths += [0] if token.type == "tr_open" else []
        widths[-1] += token.type in ("td_open", "th_open")
    assert {*widths[1:]} <= {3, 4, 6}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer_1.conv/weight", "layer_1.conv/weight"),
        ("_x_", "&#95;x&#95;"),
        ("a|b", "a&#124;b"),
        ("@me", "&#64;&#8203;me"),
        ("https://www.example.com", "https&#58;//www&#46;example.com"),
        ("a\nb", "a&#92;nb"),
    ],
)
def test_what_markdown_would_act_on_is_an_entity(text, shown):
    assert inert(text) == shown


def test_markdown_has_the_same_facts():
    text = markdown(reports.MERGED)
    assert text.startswith(
        "## bnfold: pass\n\nThe outputs match.\n\na processor, CPUExecutionProvider, TF32 off, 4 samples.\n"
    )
    assert "| BatchNorms, however written | 54 | 0 |" in text
    assert "| <code>c0</code> | 4 | 3×3 + 3×3 + 1×1 + 1 → 3×3 | 888 → 216 |" in text
    assert "<details open><summary>Layers, worst first (3; limit 32)" in markdown(reports.FAILED)
    assert text.count("| <code>bn") == 30
    assert "… and 23 layers more, none worse" in text


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize(("pairs", "least"), [(TEXT_PAIRS, 4.5), (GRAPHIC_PAIRS, 3.0)])
def test_colours_have_contrast(scheme, pairs, least):
    palette = PALETTES[scheme]
    for one, other in pairs:
        assert contrast(palette[one], palette[other]) >= least, (one, other)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_both_palettes_have_the_same_colours():
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()
    used = {*re.findall(r"var\(--([\w-]+)\)", html(reports.FOLDED))}
    assert used <= PALETTES["light"].keys()


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_page_replaces_another_at_the_very_end(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(0o640)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="cannot be written: No space left"):
            write_page(reports.FOLDED, path)
    assert path.read_text() == "old"
    write_page(reports.FOLDED, path)
    assert path.read_text(encoding="utf-8") == html(reports.FOLDED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_name_that_is_no_unicode_can_be_written(tmp_path):
    named = replace(reports.FOLDED, input=replace(reports.FOLDED.input, path="\udcff.onnx"))
    write_page(named, tmp_path / "report.md")
    write_page(named, tmp_path / "report.html")
    assert "\\udcff.onnx" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["report.pdf", "report", "missing/report.html"])
def test_where_a_page_cannot_go(tmp_path, name):
    with pytest.raises(OutputError):
        write_page(reports.FOLDED, tmp_path / name)


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_the_page_of_many_files_has_what_failed_at_its_top(tmp_path, suffix):
    path = tmp_path / f"index{suffix}"
    entries = [Entry(f"{number}.onnx", "folded", "", reports.FOLDED, "", 1) for number in range(3)]
    write_index([*entries, Entry("broken.onnx", "failed", "", None, "It is no model.", 0)], path)
    text = path.read_text("utf-8")
    assert text.index("broken.onnx") < text.index("0.onnx") < text.index("1.onnx")
