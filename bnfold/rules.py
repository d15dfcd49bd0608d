"""The table: how an affine moves past each kind of operator.

Backward means from an operator's output to its inputs, forward from one input to the output. A row returns what
arrives on the other side, or the `Stop` that forbids it. Linear maps absorb affines and affines compose; these are the
ends of a move and belong to `bnfold.planner`. An operator without a row stops everything.

| operator | backward | forward |
|---|---|---|
| identity (and Dropout at inference) | s, t unchanged: f(x) = x commutes with everything | likewise |
| opaque | stops | stops |
"""

from collections.abc import Callable
from dataclasses import dataclass

from bnfold.affine import Affine
from bnfold.graph import Op, OpNode, Stop, StopCode

_NONLINEAR = frozenset(
    "Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Gelu Elu Selu Softplus Softsign Tanh Mish Swish Erf Exp"
    " Softmax Sqrt Celu".split()
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        backward: (node, affine on its output) → the affine on each input, or why it stops.
        forward: (node, affine on one input) → the affine on the output, or why it stops.
    """

    backward: Callable[[OpNode, Affine], tuple[Affine, ...] | Stop]
    forward: Callable[[OpNode, Affine], Affine | Stop]


def _no_rule(node: OpNode, _: Affine) -> Stop:
    if node.stop is not None:
        return node.stop
    if node.op_type in _NONLINEAR:
        return Stop(StopCode.NONLINEAR, f"{node.op_type} '{node.name}' is not linear, nothing moves past it")
    return Stop(StopCode.NO_RULE, f"no exact rule moves an affine past {node.op_type} '{node.name}'")


TABLE: dict[Op, Row] = {
    Op.IDENTITY: Row(backward=lambda _, affine: (affine,), forward=lambda _, affine: affine),
    Op.OPAQUE: Row(backward=_no_rule, forward=_no_rule),
}
