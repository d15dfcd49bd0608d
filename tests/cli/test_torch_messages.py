"""What `bnfold` says about PyTorch models that cannot be folded like this: one sentence, and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

QUICK = ("--device", "cpu", "--samples", "1")
IMAGE = ("--input", "1,3,8,8")

pytestmark = pytest.mark.usefixtures("factories")


def files():
    return sorted(path.name for path in Path().iterdir() if path.name not in ("nets.py", "__pycache__"))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nets:Net()", *IMAGE), 3, "A name goes there, not a call: nets:Net, and arguments with --kwargs"),
        (("./nets.py:Net", *IMAGE), 3, "Perhaps nets:Net?"),
        (("sub/nets.py:Net", *IMAGE), 3, "Perhaps sub.nets:Net?"),
        (("nets.py:Net", *IMAGE), 3, "Write nets:Net, without .py"),
        (("nothing", *IMAGE), 3, "no file, and no package.module:factory"),
        (("nets:Net", "--input", "1,4,8,8"), 2, "Net fails with these inputs: Given groups=1"),
        (("nets:Net", "--input", "1,3"), 2, "Net fails with these inputs"),
        (("nets:half", *IMAGE), 2, "float16: give --input image:1,3,8,8:float16"),
        (("nets:Net", *IMAGE, "--dynamic", "image:1=c"), 3, "its code needs c = 3. Perhaps an axis of --dynamic"),
        (
            ("nets:Detecting", *IMAGE),
            2,
            "lists or dicts, as detectors do, let the factory return the part that takes tens",
        ),
        (("nets:Texts", *IMAGE), 3, "returns 'hi', a str, which an ONNX file cannot hold"),
    ],
)
def test_one_sentence(run, words, code, says):
    found, out, err = run("fold", *words, "-o", "o.onnx", *QUICK)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert "TORCH_LOGS" not in err
    assert files() == []


@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_inputs_of_another_type_than_the_module(run, suffix):
    code, _, err = run("fold", "nets:half", *IMAGE, "-o", f"o.{suffix}", *QUICK)
    assert code == 2
    assert "give --input image:1,3,8,8:float16" in err
    code, _, err = run("verify", "nets:half", "nets:half", *IMAGE, *QUICK)
    assert "give --input image:1,3,8,8:float16" in err
    code, _, err = run("inspect", "nets:half", *IMAGE)
    assert code == 2
    assert "give --input image:1,3,8,8:float16" in err
    code, _, _ = run("fold", "nets:half", "--input", "1,3,8,8:float16", "-o", f"o.{suffix}", *QUICK)
    assert code == 0


def test_what_a_pt2_file_cannot_hold(run):
    code, _, err = run("fold", "nets:Texts", *IMAGE, "-o", "o.pt2", *QUICK)
    assert code == 3
    assert "returns 'hi', a str, which a .pt2 file cannot hold" in err
    code, _, _ = run("fold", "nets:Texts", *IMAGE, "-o", "o.safetensors", *QUICK)
    assert code == 0


@pytest.mark.slow
def test_a_type_that_onnx_has_no_convolution_for(run):
    code, _, err = run("fold", "nets:brain", "--input", "1,3,8,8:bfloat16", "-o", "o.onnx", *QUICK)
    assert code == 3
    assert "what torch.onnx makes of the model is not valid" in err
    assert ".bnfold-" not in err
    assert files() == []


def test_weights_of_another_kind(run):
    run("inspect", "nets:Net", *IMAGE)
    state = sys.modules["nets"].Net().state_dict()
    torch.save({name: tensor.long() for name, tensor in state.items()}, "w.pt")
    code, _, err = run("fold", "nets:Net", "--weights", "w.pt", *IMAGE, "-o", "o.pt2", *QUICK)
    assert code == 3
    assert "7 of another type (conv.weight is int64, not float32" in err
    Path("w.pt").write_text("hello")
    code, _, err = run("fold", "nets:Net", "--weights", "w.pt", *IMAGE, "-o", "o.pt2", *QUICK)
    assert code == 3
    assert "cannot be read as a file of torch.save. It may" in err


def _bnfold(*words):
    program = "from bnfold.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_a_model_prints_past_python_is_no_result(run):
    done = _bnfold("inspect", "nets:shouting", *IMAGE, "--json")
    assert done.returncode == 0
    assert done.stdout.startswith("{")
    assert "from below" in done.stderr


def test_an_interruption(run):
    code, out, err = run("fold", "nets:Interrupted", *IMAGE, "-o", "o.safetensors", *QUICK)
    assert (code, out) == (130, "")
    assert err == "interrupted; no file was left half written.\n"
    assert files() == []


IMPOSTORS = ("safetensors", "onnxscript", "onnx_ir", "ml_dtypes", "sympy", "yaml", "onnxruntime")


def _impostors(folder):
    """Files beside the weights, each with the name of a package that bnfold imports."""
    for name in IMPOSTORS:
        (folder / f"{name}.py").write_text(f"open('ran', 'a').write({name!r})\n")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pt2", ".onnx"])
@pytest.mark.parametrize("command", ["fold", "inspect"])
def test_no_code_beside_a_plain_file_is_run(run, tmp_path, suffix, command):
    made = tmp_path / f"m{suffix}"
    run("fold", "nets:Net", *IMAGE, "-o", made, *QUICK, "--no-verify")
    _impostors(tmp_path)
    words = [command, made.name, *(IMAGE if suffix in (".safetensors", ".pt") else ())]
    words += ["-o", f"o{suffix}"] if command == "fold" else []
    script = (
        "import sys; sys.path[:] = [entry for entry in sys.path if entry]; from bnfold.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert not (tmp_path / "ran").exists(), done.stderr
    assert done.returncode == (3 if suffix in (".safetensors", ".pt") else 0)


def test_the_current_folder_may_be_gone(run, tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    code, out, err = run("inspect", "nets:Net", *IMAGE)
    assert (code, out) == (3, "")
    assert err == "error: The current folder does not exist any more. Change to another one.\n"
