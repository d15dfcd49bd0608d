"""Spelled-out affines: additions and multiplications with a constant, biases of matrix products, frozen batch norms."""

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import fx

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import STORAGE_DTYPES, Float64Array
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import arguments, dtype_of, fake_tensor, operator_name, shape_of
from bnfold.torch.lift.constants import Constant, Constants
from bnfold.torch.lift.provenance import is_frozen

_ARITHMETIC = frozenset("add sub rsub mul div neg".split())
_STORED = frozenset(dtype.name for dtype in STORAGE_DTYPES)
_MOST_CONSTANT_ELEMENTS = 1 << 22
"""A larger constant is no affine that anybody wants to see in float64."""


@dataclass(frozen=True, slots=True)
class FoundAffine:
    """A node that is an affine of one value, or a batch norm that is none.

    Attributes:
        affine: The affine, or the reason that it is none.
        source: The node that computes the value.
        parameters: The names of the parameters and buffers that its constants are made of.
    """

    affine: Affine | Stop
    source: fx.Node
    parameters: tuple[str, ...] = ()


def lift_affine(node: fx.Node, constants: Constants) -> FoundAffine | None:
    """Reads an operator of arithmetic with a constant as an affine of its other operand.

    Args:
        node: The node.
        constants: The constants of its graph.

    Returns:
        Its affine, or None if it is none, or gives its result another shape or element type than its operand has.
    """
    name = operator_name(node)
    if name not in _ARITHMETIC:
        return None
    given = arguments(node)
    first, second = given["self"], given.get("other", -1)
    constant_at = 1 if isinstance(first, fx.Node) and not constants.is_constant(first) else 0
    source, other = (first, second) if constant_at else (second, first)
    if not isinstance(source, fx.Node) or constants.is_constant(source) or given.get("rounding_mode") is not None:
        return None
    before, after = fake_tensor(source), fake_tensor(node)
    shape = shape_of(before)
    if (
        shape is None
        or shape != shape_of(after)
        or dtype_of(before) != dtype_of(after)
        or dtype_of(before) not in _STORED
    ):
        return None
    constant = constants.find(other)
    array = _array(other, constant, shape)
    alpha = given.get("alpha", 1)
    if array is None or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return None
    affine = _affine(name, array, alpha, constant_at)
    parameters = () if constant is None else constant.parameters
    if affine is None:
        return None
    if np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all():
        return FoundAffine(affine, source, parameters)
    if name == "mul" and is_frozen(node):
        stop = Stop(StopCode.PARAMETERS_NOT_FINITE, "its scale is not finite in every channel")
        return FoundAffine(stop, source, parameters)
    return None


def _affine(name: str, array: Float64Array, alpha: float, constant_at: int) -> Affine | None:
    one, zero = np.ones((1,) * array.ndim), np.zeros((1,) * array.ndim)
    match name, constant_at:
        case "add", 1:
            return Affine(one, alpha * array)
        case "add", 0:
            return Affine(alpha * one, array)
        case "sub", 1:
            return Affine(one, -alpha * array)
        case "sub", 0:
            return Affine(-alpha * one, array)
        case "rsub", 1:
            return Affine(-alpha * one, array)
        case "rsub", 0:
            return Affine(one, -alpha * array)
        case ("mul", _) | ("neg", _):
            return Affine(array, zero)
    return Affine(1.0 / array, zero) if name == "div" and constant_at == 1 and array.all() else None


def _array(given: object, constant: Constant | None, shape: tuple[int | str | None, ...]) -> Float64Array | None:
    """A number or a constant as an array of as many axes as the value has, None where it is larger than the value."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return np.full((1,) * len(shape), float(given))
    if constant is None or len(constant.shape) > len(shape) or prod(constant.shape) > _MOST_CONSTANT_ELEMENTS:
        return None
    if np.issubdtype(constant.dtype, np.complexfloating):
        return None
    wide = (1,) * (len(shape) - len(constant.shape)) + constant.shape
    if any(size not in (1, shape[axis]) for axis, size in enumerate(wide)):
        return None
    return constant.read().astype(np.float64).reshape(wide)


def bias_of(product: fx.Node, add: fx.Node, constants: Constants, axis: int) -> Constant | None:
    """The constant that an addition gives to a matrix product as its bias: one number for each channel.

    Args:
        product: A matrix product with a constant weight.
        add: What reads its result.
        constants: The constants of the graph.
        axis: The axis of the channels, negative.

    Returns:
        The bias, or None if the addition is no bias.
    """
    if operator_name(add) != "add" or (add.args[:1] != (product,) and add.args[1:2] != (product,)):
        return None
    given = arguments(add)
    if given.get("alpha", 1) != 1:
        return None
    bias = constants.find(given["other"] if given["self"] is product else given["self"])
    before, after = fake_tensor(product), fake_tensor(add)
    shape = shape_of(before)
    if bias is None or shape is None or bias.dtype.name != dtype_of(before):
        return None
    if shape != shape_of(after) or dtype_of(before) != dtype_of(after) or len(bias.shape) > len(shape):
        return None
    others = [size for position, size in enumerate(bias.shape, -len(bias.shape)) if position != axis]
    along = bias.shape[axis] if len(bias.shape) >= -axis else 1
    return bias if all(size == 1 for size in others) and along in (1, shape[axis]) else None
