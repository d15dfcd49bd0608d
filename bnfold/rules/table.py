"""The table: which row each operator has.

Backward means from an operator's output to its inputs, forward from an input to the output; s is the scale of an
affine, t its shift. Linear maps absorb affines and affines compose; these ends of a move belong to the search, in
`bnfold.planning.route`.

| operator | backward | forward |
|---|---|---|
| identity (Dropout at inference, Cast to the same type, or to a wider one and back) | s, t | s, t |
| transpose | s, t | s, t |
| reshape (Flatten, Squeeze, Unsqueeze) | s, t where the arrays reshape with it | s, t likewise |
| concat | s, t, the matching slice to each input | s, t; the other inputs are as they were |
| pick (Slice, Split, GatherElements) | s, t, neutral on what others take | s, t, the matching slice to each output |
| gather | s, t if no element is taken twice | s, t |
| expand (Tile) | s, t if constant along what is repeated | s, t |
| add (Sub, Sum) | s to all inputs, t to one of them | t; s if all inputs carry the same |
| mean (of several values) | s to all inputs, n·t to one of n | t/n; s if all inputs carry the same |
| mul | s to one input | s |
| div | s to the numerator | s of the numerator |
| average (AveragePool, ReduceMean, GlobalAveragePool) | s, t if constant along what is averaged | s, t |
| sum (ReduceSum) | s | s |
| maximum (MaxPool, ReduceMax, GlobalMaxPool) | s ≥ 0, t | s ≥ 0, t |
| relu (LeakyRelu, PRelu) | s ≥ 0 | s ≥ 0 |
| resample (Resize but tf_crop_and_resize, Upsample, Pad with reflect, edge, wrap) | s, t | s, t |
| zero_pad (Pad with zeros) | s | s |
| depth_to_space, space_to_depth | s, t by the same rearrangement | s, t |
| scatter (with addition) | s to base and updates, t to the base | t of the base; s if both carry the same |
| choice (Max, Min; Where) | s ≥ 0, t to all inputs; s, t | the same if all inputs carry the same |
| opaque | stops | stops |
"""

from collections.abc import Sequence

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import Op, OpNode
from bnfold.reasons import Stop, StopCode
from bnfold.rules import arithmetic, rearranging, scattering, windows
from bnfold.rules.row import Arrays, Part, Row

_NONLINEAR = frozenset(
    "Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Gelu Elu Selu Softplus Softsign Tanh Mish Swish Erf Exp"
    " Softmax Sqrt Celu".split()
)

_ROUNDS = "rounds to a grid of integers, and what is rounded there must not change"
_QUANTISED = {
    "DequantizeLinear": "reads what was rounded to a grid of integers, and that must not change",
    **dict.fromkeys(("QuantizeLinear", "DynamicQuantizeLinear"), _ROUNDS),
    **dict.fromkeys(
        "QLinearConv QLinearMatMul QLinearAdd QLinearMul QLinearSigmoid QLinearConcat QLinearLeakyRelu QLinearSoftmax"
        " QLinearAveragePool QLinearGlobalAveragePool QGemm".split(),
        _ROUNDS,
    ),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), "computes integers, which take no scale and no shift"),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), "multiplies integers and scales them by itself"),
    "MatMulNBits": "has integers for a weight, which it scales in blocks by itself",
}


def is_elementwise(node: OpNode) -> bool:
    """Whether each element of the output is made of the one in its place: the output has the shape of the input."""
    nonlinear = node.op_type in _NONLINEAR or (node.stop is not None and node.stop.code is StopCode.NONLINEAR)
    return node.op in (Op.IDENTITY, Op.RELU) or (nonlinear and len(node.inputs) == len(node.outputs) == 1)


def _no_rule(node: OpNode) -> Stop:
    if node.stop is not None:
        return node.stop
    if node.op_type in ("Cast", "CastLike"):
        reason = f"{node.op_type} '{node.name}' changes the element type, and what it rounds must not change"
        return Stop(StopCode.CHANGES_DTYPE, reason)
    if node.op_type in _QUANTISED:
        return Stop(StopCode.QUANTIZED, f"{node.op_type} '{node.name}' {_QUANTISED[node.op_type]}")
    if node.op_type in _NONLINEAR:
        return Stop(StopCode.NONLINEAR, f"{node.op_type} '{node.name}' is not linear, nothing moves past it")
    return Stop(StopCode.NO_RULE, f"no exact rule moves an affine past {node.op_type} '{node.name}'")


def _opaque_backward(node: OpNode, _: int, __: Float64Array, ___: Part) -> Sequence[Arrays] | Stop:
    return _no_rule(node)


def _opaque_forward(node: OpNode, _: Arrays, __: Part) -> Arrays | Stop:
    return _no_rule(node)


TABLE: dict[Op, Row] = {
    Op.IDENTITY: rearranging.IDENTITY,
    Op.TRANSPOSE: rearranging.TRANSPOSE,
    Op.RESHAPE: rearranging.RESHAPE,
    Op.CONCAT: rearranging.CONCAT,
    Op.PICK: rearranging.PICK,
    Op.GATHER: rearranging.GATHER,
    Op.EXPAND: rearranging.EXPAND,
    Op.DEPTH_TO_SPACE: rearranging.DEPTH_TO_SPACE,
    Op.SPACE_TO_DEPTH: rearranging.SPACE_TO_DEPTH,
    Op.ADD: arithmetic.ADD,
    Op.MEAN: arithmetic.MEAN,
    Op.MUL: arithmetic.MUL,
    Op.DIV: arithmetic.DIV,
    Op.RELU: arithmetic.RELU,
    Op.AVERAGE: windows.AVERAGE,
    Op.SUM: windows.SUM,
    Op.MAXIMUM: windows.MAXIMUM,
    Op.RESAMPLE: windows.RESAMPLE,
    Op.ZERO_PAD: windows.ZERO_PAD,
    Op.SCATTER: scattering.SCATTER,
    Op.CHOICE: arithmetic.CHOICE,
    Op.OPAQUE: Row(_opaque_backward, _opaque_forward),
}
