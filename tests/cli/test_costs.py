"""What `fold` says of what a run takes: counted for files that ran, measured with --bench."""

import json
from pathlib import Path

import onnx
import pytest
from bnfold.cli.shared import costs
from small_networks import original, random_layers

import bnfold

QUICK = ("--device", "cpu", "--samples", "1")


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def timing_of(pair, _):
        return bnfold.benchmark(pair.original, pair.folded, seconds=0.05)

    monkeypatch.setattr(costs, "timing_of", timing_of)
    onnx.save(original(random_layers(2)), "a.onnx")


def row(out, name):
    return next((line.split("  ")[1:] for line in out.splitlines() if line.startswith(f"{name} ")), None)


def test_costs_are_counted_where_something_ran(run, model):
    _, out, _ = run("fold", "a.onnx", "-o", "b.onnx", *QUICK)
    assert row(out, "multiply-adds")
    assert row(out, "peak activations")
    assert row(out, "latency") is None
    _, out, _ = run("fold", "a.onnx", "-o", "b.onnx", "--no-verify")
    assert row(out, "multiply-adds") is None


def test_bench_adds_the_latency(run, model):
    code, out, err = run("fold", "a.onnx", "-o", "b.onnx", *QUICK, "--bench", "--report", "page.md", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["bench"]["schema"] == "bnfold.bench/1"
    assert document["costs_before"]["multiply_adds"] > document["costs_after"]["multiply_adds"] > 0
    assert "| latency |" in Path("page.md").read_text("utf-8")
    _, out, _ = run("fold", "a.onnx", "-o", "b.onnx", *QUICK, "--bench")
    assert row(out, "latency")
    assert "original/folded " in out


def test_bench_without_something_to_measure_says_so(run, model, monkeypatch):
    code, _, err = run("fold", "a.onnx", "--dry-run", "--bench")
    assert (code, err) == (0, "note: --bench has no effect: nothing was written\n")

    def refuse(*_):
        raise bnfold.UsageError("one model is of onnxruntime and one of torch")

    monkeypatch.setattr(costs, "timing_of", refuse)
    code, _, err = run("fold", "a.onnx", "-o", "b.onnx", *QUICK, "--bench")
    assert (code, err) == (0, "note: the latency was not measured: one model is of onnxruntime and one of torch\n")
    code, _, err = run("fold", "a.onnx", "-o", "a.onnx", "--force", *QUICK, "--bench")
    assert (code, err) == (0, "note: the latency was not measured: the original is not there any more\n")
