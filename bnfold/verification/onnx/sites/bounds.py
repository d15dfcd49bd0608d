"""How large the rounding error of a region may be: the sum of the absolute values of all terms of its result.

A sum of products computed in floating point is off by at most a small multiple of u · Σ |terms| (Higham, "Accuracy and
Stability of Numerical Algorithms", section 3.1), as long as its partial sums stay small. Where its terms have one sign,
they grow evenly up to the sum s, and each of the n additions rounds one of them: see `judging.drift`. So magnitudes are
carried through a region in place of values:

    Conv, ConvTranspose, Gemm, MatMul,
    Einsum                              |W| ⋆ m + |b| + drift(n) · (|result| + |b|), as |s| ≤ |result| + |b|
    BatchNormalization                  |scale| · (m + |mean|) + |beta|
    Scaler of scikit-learn              (m + |offset|) · |scale|
    Add, Sub, Sum; Mul; Div             m₁ + m₂; m₁ · m₂; m / |constant|
    Relu, Clip, MaxPool, Reshape, …     m, or the same operation on m
    Max, Min; Where                     the larger of m₁ and m₂; that of the one which is chosen
    GlobalAveragePool, ReduceMean, …    the same operation on m, times 1 + 2 · carried, for each side; see `averages`
    Resize in cubic mode                the largest m around, times the sum of the absolute weights; see `cubic`
    Sigmoid, Tanh, …                    m + |result|: their slope is at most about 1
    onnxruntime's FusedConv             the same of Conv, with b + z for b, and |result|
    onnxruntime's MatMulNBits           the same of MatMul; its weight is what it makes of the identity

all in float32, beginning with m = |x| at the edge of the region. Weights below the smallest normal number of their type
count as that number: their rounding error is as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from bnfold.onnx.lift.types import Shape
from bnfold.onnx.proto.names import (
    DEFAULT_DOMAINS,
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)
from bnfold.verification.judging.drift import drift, terms_of_transposed
from bnfold.verification.judging.sites import NoBoundError
from bnfold.verification.onnx.sites.averages import carried, may_be_carried
from bnfold.verification.onnx.sites.cubic import cubic_magnitude, is_cubic
from bnfold.verification.onnx.sites.emitter import FLOAT, Emitter

MAPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "Einsum"})
"""Operations that multiply by weights."""

_SMALLEST_NORMAL: Mapping[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-14,
    onnx.TensorProto.BFLOAT16: 2.0**-126,
}
_SAME_MAGNITUDE = frozenset("Identity Dropout Neg Abs Relu LeakyRelu Clip Cast CastLike".split())
_SLOPE_ABOUT_ONE = frozenset(
    "Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Elu Gelu Swish Mish Erf Selu Celu".split()
)
_REARRANGING = frozenset(
    "Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather GatherElements GatherND Compress ReverseSequence Expand"
    " Tile DepthToSpace SpaceToDepth Split"
    " AveragePool MaxPool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax ReduceSum".split()
)


@dataclass(frozen=True, slots=True)
class Operand:
    """A value that a node reads.

    Attributes:
        value: What it is called in the graph that is being built.
        magnitude: Gives the name of its magnitude; emits it where nobody asked before.
        is_constant: Whether it is stored in the model.
        shape: Its shape; None where only the run tells.
        data_type: Its element type; 0 where only the run tells.
    """

    value: str
    magnitude: Callable[[], str]
    is_constant: bool = False
    shape: Shape | None = None
    data_type: int = 0


def edge_magnitude(emitter: Emitter, value: str, data_type: int, *, is_constant: bool) -> str:
    """|value| in float32, and for stored numbers of a narrow type at least the smallest normal number."""
    wide = value if data_type == FLOAT else emitter.node("Cast", [value], to=FLOAT)
    magnitude = emitter.node("Abs", [wide])
    if is_constant and data_type in _SMALLEST_NORMAL:
        return emitter.largest([magnitude], _SMALLEST_NORMAL[data_type])
    return magnitude


def magnitudes_of(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    """The magnitudes of what a node gives, one for each output that has one.

    Args:
        emitter: Takes the nodes.
        node: The node.
        read: Its inputs; None for one that is absent.
        results: Names of its outputs in the graph that is being built.

    Raises:
        NoBoundError: Its operator is not in the table above.
    """
    name = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
    rule = _RULES.get(name)
    if rule is None or not read or read[0] is None:
        raise NoBoundError(name)
    return rule(emitter, node, read, results)


def _given(read: list[Operand | None]) -> list[Operand]:
    return [operand for operand in read if operand is not None]


def _map(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    factor = drift(_terms(node, read))
    magnitudes = ["" if operand is None else operand.magnitude() for operand in read]
    if factor and len(magnitudes) > 2 and magnitudes[2]:
        magnitudes[2] = emitter.scaled(magnitudes[2], 1 + factor)
    (magnitude,) = emitter.like(node, magnitudes)
    if factor:
        magnitude = emitter.node("Add", [magnitude, emitter.scaled(_absolute(emitter, results[0]), factor)])
    return [magnitude]


def _terms(node: onnx.NodeProto, read: list[Operand | None]) -> int:
    """How many products a map adds up; 0 where only the run tells, and for types whose sums are kept in a wider one."""
    if any(operand.data_type in _SMALLEST_NORMAL for operand in _given(read[:2])):
        return 0
    first, second = [[] if operand is None else _sizes(operand) for operand in (*read, None)[:2]]
    if node.op_type == "MatMul":
        return (second or [0])[-2:][0] or (first or [0])[-1]
    if node.op_type == "Gemm":
        return (second or [0])[-1 if int_attribute(node, "transB", 0) else 0]
    if node.op_type == "Einsum":
        return _summed_by(string_attribute(node, "equation", ""), _given(read))
    if node.op_type == "ConvTranspose" and second:
        strides = ints_attribute(node, "strides") or [1] * len(second[2:])
        return terms_of_transposed(second, int_attribute(node, "group", 1), strides)
    return math.prod(second[1:]) if second else 0


def _summed_by(equation: str, operands: Sequence[Operand]) -> int:
    """How many products an Einsum adds up: along all letters that its result does not have."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    known = {
        letter: size
        for term, operand in zip(terms.split(","), operands, strict=False)
        for letter, size in zip(term, _sizes(operand) if "." not in term else (), strict=False)
    }
    return math.prod(size for letter, size in known.items() if letter not in (result if arrow else _once(terms)))


