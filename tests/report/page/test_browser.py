"""Pages in a real Chromium: a silent console, nothing to scroll sideways, and nothing that axe-core objects to."""

import re
from dataclasses import replace
from importlib import resources

import pytest
import reports
from chromium import found_in, needed

from bnfold.report.page.index import Entry, write_index
from bnfold.report.page.rendering import html

pytestmark = needed

MEASURE = """(view, page) => {
  const root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(
    (part) => part.getBoundingClientRect().right > root.clientWidth + 0.5);
  return {
    excess: root.scrollWidth - root.clientWidth,
    wide: wide.map((part) => part.outerHTML.slice(0, 80)),
    background: view.getComputedStyle(page.body).backgroundColor,
  };
}"""

JUDGE = """async (view, page) => {
  const {violations, incomplete, passes} = await view.axe.run(page, {resultTypes: ["violations", "incomplete"]});
  const told = violations.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.html}`));
  return {violations: told, unsure: incomplete.map((rule) => rule.id), passed: passes.length};
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of each report, and that of many files."""
    path = tmp_path_factory.mktemp("pages") / "index.html"
    entries = [Entry(f"a/{name}.onnx", "folded", f"{name}.html", found, "", 1) for name, found in reports.ALL.items()]
    write_index([*entries, Entry("broken.onnx", "failed", "", None, "broken.onnx is no ONNX model.", 0)], path)
    return {**{name: html(report) for name, report in reports.ALL.items()}, "index": path.read_text("utf-8")}


@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_and_say_nothing_on_the_console(pages, tmp_path, dark):
    found, console = found_in(pages, MEASURE, tmp_path, widths=(380, 760, 1400), dark=dark)
    assert console == []
    assert len(found) == len(pages) * 3
    assert [page for page in found if page["excess"] > 0] == []
    assert {page["background"] for page in found} == {"rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)"}


def test_a_page_that_does_not_fit_or_complains_is_found(tmp_path):
    wide = '<!doctype html><body><div style="width:500px">wide</div><script>console.error("no")</script>'
    found, console = found_in({"wide": wide}, MEASURE, tmp_path, widths=(380, 760))
    assert [page["name"] for page in found if page["excess"] > 0] == ["wide at 380"]
    assert len(console) == 2


def with_axe(page):
    """The page with axe-core in it, and without the policy that keeps scripts out."""
    axe = resources.files(pytest.importorskip("axe_core_python", reason="it comes with the extra test"))
    script = (axe / "axe.min.js").read_text("utf-8").replace("</script", "<\\/script")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
    return page.replace("</head>", f"<script>{script}</script></head>")


def shortened(report):
    """The report with few of each kind, for axe takes a while over each."""
    return replace(report, sites=report.sites[:6], folds=report.folds[:6], left=report.left[:6])


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(pages, tmp_path, dark):
    kinds = {name: html(shortened(reports.ALL[name])) for name in ("merged", "failed", "leftovers")}
    judged = {name: with_axe(page) for name, page in {**kinds, "index": pages["index"]}.items()}
    found, _ = found_in(judged, JUDGE, tmp_path, widths=(380, 1400), dark=dark)
    for page in found:
        assert page["passed"] > 20, page["name"]
        assert page["violations"] == [], page["name"]
        # what is behind the text of a drawing is beyond it; test_page.py knows these colours
        assert {*page["unsure"]} <= {"color-contrast"}, page["name"]


def test_what_axe_objects_to_is_found(tmp_path):
    page = '<html lang="en"><head><title>x</title></head><main><h1 style="color:#999;background:#fff">pale</h1></main>'
    (found,), _ = found_in({"pale": with_axe(page)}, JUDGE, tmp_path, widths=(380,))
    assert [told.partition(":")[0] for told in found["violations"]] == ["color-contrast"]
