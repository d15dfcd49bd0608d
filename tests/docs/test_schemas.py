"""The JSON Schema files of docs/schemas describe what is really printed: all of it, and each part of it."""

import json
from pathlib import Path

import onnx
import pytest
import reports
import torch
from bnfold.cli.main import app, main
from merging_networks import RepVgg
from small_networks import changed, folded, original, random_layers
from typer.testing import CliRunner

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with the extra test")

ROOT = Path(__file__).parents[2]
KINDS = ("report", "bench", "doctor", "error")
SCHEMAS = {kind: json.loads((ROOT / f"docs/schemas/{kind}-1.json").read_text("utf-8")) for kind in KINDS}


def closed(part):
    """A schema that allows nothing but what it describes."""
    if isinstance(part, list):
        return [closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    copy = {key: closed(value) for key, value in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        copy["additionalProperties"] = False
    return copy


def printed(*words):
    return json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)


def complaints(kind, document):
    validator = jsonschema.Draft202012Validator(closed(SCHEMAS[kind]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_a_schema(kind):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize("name", reports.ALL)
def test_every_record_is_described(name):
    assert complaints("report", json.loads(reports.ALL[name].to_json())) == []


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = random_layers(2)
    onnx.save(original(layers), "a.onnx")
    onnx.save(folded(changed(layers, 1, beta=layers[1].beta * 1.01)), "wrong.onnx")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("report", ("fold", "a.onnx", "-o", "b.onnx", "--device", "cpu", "--samples", "1")),
        ("report", ("fold", "a.onnx", "--skip", "*", "--dry-run")),
        ("report", ("inspect", "a.onnx")),
        ("report", ("verify", "a.onnx", "wrong.onnx", "--device", "cpu", "--samples", "1", "--rtol", "0.1")),
        ("doctor", ("doctor",)),
        ("bench", ("bench", "a.onnx", "wrong.onnx", "--device", "cpu", "--seconds", "0.05")),
    ],
)
def test_what_is_printed_is_described(files, kind, words):
    document = printed(*words)
    assert document["schema"] == f"bnfold.{kind}/1"
    assert complaints(kind, document) == []


def test_an_error_is_described(files, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bnfold", "inspect", "nothing.onnx", "--json"])
    with pytest.raises(SystemExit):
        main()
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "ModelLoadError"
    assert complaints("error", document) == []


def test_merges_are_described(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = torch.export.export(RepVgg(4, 4).eval(), (torch.zeros(1, 4, 8, 8),))
    torch.export.save(program, "net.pt2")
    document = printed("fold", "net.pt2", "--dry-run")
    assert document["merges"]
    assert complaints("report", document) == []


def test_what_is_not_described_is_found():
    document = json.loads(reports.FOLDED.to_json())
    document["sites"][0]["colour"] = "blue"
    del document["outputs"][0]["cosine"]
    document["verdict"] = "PASS"
    assert len(complaints("report", document)) == 3
