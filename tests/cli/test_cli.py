"""The command line as a user meets it: what is printed where, and with which exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_files import conv_bn

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fold_writes_a_verified_file(run, tmp_path):
    code, out, err = run("fold", SAMPLE, "-o", tmp_path / "folded.onnx")
    assert code == 0
    assert "14 BatchNorms: all folded" in out
    assert ["BatchNorms", "14", "0"] in [line.split() for line in out.splitlines()]
    assert "pass: outputs match on CPU (CPUExecutionProvider, TF32 off)\n" in out
    assert err == ""
    folded = onnx.load(tmp_path / "folded.onnx")
    assert not [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert files(tmp_path) == ["folded.onnx"]


def test_json_is_one_document_and_nothing_else(run, tmp_path):
    code, out, err = run("fold", SAMPLE, "-o", tmp_path / "folded.onnx", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["schema"] == "bnfold.report/1"
    assert report["verdict"] == "pass"
    assert len(report["folds"]) == 14
    assert report["left"] == []
    assert report["input"]["bytes"] == SAMPLE.stat().st_size
    assert len(report["output"]["sha256"]) == 64
    assert report["device"]["provider"] == "CPUExecutionProvider"
    assert report["outputs"][0]["noise_ratio"] <= 4
    assert report["config"]["inputs"][0]["shape"] == [1, 1, 8, 8]


def test_a_second_fold_changes_nothing_and_says_so(run, tmp_path):
    run("fold", SAMPLE, "-o", tmp_path / "once.onnx")
    code, out, _ = run("fold", tmp_path / "once.onnx", "-o", tmp_path / "twice.onnx")
    assert code == 0
    assert "no BatchNorm in this model, nothing to fold" in out
    assert "nothing was changed, the output is a copy of the input" in out
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()


def test_spelled_out_affines_are_counted(run, tmp_path):
    exported = SAMPLE.parents[1] / "tests" / "onnx" / "exported"
    for name, words in (
        ("keras_resnet_v2", "2 spelled-out affines left"),
        ("keras_unet", "2 spelled-out affines can be folded"),
    ):
        _, out, _ = run("inspect", exported / f"{name}.onnx")
        assert out.splitlines()[0].endswith(f": no BatchNorm in this model, and {words}")
    _, out, _ = run("fold", exported / "keras_unet.onnx", "--out-dir", tmp_path, "--no-verify")
    assert "; 0 BatchNorms, 0 left, 2 spelled-out affines folded (" in out


def test_a_bn_that_stays_is_named_with_the_reason(run, tmp_path):
    model = conv_bn(tmp_path / "m.onnx", relu_before=True)
    code, out, _ = run("fold", model, "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "1 BatchNorm: 0 folded, 1 left" in out
    assert "bn0  [nonlinear]  backward: Relu 'relu' is not linear, a shift does not move past it" in out
    written = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in written.graph.node] == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize(
    ("leftover", "ops"),
    [("conv", ["Conv", "Relu", "Conv"]), ("mul-add", ["Conv", "Relu", "Mul", "Add"]),
     ("keep", ["Conv", "Relu", "BatchNormalization"])],
)  # fmt: skip
def test_leftover_forms(run, tmp_path, leftover, ops):
    model = conv_bn(tmp_path / "m.onnx", relu_before=True)
    code, _, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--leftover", leftover)
    assert code == 0
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ops


def test_require_all_writes_nothing(run, tmp_path):
    model = conv_bn(tmp_path / "m.onnx", relu_before=True)
    code, out, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--require-all")
    assert code == 1
    assert "a BatchNorm is left, and --require-all was asked for" in out
    assert files(tmp_path) == ["m.onnx"]


def test_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run("fold", SAMPLE, "-o", tmp_path / "out.onnx", "--dry-run")
    assert code == 0
    assert "skipped: dry run" in out
    assert files(tmp_path) == []


def test_skip_and_only(run, tmp_path):
    model = conv_bn(tmp_path / "m.onnx", bns=2)
    code, out, _ = run("fold", model, "-o", tmp_path / "out.onnx", "--skip", "bn1")
    assert code == 0
    assert "bn1  [skipped]" in out
    names = [node.name for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert names == ["conv", "bn1"]
    code, _, err = run("fold", model, "-o", tmp_path / "out.onnx", "--only", "nope*")
    assert code == 2
    assert err.startswith("error: only pattern 'nope*' matches no BatchNorm")


def test_output_equal_to_input_needs_force(run, tmp_path):
    model = conv_bn(tmp_path / "m.onnx")
    before = model.read_bytes()
    code, out, err = run("fold", model, "-o", model)
    assert (code, out) == (5, "")
    assert "--force" in err
    assert model.read_bytes() == before
    code, _, _ = run("fold", model, "-o", model, "--force")
    assert code == 0
    assert [node.op_type for node in onnx.load(model).graph.node] == ["Conv"]
    assert files(tmp_path) == ["m.onnx"]


def test_a_wrong_result_is_not_written(run, tmp_path, monkeypatch):
    """A fold that drops the bias of every map must never reach the disk."""
    from bnfold.algebra.linear_map import Folding

    right = Folding.bias
    monkeypatch.setattr(Folding, "bias", lambda self: None if right(self) is None else right(self) * 1.01)
    (tmp_path / "out.onnx").write_bytes(b"what was there")
    code, out, _ = run("fold", SAMPLE, "-o", tmp_path / "out.onnx")
    assert code == 1
    assert out.startswith("fail: ")
    assert "nothing was written" in out
    assert (tmp_path / "out.onnx").read_bytes() == b"what was there"
    assert files(tmp_path) == ["out.onnx"]


def bad_inputs(folder):
    good = SAMPLE.read_bytes()
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("this is not a model\n" * 50)
    (folder / "random.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "truncated.onnx").write_bytes(good[: len(good) // 2])
    (folder / "model.txt").write_bytes(good)
    (folder / "zip.onnx").write_bytes(b"PK\x03\x04" + bytes(500))
    conv_bn(folder / "contradiction.onnx", weight_channels=5)
    (folder / "folder.onnx").mkdir()
    return [
        "missing.onnx", "empty.onnx", "text.onnx", "random.onnx", "truncated.onnx", "model.txt", "zip.onnx",
        "contradiction.onnx", "folder.onnx",
    ]  # fmt: skip


def test_bad_inputs_get_one_sentence_and_exit_code_3(run, tmp_path):
    for name in bad_inputs(tmp_path):
        for command in (("fold", "-o", tmp_path / "out.onnx"), ("inspect",)):
            code, out, err = run(command[0], tmp_path / name, *command[1:])
            assert (name, code, out) == (name, 3, "")
            assert err.startswith("error: ")
            assert name in err
            assert err.count("\n") == 1
            assert "Traceback" not in err
    assert "out.onnx" not in files(tmp_path)


def test_bad_outputs_get_exit_code_5(run, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for target in ("nowhere/out.onnx", "folder.onnx", "out.txt", os.devnull):
        code, _, err = run("fold", SAMPLE, "-o", tmp_path / target, "--no-verify")
        assert (target, code) == (target, 5)
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert files(tmp_path) == ["folder.onnx"]


def test_usage_errors_get_exit_code_2(run, tmp_path):
    out = tmp_path / "out.onnx"
    for words in (
        ("fold", SAMPLE),
        ("fold", SAMPLE, "-o", out, "--leftover", "gone"),
        ("fold", SAMPLE, "-o", out, "--input", "nope:1,1,8,8"),
        ("fold", SAMPLE, "-o", out, "--input", "image:1,1,x,8"),
        ("fold", SAMPLE, "-o", out, "--val-range", "image:3,1"),
        ("fold", SAMPLE, "-o", out, "--device", "tpu"),
        ("fold", SAMPLE, "-o", out, "--no-such-option"),
        ("verify", SAMPLE),
    ):
        code, _, err = run(*words)
        assert (words, code) == (words, 2)
        assert err
    assert files(tmp_path) == []


def test_cuda_never_falls_back(run, tmp_path):
    pytest.importorskip("onnxruntime")
    code, out, err = run("fold", SAMPLE, "-o", tmp_path / "out.onnx", "--device", "cuda")
    if code == 0:
        assert "CUDAExecutionProvider" in out
        return
    assert (code, out) == (4, "")
    assert err.startswith("error: ")
    assert files(tmp_path) == []


def test_inspect_lists_every_bn(run, tmp_path):
    code, out, _ = run("inspect", SAMPLE)
    assert code == 0
    assert sum(line.startswith("  node__native_batch_norm") and " -> " in line for line in out.splitlines()) == 14
    assert "14 BatchNorms" in out
    model = conv_bn(tmp_path / "m.onnx", relu_before=True)
    assert run("inspect", model, "--fail-on", "foldable")[0] == 0
    assert run("inspect", model, "--fail-on", "any")[0] == 1
    assert run("inspect", SAMPLE, "--fail-on", "foldable")[0] == 1
    code, out, _ = run("inspect", model, "--json")
    report = json.loads(out)
    assert report["left"][0]["code"] == "nonlinear"


def test_verify_two_files(run, tmp_path):
    run("fold", SAMPLE, "-o", tmp_path / "folded.onnx")
    code, out, _ = run("verify", SAMPLE, tmp_path / "folded.onnx")
    assert code == 0
    assert "noise ratio" in out
    other = onnx.load(tmp_path / "folded.onnx")
    for tensor in other.graph.initializer:
        if tensor.name.endswith("bias"):
            array = numpy_helper.to_array(tensor).copy()
            array += np.float32(0.01)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(other, tmp_path / "wrong.onnx")
    code, out, _ = run("verify", SAMPLE, tmp_path / "wrong.onnx")
    assert code == 1
    assert out.startswith("fail: ")


def test_help_imports_neither_torch_nor_onnxruntime():
    code = (
        "import sys, bnfold; sys.argv = ['bnfold', '--help']\n"
        "from bnfold.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'onnx_ir'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_folding_a_file_imports_neither_torch_nor_onnxruntime(tmp_path):
    code = (
        f"import sys, bnfold; bnfold.fold({str(SAMPLE)!r}).save({str(tmp_path / 'out.onnx')!r})\n"
        "print('HEAVY', sorted({'torch', 'onnxruntime', 'onnx_ir'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_a_bug_gets_exit_code_70_and_one_line(run, tmp_path, monkeypatch):
    import bnfold.planning.planner

    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(bnfold.planning.planner, "plan", broken)
    code, out, err = run("fold", SAMPLE, "-o", tmp_path / "out.onnx")
    assert (code, out) == (70, "")
    assert "a bug in bnfold" in err
    assert "No file was left half written" in err
    assert err.count("\n") == 1


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("bnfold ")
