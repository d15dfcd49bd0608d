"""The report as a line and as JSON."""

import dataclasses
import json
import math

import pytest

from bnfold.report import (
    DeviceInfo,
    Exact,
    FileInfo,
    InputInfo,
    OutputMetrics,
    PlanEntry,
    Report,
    Site,
    Verdict,
    VerifyConfig,
)
from bnfold.report.finite import to_json_value

CPU = DeviceInfo(
    "auto", "cpu", "a processor", "CPUExecutionProvider", "no GPU", nodes_per_provider={"CPUExecutionProvider": 3}
)
CONFIG = VerifyConfig(0, 4, (InputInfo("x", (1, 3, 8, 8), "float32", dynamic=True, source="seeded"),), 4)


def output(verdict=Verdict.PASS, **metrics):
    return OutputMetrics("y", "float32", (1, 10), verdict, samples=4, **metrics)


GOOD = Report(Verdict.PASS, outputs=(output(max_abs=2.1e-6, noise_ratio=0.43, rel_l2=1e-7),), device=CPU, config=CONFIG)


def test_the_line_of_a_pass():
    assert GOOD.summary_line() == (
        "pass: outputs match on CPU (CPUExecutionProvider, TF32 off), 4 samples, "
        "worst noise ratio 0.43 (limit 4), max abs 2.1e-06"
    )


def test_each_question_has_a_line():
    site = Site("bn1", ("conv1",), Verdict.PASS, ratio=3.25)
    exact = Exact(Verdict.PASS, regions=2, equal=2, sizes=2)
    assert dataclasses.replace(GOOD, sites=(site,), exact=exact).verdict_lines() == [
        "pass: outputs match on CPU (CPUExecutionProvider, TF32 off)",
        "  algebra  2 of 2 changed regions exactly equal at 2 sizes",
        "  layers   1 site, worst 3.25 rounding bounds (limit 32)",
        "  outputs  4 samples, worst noise ratio 0.43 (limit 4), max abs 2.1e-06",
    ]


def test_the_line_of_a_failure_begins_with_the_reason():
    report = Report(
        Verdict.FAIL,
        "output 'y' differs by 57 times the model's own rounding noise",
        (output(Verdict.FAIL, max_abs=0.5, noise_ratio=57.0),),
        CPU,
        VerifyConfig(0, 1, noise_draws=4),
    )
    assert report.summary_line() == (
        "fail: output 'y' differs by 57 times the model's own rounding noise; on CPU (CPUExecutionProvider, "
        "TF32 off), 1 sample, worst noise ratio 57 (limit 4), max abs 0.5"
    )


def test_the_line_of_what_did_not_run():
    assert Report(Verdict.SKIPPED, "asked not to verify").summary_line() == "skipped: asked not to verify"


def test_json_has_every_key_of_the_schema():
    document = json.loads(GOOD.to_json())
    assert document["schema"] == "bnfold.report/1"
    assert set(document) == {
        *("schema", "verdict", "reason", "tool", "input", "output", "device", "folds", "merges", "apart", "left"),
        *("assumptions", "operators_before", "operators_after", "options", "costs_before", "costs_after", "bench"),
        *("sites", "sites_note", "exact", "as_deployed", "outputs", "config", "timings"),
    }
    assert (document["merges"], document["sites"]) == ([], [])
    assert set(document["tool"]) == {"version", "python", "packages"}
    assert {"numpy", "onnx"} <= set(document["tool"]["packages"])
    assert document["device"]["nodes_per_provider"] == {"CPUExecutionProvider": 3}
    assert document["config"]["inputs"][0]["shape"] == [1, 3, 8, 8]
    assert document["verdict"] == "pass"


def test_plan_and_files_are_told():
    report = Report(
        Verdict.PASS,
        folds=(PlanEntry(("bn1",), "batch_norm", None, None, ("conv1",), "output", ("relu1",), 1),),
        left=(PlanEntry(("bn2",), "batch_norm", "no_target", "nothing takes it"),),
        input=FileInfo("a.onnx", "00", "onnx", 10),
    )
    document = report.to_dict()
    assert document["folds"] == [
        {
            "nodes": ["bn1"],
            "kind": "batch_norm",
            "code": None,
            "reason": None,
            "targets": ["conv1"],
            "direction": "output",
            "written": None,
            "path": ["relu1"],
            "batch_norms": 1,
        }
    ]
    assert document["left"][0]["reason"] == "nothing takes it"
    assert document["input"] == {"path": "a.onnx", "sha256": "00", "format": "onnx", "bytes": 10, "data_files": []}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_with_a_count(value):
    text = Report(Verdict.FAIL, outputs=(output(max_abs=value, noise_ratio=value, rel_l2=1.0),)).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    told = json.loads(text)["outputs"][0]
    assert (told["max_abs"], told["noise_ratio"], told["rel_l2"]) == (None, None, 1.0)
    assert told["nonfinite_values"] == 2


def test_finite_records_have_no_count():
    assert "nonfinite_values" not in json.loads(GOOD.to_json())["outputs"][0]


def test_lists_of_numbers_are_finite_too():
    assert to_json_value({"a": [1.0, math.nan], "b": (True, None)}) == {"a": [1.0, None], "b": [True, None]}


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="set"):
        to_json_value({1, 2})


def test_sites_are_told_worst_first():
    site = Site("bn1", ("conv1",), Verdict.PASS, ratio=3.25, max_abs=1e-6, rel_l2=2e-7, channel=4)
    lost = Site("h", ("soft",), Verdict.SKIPPED, "no rounding bound is known for Softmax")
    report = dataclasses.replace(GOOD, sites=(site, lost), sites_note="'h' was not measured on its own")
    said = "1 site, worst 3.25 rounding bounds (limit 32), 1 site judged by the outputs alone, 4 samples, worst noise"
    assert said in report.summary_line()
    nothing = dataclasses.replace(GOOD, sites_note="sites were not measured: the opsets differ (17 and 18)")
    assert "TF32 off), no sites measured, 4 samples, worst noise" in nothing.summary_line()
    document = json.loads(report.to_json())
    assert document["sites"][0] == {
        "name": "bn1",
        "nodes": ["conv1"],
        "verdict": "pass",
        "reason": "",
        "ratio": 3.25,
        "max_abs": 1e-6,
        "rel_l2": 2e-7,
        "channel": 4,
    }
    assert document["sites"][1]["ratio"] is None
    assert document["sites_note"] == "'h' was not measured on its own"
    assert document["config"]["site_limit"] == 32


def test_an_infinite_ratio_becomes_null():
    site = Site("bn1", ("conv1",), Verdict.FAIL, "wrong", ratio=math.inf)
    (told,) = json.loads(dataclasses.replace(GOOD, sites=(site,)).to_json())["sites"]
    assert (told["ratio"], told["nonfinite_values"]) == (None, 1)
