"""An installation without the extra `torch`: ONNX files are folded and verified, the rest says what to install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
INSTALL = "Install it with: pip install 'bnfold[torch]'"

PROGRAM = """
import contextlib, io, json, sys
for package in sys.argv[2:]:
    sys.modules[package] = None  # as Python marks what must not be imported
from bnfold.cli.main import main
results = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["bnfold", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print("RESULTS" + json.dumps(results))
"""


def run(folder, missing, *commands):
    words = json.dumps([[str(word) for word in command] for command in commands])
    command = [sys.executable, "-c", PROGRAM, words, *missing]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.partition("RESULTS")[2])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text("import torch\n\nclass Net(torch.nn.Module):\n    pass\n")
    (tmp_path / "m.pt2").write_bytes(b"PK")
    (tmp_path / "w.safetensors").write_bytes(b"PK")
    return tmp_path


def test_onnx_files_are_folded_and_verified(folder):
    missing = ("torch", "onnxscript", "safetensors")
    folding, verifying = run(
        folder, missing, ("fold", SAMPLE, "-o", "o.onnx"), ("verify", SAMPLE, "o.onnx", "--samples", "1")
    )
    assert (folding[0], verifying[0]) == (0, 0)
    assert "pass: outputs match on " in folding[1]
    assert (folder / "o.onnx").exists()


def test_what_needs_torch_says_in_one_sentence_what_to_install(folder):
    commands = [
        ("fold", "nets:Net", "--input", "1,3,8,8", "-o", "o.onnx"),
        ("fold", "nets:Net", "--input", "1,3,8,8", "-o", "o.safetensors"),
        ("fold", "m.pt2", "-o", "o.pt2"),
        ("fold", "m.pt2", "-o", "o.onnx"),
        ("fold", "w.safetensors", "-o", "o.pt2"),
        ("inspect", "nets:Net", "--input", "1,3,8,8"),
        ("inspect", "m.pt2"),
        ("verify", "nets:Net", "m.pt2", "--input", "1,3,8,8"),
        ("verify", "m.pt2", "m.pt2"),
        ("verify", "m.pt2", SAMPLE),
        ("bench", "m.pt2", "m.pt2"),
        ("bench", "nets:Net", "nets:Net", "--input", "1,3,8,8"),
    ]
    results = run(folder, ("torch",), *commands)
    for command, (code, out, err) in zip(commands, results, strict=True):
        assert (command, code, out) == (command, 4, "")
        assert err == f"error: a PyTorch model needs PyTorch, which is not installed. {INSTALL}\n"


def test_torch_without_what_its_files_need(tmp_path):
    (tmp_path / "nets.py").write_text((Path(__file__).parent / "torch_factories.py").read_text())
    commands = [
        ("fold", "nets:Net", "--input", "1,3,8,8", "-o", "o.safetensors"),
        ("fold", "nets:Net", "--input", "1,3,8,8", "-o", "o.onnx"),
    ]
    (no_file, no_export) = run(tmp_path, ("onnxscript", "safetensors"), *commands)
    assert no_file[0] == no_export[0] == 4
    assert "error: a .safetensors file needs safetensors, which is not installed. " + INSTALL in no_file[2]
    assert "error: the export to ONNX needs onnxscript, which is not installed. " + INSTALL in no_export[2]
