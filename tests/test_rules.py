"""The rows of the table: what passes is checked against the operator itself, what stops gives a reason."""

import numpy as np
import pytest

from bnfold.affine import Affine
from bnfold.graph import Op, OpNode, Stop, StopCode
from bnfold.rules import TABLE

AFFINE = Affine(np.array([[2.0, -0.5, 0.0]]), np.array([[1.0, 0.0, -3.0]]))


def opaque(op_type: str, stop: Stop | None = None) -> OpNode:
    return OpNode(name="node_7", op_type=op_type, stop=stop)


def test_every_operator_has_a_row() -> None:
    assert set(TABLE) == set(Op)


def test_identity_passes_an_affine_both_ways() -> None:
    node = OpNode(name="id", op_type="Identity", op=Op.IDENTITY)
    row = TABLE[Op.IDENTITY]
    assert row.backward(node, AFFINE) == (AFFINE,)
    assert row.forward(node, AFFINE) is AFFINE


@pytest.mark.parametrize(
    "op_type",
    "Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Gelu Elu Selu Softplus Softsign Tanh Mish Swish Erf Exp"
    " Softmax Sqrt Celu".split(),
)
def test_an_activation_stops_as_nonlinear(op_type: str) -> None:
    node = opaque(op_type)
    for stop in (TABLE[Op.OPAQUE].backward(node, AFFINE), TABLE[Op.OPAQUE].forward(node, AFFINE)):
        assert stop == Stop(StopCode.NONLINEAR, f"{op_type} 'node_7' is not linear, nothing moves past it")


@pytest.mark.parametrize("op_type", ["Concat", "Add", "MyCustomOp", "relu", ""])
def test_everything_else_stops_without_a_claim_about_it(op_type: str) -> None:
    node = opaque(op_type)
    for stop in (TABLE[Op.OPAQUE].backward(node, AFFINE), TABLE[Op.OPAQUE].forward(node, AFFINE)):
        assert stop == Stop(StopCode.NO_RULE, f"no exact rule moves an affine past {op_type} 'node_7'")


@pytest.mark.parametrize("op_type", ["Conv", "Relu"])
def test_the_front_end_knows_better(op_type: str) -> None:
    known = Stop(StopCode.WEIGHT_NOT_CONSTANT, "the weight of Conv 'node_7' is computed")
    node = opaque(op_type, known)
    assert TABLE[Op.OPAQUE].backward(node, AFFINE) is known
    assert TABLE[Op.OPAQUE].forward(node, AFFINE) is known
