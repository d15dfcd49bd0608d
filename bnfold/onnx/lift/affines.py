"""Affines that are spelled out as arithmetic with constants, one ONNX node each."""

from math import prod

import numpy as np
import onnx

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import STORAGE_DTYPES
from bnfold.graph import Value
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.proto.names import find_attribute, is_standard, subgraphs
from bnfold.reasons import Stop, StopCode

_MOST_CONSTANT_ELEMENTS = 1 << 22
"""A larger constant is no affine that anybody wants to see in float64."""

_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_STORED = frozenset(dtype.name for dtype in STORAGE_DTYPES)


def lift_affine(node: onnx.NodeProto, constants: Constants, source: Value) -> Affine | None:
    """Reads a Neg, a Scaler, or an Add, Sub, Mul or Div with a constant, as an affine of its other operand.

    Args:
        node: The node.
        constants: The constants of its graph.
        source: The operand that is not constant.

    Returns:
        Its affine, or None if it is none, or may give its result another shape than its operand has.
    """
    if source.shape is None:
        return None
    if is_standard(node, "Neg"):
        one = np.ones((1,) * len(source.shape))
        return Affine(-one, 0 * one) if source.dtype in _STORED else None
    if is_scaler(node):
        return _scaler(node, source)
    if not is_standard(node, *_ARITHMETIC) or len(node.input) != 2:
        return None
    position = 0 if constants.is_constant(node.input[0]) else 1
    constant = constants.find(node.input[position])
    if constant is None or constant.overridable or constant.dtype not in STORAGE_DTYPES:
        return None
    rank = len(source.shape)
    if len(constant.shape) > rank or prod(constant.shape) > _MOST_CONSTANT_ELEMENTS:
        return None
    shape = (1,) * (rank - len(constant.shape)) + constant.shape
    if any(size not in (1, source.shape[axis]) for axis, size in enumerate(shape)):
        return None
    array = constant.read().astype(np.float64).reshape(shape)
    if not np.isfinite(array).all():
        return None
    one, zero = np.ones((1,) * rank), np.zeros((1,) * rank)
    match node.op_type, position:
        case "Add", _:
            return Affine(one, array)
        case "Sub", 1:
            return Affine(one, -array)
        case "Sub", 0:
            return Affine(-one, array)
        case "Mul", _:
            return Affine(array, zero)
    return Affine(1.0 / array, zero) if position == 1 and array.all() else None


def operand_stop(node: onnx.NodeProto, constants: Constants, name: str) -> Stop | None:
    """The reason that nothing passes a node because of its constants: it has nothing else, or they are not known.

    Args:
        node: A node that is neither a map nor an affine, and that no rule is for.
        constants: The constants of its graph.
        name: What it is called.
    """
    given = [read for read in node.input if read]
    if given and all(map(constants.is_constant, given)) and not any(subgraphs(node)):
        reason = f"all inputs of {node.op_type} '{name}' are constants, and no fold goes into such a node"
        return Stop(StopCode.MODEL_INPUT, reason)
    if not is_standard(node, *_ARITHMETIC):
        return None
    for read in given:
        if constants.is_constant(read) and constants.find(read) is None:
            reason = f"'{read}', which {node.op_type} '{name}' reads, {constants.why_unknown(read)}"
            return Stop(StopCode.NO_RULE, reason)
    return None


def is_scaler(node: onnx.NodeProto) -> bool:
    """Whether a node is the Scaler that scikit-learn's pipelines become: (x − offset) · scale."""
    return node.domain == "ai.onnx.ml" and node.op_type == "Scaler"


def _scaler(node: onnx.NodeProto, source: Value) -> Affine | None:
    """It is defined for one row or several, and its result is float32."""
    arrays = [
        np.array(given.floats, np.float64) for name in ("offset", "scale") if (given := find_attribute(node, name))
    ]
    rank = len(source.shape or ())
    if len(arrays) != 2 or source.dtype != "float32" or rank not in (1, 2):
        return None
    size = (source.shape or ())[-1]
    if arrays[0].size != arrays[1].size or arrays[0].size not in (1, size) or not np.isfinite(arrays).all():
        return None
    offset, scale = (array.reshape((1,) * (rank - 1) + (-1,)) for array in arrays)
    return Affine(scale, -scale * offset)
