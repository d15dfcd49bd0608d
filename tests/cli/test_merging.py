"""What the command line says about branches that are merged, and those that stay."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

BODY = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w3)
  b = Conv (x, w1)
  s = Add (a, b)
  i = BatchNormalization (x, gamma, beta, mean, var)
  r = Add (s, i)
  t = Relu (r)
  c = Conv <pads = [1, 0, 1, 0]> (t, w31)
  d = Conv <pads = [0, 1, 0, 1]> (t, w13)
  y = Add (c, d)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    parsed = onnx.parser.parse_model(BODY)
    draw = np.random.default_rng(0)
    shapes = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "w31": (4, 4, 3, 1), "w13": (4, 4, 1, 3)}
    for name, shape in shapes.items():
        array = draw.standard_normal(shape).astype(np.float32)
        parsed.graph.initializer.append(numpy_helper.from_array(array, name))
    for name in ("gamma", "beta", "mean", "var"):
        array = draw.uniform(0.5, 1.5, 4).astype(np.float32)
        parsed.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [4], array))
    path = tmp_path / "model.onnx"
    onnx.save(parsed, path)
    return path


def test_fold_merges_and_verifies(model, run, tmp_path):
    code, out, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--device", "cpu", "--verbose")
    assert code == 0
    assert "1 BatchNorm: all folded" in out
    before, after = (f"{positions:,}" for positions in (64 * (164 + 96), 64 * (144 + 96)))
    assert ["multiply-adds", before, after] in [line.split() for line in out.splitlines()]
    assert "2 layers merged into 1, 20 of 164 multiply-adds per output position less" in out
    assert "Conv(b), BatchNormalization(i) -> Conv(a)  (3x3 + 1x1 + 1 -> 3x3; 164 -> 144 multiply-adds," in out
    assert "Add(y)  [more_work]  as one map they would take 144 multiply-adds instead of 96" in out
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == [
        "Conv",
        "Relu",
        "Conv",
        "Conv",
        "Add",
    ]


def test_no_merge_leaves_the_branches(model, run, tmp_path):
    code, out, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--no-merge", "--device", "cpu")
    assert code == 0
    assert "merged" not in out
    assert len([node for node in onnx.load(tmp_path / "out.onnx").graph.node if node.op_type == "Conv"]) == 5


def test_the_report_has_the_merges(model, run, tmp_path):
    _, out, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--device", "cpu", "--json")
    (merge,) = json.loads(out)["merges"]
    assert merge == {
        "nodes": ["Conv(b)", "BatchNormalization(i)"],
        "kind": "branches",
        "target": "Conv(a)",
        "branches": 3,
        "kernels": [[3, 3], [1, 1], []],
        "kernel": [3, 3],
        "multiply_adds_before": 164,
        "multiply_adds": 144,
        "parameters_before": 168,
        "parameters": 148,
        "batch_norms": 1,
    }
    (apart,) = json.loads(out)["apart"]
    assert apart["nodes"] == ["Add(y)"]
    assert apart["code"] == "more_work"


def test_inspect_lists_them(model, run):
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "2 layers can be merged into 1" in out
    assert "branches that stay" in out
    _, out, _ = run("inspect", model, "--json")
    assert len(json.loads(out)["merges"]) == len(json.loads(out)["apart"]) == 1
