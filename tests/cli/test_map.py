"""Models whose inputs and outputs a tool has renamed: compared by position where that is plain, else as told."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

QUICK = ("--device", "cpu", "--samples", "1")


def model(path, *, inputs=("x",), outputs=("y", "z"), factors=(2.0, 3.0), sizes=(4, 4), inner=""):
    """Each output is the first input times a number, of the first few elements."""
    nodes, tensors = [], []
    for index, (output, factor, size) in enumerate(zip(outputs, factors, sizes, strict=True)):
        tensors.append(numpy_helper.from_array(np.full(size, factor, np.float32), f"w{index}"))
        tensors.append(numpy_helper.from_array(np.arange(size), f"at{index}"))
        part = inner if inner and index == 0 else f"part{index}"
        nodes.append(helper.make_node("Gather", [inputs[0], f"at{index}"], [part], axis=1))
        nodes.append(helper.make_node("Mul", [part, f"w{index}"], [output]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in zip(outputs, sizes, strict=True)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def original(tmp_path):
    return model(tmp_path / "a.onnx")


def test_other_names_are_matched_by_position_and_that_is_said(run, original, tmp_path):
    other = model(tmp_path / "b.onnx", inputs=("input.1",), outputs=("17", "18"))
    code, out, _ = run("verify", original, other, *QUICK)
    assert code == 0
    assert out.startswith("pass: ")
    assert "matched by position (--map A=B says otherwise): x is input.1, y is 17, z is 18" in out
    assert [line.split()[0] for line in out.splitlines() if line[:2] in ("y ", "z ")][:2] == ["y", "z"]
    code, out, _ = run("bench", original, other, "--device", "cpu", "--seconds", "0.05")
    assert code == 0
    assert "y is 17, z is 18" in out


def test_the_same_names_say_nothing(run, original):
    _, out, _ = run("verify", original, original, *QUICK)
    assert "matched" not in out


def test_the_values_decide_all_the_same(run, original, tmp_path):
    other = model(tmp_path / "b.onnx", outputs=("17", "18"), factors=(3.0, 2.0))
    code, out, _ = run("verify", original, other, *QUICK)
    assert code == 1
    assert out.startswith("fail: ")
    code, out, _ = run("verify", original, other, "--map", "y=18", "--map", "z=17", *QUICK)
    assert code == 0
    assert "matched" not in out


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": ("17", "18"), "sizes": (4, 3)},
        {"outputs": ("17",), "factors": (2.0,), "sizes": (4,)},
        {"outputs": ("z", "y")},
        {"outputs": ("z", "w")},
        {"outputs": ("17", "18"), "inner": "y"},
    ],
    ids=["another shape", "fewer", "another order", "one name for another value", "the name is taken"],
)
def test_where_position_does_not_settle_it_names_count(run, original, tmp_path, other):
    code, out, _ = run("verify", original, model(tmp_path / "b.onnx", **other), *QUICK)
    assert code == 1
    assert out.startswith("fail: ")
    assert "matched by position" not in out
    code, _, _ = run("bench", original, tmp_path / "b.onnx", "--device", "cpu", "--seconds", "0.05")
    assert code == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--map", "y"), "is not A=B"),
        (("--map", "yy=17"), "the original has no input or output 'yy'"),
        (("--map", "y=170"), "the other model has no input or output '170'. Perhaps 17?"),
    ],
)
def test_a_map_that_is_wrong(run, original, tmp_path, words, says):
    other = model(tmp_path / "b.onnx", outputs=("17", "18"))
    code, out, err = run("verify", original, other, *words, *QUICK)
    assert (code, out) == (2, "")
    assert says in err


def test_a_name_that_is_taken_cannot_be_given(run, original, tmp_path):
    other = model(tmp_path / "b.onnx", outputs=("17", "18"), inner="y")
    code, _, err = run("verify", original, other, "--map", "y=17", *QUICK)
    assert code == 2
    assert "the model has another value of that name" in err


def test_a_fold_keeps_names_whatever_verify_would_take(original, tmp_path):
    import bnfold

    other = model(tmp_path / "b.onnx", outputs=("17", "18"))
    assert bnfold.verify(original, other, device="cpu", samples=1).verdict == "fail"
    names = {"y": "17", "z": "18"}
    assert bnfold.verify(original, other, device="cpu", samples=1, names=names).verdict == "pass"


def test_names_are_for_onnx():
    torch = pytest.importorskip("torch")
    import bnfold

    module = torch.nn.Linear(2, 2).eval()
    for call in (bnfold.verify, bnfold.benchmark):
        with pytest.raises(bnfold.UsageError, match="names are for ONNX models"):
            call(module, module, names={"y": "z"})


def test_json_is_still_one_document(run, original, tmp_path):
    other = model(tmp_path / "b.onnx", outputs=("17", "18"))
    code, out, err = run("verify", original, other, "--json", *QUICK)
    assert (code, json.loads(out)["verdict"]) == (0, "pass")
    assert "y is 17" in err
