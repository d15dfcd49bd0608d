"""Constants are computed as onnx's reference implementation does, without its import where that can be."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

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
    ("Unsqueeze", {}, (A, vector(-1, 0))),
    ("Squeeze", {}, (B, vector(-1))),
    ("Squeeze", {}, (B,)),
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


ROWS = np.linspace(-1, 2, 12, dtype=np.float32).reshape(2, 3, 2)

LIKE_RUNTIMES = [
    *[("Softmax", {"axis": axis}, (ROWS,), opset) for axis in range(3) for opset in (7, 12, 13)],
    ("Softmax", {}, (ROWS,), 11),
    ("Softmax", {"axis": -2}, (ROWS,), 11),
    ("Unsqueeze", {"axes": [2, 0]}, (B,), 9),
    ("Unsqueeze", {"axes": [3, 1, -5]}, (B,), 11),
    ("Unsqueeze", {}, (B, vector(2, 0)), 13),
    ("Squeeze", {}, (B[None], vector()), 13),
    ("Slice", {}, (ROWS, vector(-9, 1), vector(-9, 2), vector(1, 0), vector(-1, 1)), 13),
    ("Slice", {"starts": [1, -1], "ends": [3, 9], "axes": [-2, 2]}, (ROWS,), 9),
    ("Slice", {"starts": [1, 1], "ends": [2, -1]}, (ROWS,), 9),
    ("Squeeze", {"axes": [0, -1]}, (B[None],), 9),
]


@pytest.mark.parametrize(("op_type", "attributes", "inputs", "opset"), LIKE_RUNTIMES)
def test_it_is_what_runtimes_compute_where_the_reference_does_not(
    op_type: str, attributes: dict, inputs: tuple, opset: int
) -> None:
    node = read_by(op_type, attributes, inputs)
    constants = [numpy_helper.from_array(array, name) for array, name in zip(inputs, node.input, strict=True)]
    graph = helper.make_graph([node], "expression", [], [onnx.ValueInfoProto(name="y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(evaluate(node, inputs, opset), session.run(None, {})[0], rtol=1e-6, strict=True)
