"""What the command line says when something is wrong, and of what it was told in vain."""

import json

import numpy as np
import onnx
import pytest
from bnfold.cli.main import app
from onnx import TensorProto, helper
from onnx_files import conv_bn
from typer.testing import CliRunner

QUICK = ("--device", "cpu", "--samples", "1")


@pytest.fixture
def model(tmp_path):
    return conv_bn(tmp_path / "model.onnx")


def two_inputs(path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("left", "right", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["left", "right"], ["y"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("fold", "modle.onnx", "-o", "o.onnx"), 3, "Perhaps model.onnx?"),
        (("fold", "model.onx", "-o", "o.onnx"), 3, "Perhaps model.onnx?"),
        (("inspect", "nowhere/model.onnx"), 3, "There is no folder"),
        (("verify", "model.onnx", "modle.onnx"), 3, "Perhaps model.onnx?"),
        (("fold", "model.onnx", "-o", "o.onnx", "--skip", "bm0"), 2, "Perhaps bn0?"),
        (("fold", "model.onnx", "-o", "o.onnx", "--input", "xx:1,3,8,8"), 2, "Perhaps x? Its inputs are x."),
        (("fold", "model.onnx", "-o", "o.onnx", "--val-range", "x:99,0"), 2, "99 is above 0. Write --val-range x:0,99"),
        (("fold", "model.onnx", "-o", "o.onnx", "--val-range", "x:0"), 2, "is not NAME:LOW,HIGH"),
        (("fold", "model.onnx", "-o", "o.onnx", "--forse"), 2, "See bnfold fold --help."),
        (("fold", "model.onnx", "-o", "o.onnx", "--samples", "none"), 2, "See bnfold fold --help."),
        (("fold",), 2, "See bnfold fold --help."),
        (("flod", "model.onnx"), 2, "flod"),
    ],
)
def test_one_style_for_all_errors_and_json_too(run, model, monkeypatch, words, code, says):
    monkeypatch.chdir(model.parent)
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    found, out, err_with_json = run(*words, "--json")
    assert (found, err_with_json) == (code, err)
    document = json.loads(out)
    assert document["schema"] == "bnfold.error/1"
    assert document["error"]["exit_code"] == code
    assert document["error"]["kind"] in ("UsageError", "ModelLoadError")
    assert document["error"]["message"].rstrip(".") in err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--no-verify", "--device", "cpu", "--val-range", "x:0,1"), {"--device", "--val-range"}),
        (("--dry-run", "--tf32", "--rtol", "1"), {"--tf32", "--rtol"}),
        (("--device", "cpu", "--tf32", "--trust-pickle"), {"--trust-pickle"}),
        (("--no-verify",), set()),
    ],
)
def test_an_option_without_effect_says_so(run, model, tmp_path, words, options):
    if "--tf32" in words and "cpu" in words:
        words = tuple(word for word in words if word != "--tf32")  # a device that has no TF32 refuses it
    _, _, err = run("fold", model, "-o", tmp_path / "o.onnx", *words)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert {note.split()[1] for note in notes} == options
    assert all(" has no effect: " in note for note in notes)
    _, _, err = run("fold", model, "-o", tmp_path / "o.onnx", *words, "--quiet")
    assert err == ""


def test_samples_and_real_data(run, model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3, 8, 8), np.float32))
    for command in (("fold", model, "-o", tmp_path / "o.onnx"), ("verify", model, model)):
        code, _, err = run(*command, "--inputs", tmp_path / "x.npz", *QUICK)
        assert code == 0
        assert err == "note: --samples has no effect: there are as many as --inputs has\n"


def test_an_npy_file_is_for_a_single_input(run, model, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3, 8, 8), np.float32))
    code, out, _ = run("fold", model, "-o", tmp_path / "o.onnx", "--inputs", tmp_path / "x.npy", "--json")
    assert code == 0
    (told,) = json.loads(out)["config"]["inputs"]
    assert (told["name"], told["shape"], told["source"]) == ("x", [2, 3, 8, 8], "given")
    two = two_inputs(tmp_path / "two.onnx")
    code, _, err = run("verify", two, two, "--inputs", tmp_path / "x.npy", *QUICK)
    assert code == 2
    assert "an .npy file has no names, and the model has 2 inputs: left, right" in err


def test_quiet_says_nothing_but_errors(run, model, tmp_path):
    assert run("fold", model, "-o", tmp_path / "o.onnx", "--quiet") == (0, "", "")
    assert run("inspect", model, "--quiet") == (0, "", "")
    assert run("verify", model, tmp_path / "o.onnx", "-q") == (0, "", "")
    stays = conv_bn(tmp_path / "stays.onnx", relu_before=True)
    code, out, err = run("fold", stays, "-o", tmp_path / "p.onnx", "--quiet", "--require-all")
    assert (code, out) == (1, "")
    assert err.startswith("error: nothing was written; skipped: a BatchNorm is left")


def test_what_a_leftover_became(run, tmp_path):
    stays = conv_bn(tmp_path / "stays.onnx", relu_before=True)
    for form, words in (("conv", "a 1x1 depthwise Conv"), ("mul-add", "Mul and Add"), ("keep", None)):
        code, out, _ = run("fold", stays, "-o", tmp_path / "o.onnx", "--leftover", form, *QUICK)
        assert code == 0
        assert ["BatchNorms", "1", "1"] in [line.split() for line in out.splitlines()]
        assert ("written as" in out) is (words is not None)
        assert words is None or f"; written as {words}\n" in out
        _, out, _ = run("fold", stays, "-o", tmp_path / "o.onnx", "--leftover", form, "--json", *QUICK)
        assert json.loads(out)["left"][0]["written"] == words


def test_colour_only_for_a_terminal_and_without_no_color(monkeypatch, model, tmp_path):
    words = ["fold", str(model), "-o", str(tmp_path / "o.onnx"), *QUICK]
    assert "\x1b[" in CliRunner().invoke(app, words, color=True).stdout
    assert "\x1b[" not in CliRunner().invoke(app, words).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(app, words, color=True).stdout


def test_the_size_has_the_external_data(run, tmp_path):
    proto = onnx.load(conv_bn(tmp_path / "m.onnx"))
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    total = sum((tmp_path / name).stat().st_size for name in ("big.onnx", "big.data"))
    _, out, _ = run("fold", tmp_path / "big.onnx", "-o", tmp_path / "o.onnx", "--json", *QUICK)
    report = json.loads(out)
    assert report["input"]["bytes"] == total
    written = sum(path.stat().st_size for path in tmp_path.glob("o.onnx*"))
    assert report["output"]["bytes"] == written


@pytest.mark.usefixtures("factories")
def test_dynamic_axes_without_a_name(run):
    pytest.importorskip("torch")
    words = ("nets:Net", "--input", "1,3,8,8", "--dynamic", "0=batch", "-o", "o.pt2", *QUICK)
    code, out, _ = run("fold", *words)
    assert code == 0
    assert out.startswith("pass: ")
    named = ("--dynamic", "image:2=n", "--dynamic", "scale:0=m")
    code, _, err = run("fold", *words, *named)
    assert code == 2
    assert "--dynamic without a name has no input left that it could be for" in err
