"""The table as a whole: each operator has a row, and what has none stops with a reason."""

import numpy as np
import pytest

from bnfold.graph import Op, OpNode, Value
from bnfold.reasons import Stop, StopCode
from bnfold.rules import TABLE, Part

ARRAY = np.array([[2.0, -0.5, 0.0]])


def opaque(op_type: str, stop: Stop | None = None) -> OpNode:
    return OpNode(name="node_7", op_type=op_type, stop=stop)


def both_ways(node: OpNode, part: Part = Part.SCALE) -> list[object]:
    row = TABLE[node.op]
    return [row.backward(node, 0, ARRAY, part), row.forward(node, (ARRAY,), part)]


def test_every_operator_has_a_row() -> None:
    assert set(TABLE) == set(Op)


@pytest.mark.parametrize("part", Part)
def test_identity_passes_both_parts_both_ways(part: Part) -> None:
    node = OpNode(name="id", op_type="Identity", op=Op.IDENTITY)
    backward, forward = both_ways(node, part)
    assert [way[0] is ARRAY for way in backward] == [True]
    assert forward[0] is ARRAY


@pytest.mark.parametrize(
    "op_type",
    "Clip Sigmoid HardSigmoid HardSwish Gelu Elu Selu Softplus Softsign Tanh Mish Swish Erf Exp"
    " Softmax Sqrt Celu".split(),
)
@pytest.mark.parametrize("part", Part)
def test_an_activation_stops_as_nonlinear(op_type: str, part: Part) -> None:
    for stop in both_ways(opaque(op_type), part):
        assert stop == Stop(StopCode.NONLINEAR, f"{op_type} 'node_7' is not linear, nothing moves past it")


@pytest.mark.parametrize("op_type", ["Concat", "Add", "MyCustomOp", "relu", ""])
def test_everything_else_stops_without_a_claim_about_it(op_type: str) -> None:
    for stop in both_ways(opaque(op_type)):
        assert stop == Stop(StopCode.NO_RULE, f"no exact rule moves an affine past {op_type} 'node_7'")


@pytest.mark.parametrize("op_type", ["Conv", "Relu"])
def test_the_front_end_knows_better(op_type: str) -> None:
    known = Stop(StopCode.WEIGHT_NOT_CONSTANT, "the weight of Conv 'node_7' is computed")
    assert all(stop is known for stop in both_ways(opaque(op_type, known)))


@pytest.mark.parametrize(
    ("array", "part", "code"),
    [
        (np.array([[1.0, 0.0]]), Part.SCALE, None),
        (np.array([[1.0, -1e-300]]), Part.SCALE, StopCode.NEGATIVE_SCALE),
        (np.array([[1.0, 1.0]]), Part.SHIFT, StopCode.NONLINEAR),
    ],
)
def test_relu_passes_a_scale_that_is_not_negative(array: np.ndarray, part: Part, code: StopCode | None) -> None:
    x, y = Value("x", (None, 2), "float64"), Value("y", (None, 2), "float64")
    node = OpNode(name="relu", op_type="Relu", inputs=(x,), outputs=(y,), op=Op.RELU)
    for result in (TABLE[Op.RELU].backward(node, 0, array, part), TABLE[Op.RELU].forward(node, (array,), part)):
        assert (result.code if isinstance(result, Stop) else None) == code


def test_relu_says_which_channel_is_negative() -> None:
    node = OpNode(name="act", op_type="Relu", op=Op.RELU)
    stop = TABLE[Op.RELU].backward(node, 0, np.array([[1.0, 2.0, -3.0, -4.0]]), Part.SCALE)
    assert isinstance(stop, Stop)
    assert "first at 2" in stop.reason
    assert "'act'" in stop.reason
