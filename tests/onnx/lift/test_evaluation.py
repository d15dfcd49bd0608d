"""Constants are computed as onnx's reference implementation does, without its import where that can be."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnfold.onnx.proto import evaluation
from bnfold.onnx.proto.evaluation import evaluate

A = np.array([[1.5, -0.0, np.inf], [3e38, -7.25, np.nan]], np.float32)
B = np.array([[2.0], [-3e38]], np.float32)
INTS = np.array([[2, -3], [0, 5]], np.int64)


def vector(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


PLAIN = [
    *[(name, {}, (A, B)) for name in ("Add", "Sub", "Mul", "Div")],
    ("Expand", {}, (B, vector(2, 1, 3))),
    ("Expand", {}, (A, vector(1))),
    ("Expand", {}, (np.array(2.5, np.float32), vector(4))),
    ("Transpose", {}, (A,)),
    ("Transpose", {"perm": [1, 2, 0]}, (A[None],)),
    ("Cast", {"to": TensorProto.DOUBLE}, (A,)),
    ("Cast", {"to": TensorProto.FLOAT16}, (B[:1],)),
    ("Cast", {"to": TensorProto.FLOAT}, (INTS,)),
    ("Reshape", {}, (A, vector(3, -1))),
    ("Concat", {"axis": -1}, (A, B, A)),
]
LEFT = [
    ("Div", {}, (INTS, np.array([2], np.int64))),
    ("Cast", {"to": TensorProto.INT32}, (B[:1],)),
    ("Reshape", {}, (A, vector(0, 3, 1))),
    ("Gather", {"axis": 1}, (A, vector(2, 0))),
]


def read_by(op_type: str, attributes: dict, inputs: tuple):
    return helper.make_node(op_type, [f"x{index}" for index in range(len(inputs))], ["y"], **attributes)


@pytest.mark.parametrize(("op_type", "attributes", "inputs"), [*PLAIN, *LEFT])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_it_is_what_the_reference_computes(op_type: str, attributes: dict, inputs: tuple) -> None:
    node = read_by(op_type, attributes, inputs)
    found, wanted = evaluate(node, inputs, 13), evaluation._by_reference(node, inputs, 13)
    assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@pytest.mark.parametrize(("op_type", "attributes", "inputs"), PLAIN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_plain_operators_need_no_reference(
    op_type: str, attributes: dict, inputs: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_by_reference", None)
    evaluate(read_by(op_type, attributes, inputs), inputs, 13)


def test_what_makes_no_sense_is_an_error() -> None:
    for op_type, inputs in (("Expand", (A, vector(5, 5))), ("Reshape", (A, vector(4, -1))), ("Add", (A, A[:, :2]))):
        with pytest.raises(ValueError, match="shape"):
            evaluate(read_by(op_type, {}, inputs), inputs, 13)
