"""What `import bnfold` shows, and what its results look like in a terminal and in a notebook."""

import logging
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import bnfold

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
VERIFY = {"device": "cpu", "samples": 1}


@pytest.fixture(scope="module")
def result():
    return bnfold.fold(SAMPLE)


@pytest.fixture(scope="module")
def results(result):
    timing = bnfold.benchmark(SAMPLE, SAMPLE, device="cpu", seconds=0.05)
    return {"FoldResult": result, "Plan": result.plan, "Report": result.verify(**VERIFY), "Timing": timing}


def test_dir_is_what_is_public():
    names = dir(bnfold)
    assert set(names) == {*bnfold.__all__, "onnx"}
    assert {"fold", "inspect", "verify", "benchmark", "FoldResult", "BnfoldError"} <= set(names)
    assert all(getattr(bnfold, name) is not None for name in names)


def test_the_pass_is_there_without_another_import():
    program = "import bnfold; print(bnfold.onnx.FoldBatchNormPass.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "FoldBatchNormPass\n"


def test_a_star_import_leaves_onnx_alone():
    assert "onnx" not in bnfold.__all__


class Balanced(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("kind", ["FoldResult", "Plan", "Report", "Timing"])
def test_a_result_in_one_line_in_several_and_as_html(results, kind):
    found = results[kind]
    assert repr(found).startswith(f"<{kind}: ")
    assert repr(found).count("\n") == 0
    assert len(repr(found)) < 300
    html = Balanced(found._repr_html_())
    assert html.open == []
    for word in found.summary().split():
        assert word in " ".join(html.text)


def test_the_summary_of_a_fold(result):
    assert result.summary().splitlines()[:4] == [
        "            before  after",
        "BatchNorms  14      0",
        "nodes       85      30",
        "parameters  73,567  71,258",
    ]


def test_html_of_names_is_escaped(result):
    from dataclasses import replace

    from bnfold.graph import Kind
    from bnfold.planning.plan import Left
    from bnfold.reasons import StopCode

    left = Left(("<script>alert(1)</script>",), Kind.BATCH_NORM, StopCode.NONLINEAR, "a & b", 1)
    html = replace(result.plan, left=(left,))._repr_html_()
    assert "<script>" not in html
    assert "a &amp; b" in html


def test_fold_verifies_on_request():
    told = []
    result = bnfold.fold(SAMPLE, verify=True, progress=told.append)
    assert result.report.verdict == "pass"
    assert result.summary().startswith("pass: outputs match on ")
    assert told[0] == "folding"
    assert "running the original" in told
    assert "running the folded model" in told
    for model, first in (("original", 2), ("folded model", 1)):  # the first sample has been run to see what fits
        assert [words for words in told if words.startswith(f"running the {model},")] == [
            f"running the {model}, sample {number} of 4" for number in range(first, 5)
        ]
    regions = result.check().regions
    assert f"comparing changed regions exactly, region {regions} of {regions}" in told
    assert "measuring the rounding noise, sample 4 of 4" in told
    before = len(told)
    bnfold.fold(SAMPLE, check=True)
    assert len(told) == before


def test_a_wrong_fold_is_an_error(monkeypatch):
    from bnfold.algebra.linear_map import Folding

    right = Folding.bias
    monkeypatch.setattr(Folding, "bias", lambda self: None if right(self) is None else right(self) * 1.01)
    with pytest.raises(bnfold.VerificationError, match="the folded model does not match: fail: "):
        bnfold.fold(SAMPLE, verify=True)
    assert bnfold.fold(SAMPLE).report is None


def test_the_log_is_silent_unless_asked(capfd, caplog):
    bnfold.fold(SAMPLE)
    assert capfd.readouterr() == ("", "")
    with caplog.at_level(logging.INFO, logger="bnfold"):
        bnfold.fold(SAMPLE)
    assert caplog.messages == ["folding"]