def _once(terms: str) -> set[str]:
    """The letters of an Einsum's result that is not spelled out."""
    return {letter for letter in terms if terms.count(letter) == 1}


def _sizes(operand: Operand) -> Sequence[int]:
    """The shape of an operand; empty where a size is open."""
    sizes = [size for size in operand.shape or () if isinstance(size, int)]
    return sizes if len(sizes) == len(operand.shape or ()) else []


def _absolute(emitter: Emitter, result: str) -> str:
    return emitter.node("Abs", [emitter.node("Cast", [result], to=FLOAT)])


def _fused_conv(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    """Onnxruntime's activation(Conv(x, W, b) + z)."""
    conv = onnx.NodeProto(op_type="Conv", name=node.name, output=node.output)
    conv.attribute.extend(given for given in node.attribute if not given.name.startswith("activation"))
    (magnitude,) = _map(emitter, conv, read[:3], results)
    if len(read) > 3 and read[3] is not None:
        added = emitter.scaled(read[3].magnitude(), 1 + drift(_terms(conv, read)))
        magnitude = emitter.node("Add", [magnitude, added])
    return [emitter.node("Add", [magnitude, _absolute(emitter, results[0])])]


def _block_product(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    """Onnxruntime's x · Wᵀ + b, with W in few bits."""
    columns = int_attribute(node, "K", 0)
    zeros = emitter.node("ConstantOfShape", [emitter.constant(np.array([columns, columns]))])
    identity = emitter.node("EyeLike", [zeros], dtype=read[0].data_type or FLOAT if read[0] else FLOAT)
    values = ["" if operand is None else operand.value for operand in read]
    (weight,) = emitter.like(node, [identity, *values[1:5]])
    magnitude = emitter.node("MatMul", [read[0].magnitude() if read[0] else "", _absolute(emitter, weight)])
    if len(read) > 5 and read[5] is not None:
        magnitude = emitter.node("Add", [magnitude, read[5].magnitude()])
    carried_far = emitter.scaled(_absolute(emitter, results[0]), drift(columns))
    return [emitter.node("Add", [magnitude, carried_far])]


def _scaler(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], _: list[str]) -> list[str]:
    """(x − offset) · scale, of scikit-learn."""
    given = {attribute.name: np.abs(np.array(attribute.floats, np.float32)) for attribute in node.attribute}
    if {*given} != {"offset", "scale"}:
        raise NoBoundError(node.op_type)
    moved = emitter.node("Add", [_given(read)[0].magnitude(), emitter.constant(given["offset"])])
    return [emitter.node("Mul", [moved, emitter.constant(given["scale"])])]


def _gemm(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    absolute = onnx.NodeProto()
    absolute.CopyFrom(node)
    for attribute in absolute.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f)
    return _map(emitter, absolute, read, results)


def _batch_norm(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], _: list[str]) -> list[str]:
    operands = _given(read)
    if len(operands) != 5 or any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
        raise NoBoundError(node.op_type)
    x, scale, bias, mean, variance = operands
    magnitudes = [x.magnitude(), scale.magnitude(), bias.magnitude(), emitter.node("Neg", [mean.magnitude()])]
    return emitter.like(node, [*magnitudes, variance.magnitude()], outputs=1)


