"""`bnfold verify` on a terminal: the worst sites, the outputs, the verdict."""

import json

import onnx
import pytest
from bnfold.cli.main import app
from small_networks import changed, folded, original, random_layers
from typer.testing import CliRunner


@pytest.fixture
def files(tmp_path):
    layers = random_layers(8)
    onnx.save(original(layers), tmp_path / "a.onnx")
    onnx.save(folded(layers), tmp_path / "b.onnx")
    onnx.save(folded(changed(layers, 3, beta=layers[3].beta * 1.01)), tmp_path / "wrong.onnx")
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, ["verify", *map(str, words), "--device", "cpu", "--samples", "1"])


def test_the_worst_sites_are_shown_and_the_others_counted(files):
    result = run(files / "a.onnx", files / "b.onnx")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("pass: outputs match on CPU")
    assert lines[1].startswith("  layers   8 sites, worst")
    lines = lines[[line[:4] for line in lines].index("site") :]
    assert lines[0].split()[:2] == ["site", "verdict"]
    assert [line.split()[1] for line in lines[1:6]] == ["pass"] * 5
    ratios = [float(line.split()[2]) for line in lines[1:6]]
    assert ratios == sorted(ratios, reverse=True)
    assert lines[6] == "… and 3 more sites, none worse"


def test_a_wrong_layer_comes_first(files):
    result = run(files / "a.onnx", files / "wrong.onnx")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fail: 'Conv(bn3)' (value 'bn3') differs by")
    assert lines[[line[:4] for line in lines].index("site") + 1].split()[:2] == ["bn3", "fail"]


def test_json_has_all_sites(files):
    document = json.loads(run(files / "a.onnx", files / "wrong.onnx", "--json").stdout)
    assert len(document["sites"]) == 8
    assert [site["verdict"] for site in document["sites"]] == ["fail"] + ["pass"] * 7


def test_what_was_not_measured_is_noted(files):
    layers = random_layers(8)
    other = folded(layers)
    other.opset_import[0].version = 18
    onnx.save(other, files / "other.onnx")
    result = run(files / "a.onnx", files / "other.onnx")
    assert result.exit_code == 0
    assert "note: sites were not measured: the opsets differ (17 and 18)" in result.stdout


def test_a_folder_of_samples(files):
    import numpy as np

    (files / "data").mkdir()
    for index in range(3):
        x = np.random.default_rng(index).standard_normal((1, 3, 16, 16)).astype(np.float32)
        np.savez(files / "data" / f"{index}.npz", x=x)
    result = run(files / "a.onnx", files / "b.onnx", "--inputs", files / "data", "--json")
    assert json.loads(result.stdout)["config"]["samples"] == 3