def _sum(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], __: list[str]) -> list[str]:
    total, *rest = [operand.magnitude() for operand in _given(read)]
    for magnitude in rest:
        total = emitter.node("Add", [total, magnitude])
    return [total]


def _product(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], __: list[str]) -> list[str]:
    return [emitter.node("Mul", [operand.magnitude() for operand in _given(read)])]


def _quotient(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], _: list[str]) -> list[str]:
    numerator, denominator = _given(read)
    if not denominator.is_constant:
        raise NoBoundError(node.op_type)
    return [emitter.node("Div", [numerator.magnitude(), denominator.magnitude()])]


def _same_magnitude(_: Emitter, __: onnx.NodeProto, read: list[Operand | None], ___: list[str]) -> list[str]:
    return [operand.magnitude() for operand in _given(read)[:1]]


def _with_result(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    return [emitter.node("Add", [_given(read)[0].magnitude(), _absolute(emitter, results[0])])]


def _rearranged(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    data, *rest = read
    names = [operand.value if operand is not None else "" for operand in rest]
    only_data = 1 if node.op_type in ("MaxPool",) else None
    magnitudes = emitter.like(node, [data.magnitude() if data is not None else "", *names], outputs=only_data)
    if data is None or data.data_type in _SMALLEST_NORMAL or not may_be_carried(node):
        return magnitudes
    twice = emitter.scaled(carried(emitter, node, data.value, results[0]), 2)
    return [emitter.node("Add", [magnitudes[0], emitter.node("Mul", [magnitudes[0], twice])])]


def _pad(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], _: list[str]) -> list[str]:
    if float_attribute(node, "value", 0.0) < 0:
        raise NoBoundError("Pad with a negative value")
    values = [
        "" if operand is None else operand.magnitude() if index in (0, 2) else operand.value
        for index, operand in enumerate(read)
    ]
    return emitter.like(node, values)


def _resize(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], results: list[str]) -> list[str]:
    data, *rest = read
    if data is None or float_attribute(node, "extrapolation_value", 0.0) < 0:
        raise NoBoundError("Resize with a negative value around")
    if not is_cubic(node):
        return _rearranged(emitter, node, read, results)
    inputs = [data.magnitude(), *("" if operand is None else operand.value for operand in rest)]
    return cubic_magnitude(emitter, node, inputs)


def _prelu(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], __: list[str]) -> list[str]:
    data, slope = _given(read)
    steepest = emitter.largest([slope.magnitude()], 1.0)
    return [emitter.node("Mul", [data.magnitude(), steepest])]


def _same_of_magnitudes(emitter: Emitter, node: onnx.NodeProto, read: list[Operand | None], _: list[str]) -> list[str]:
    return emitter.like(node, [operand.magnitude() for operand in _given(read)])


def _largest(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], __: list[str]) -> list[str]:
    return [emitter.node("Max", [operand.magnitude() for operand in _given(read)])]


def _where(emitter: Emitter, _: onnx.NodeProto, read: list[Operand | None], __: list[str]) -> list[str]:
    condition, *values = _given(read)
    return [emitter.node("Where", [condition.value, *(operand.magnitude() for operand in values)])]


_Rule = Callable[[Emitter, onnx.NodeProto, list[Operand | None], list[str]], list[str]]
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Einsum"), _map),
    "Gemm": _gemm,
    "com.microsoft.FusedConv": _fused_conv,
    "com.microsoft.MatMulNBits": _block_product,
    "ai.onnx.ml.Scaler": _scaler,
    "com.microsoft.QuickGelu": _with_result,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    "Mul": _product,
    "Div": _quotient,
    **dict.fromkeys(_SAME_MAGNITUDE, _same_magnitude),
    **dict.fromkeys(_SLOPE_ABOUT_ONE, _with_result),
    **dict.fromkeys(_REARRANGING, _rearranged),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "PRelu": _prelu,
    "Pad": _pad,
    **dict.fromkeys(("Max", "Min"), _largest),
    "Where": _where,
    **dict.fromkeys(("Concat", "Mean"), _same_of_magnitudes),
}


def is_map(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies by weights."""
    return node.op_type in MAPS and node.domain in {*DEFAULT_DOMAINS, "com.microsoft"}
