"""How large the rounding error of a region of a program may be: the same rules as for ONNX.

    conv, conv_transpose, linear, matmul, addmm,
    einsum                                        |W| ⋆ m + |b| + drift(n) · (|result| + |b|), n products in each sum
    batch_norm                                    |scale| · (m + |mean|) + |beta|
    add, sub; mul; div; sum                       m₁ + m₂; m₁ · m₂; m / |constant|; the same of m
    relu, clamp, max_pool, reshape, …             m, or the same operation on m
    maximum, minimum; where                       the larger of m₁ and m₂; that of the one which is chosen
    sigmoid, tanh, …                              m + |result|: their slope is at most about 1

in float32 (float64 for float64), beginning with m = |x| at the edge of the region. Weights below the smallest normal
number of a narrow type count as that number: their rounding error is as large.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from bnfold.torch.fx.nodes import arguments, operator_name
from bnfold.verification.judging.drift import drift, terms_of_transposed
from bnfold.verification.judging.sites import NoBoundError

MAPS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution".split())
"""Operators that multiply by weights, channels first."""

LAST_AXIS_MAPS = frozenset("linear matmul mm bmm addmm baddbmm einsum".split())
"""Those with the channels last."""

_SMALLEST_NORMAL = {torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126}
_SAME_MAGNITUDE = frozenset(
    "relu relu6 leaky_relu hardtanh clamp clamp_min clamp_max neg abs dropout detach alias clone contiguous to _to_copy"
    " lift_fresh_copy feature_dropout".split()
)
_SLOPE_ABOUT_ONE = frozenset(
    "sigmoid hardsigmoid silu hardswish tanh softplus elu gelu mish erf selu celu log_sigmoid".split()
)
_SAME_OPERATION = frozenset(
    "permute transpose swapaxes t mT movedim reshape view _unsafe_view view_as reshape_as flatten unflatten squeeze"
    " unsqueeze slice select narrow split split_with_sizes chunk unbind index_select expand expand_as repeat tile roll"
    " flip pixel_shuffle pixel_unshuffle channel_shuffle avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d"
    " max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d"
    " max_pool2d_with_indices mean amax max sum upsample_nearest1d upsample_nearest2d upsample_nearest3d"
    " _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"
    " unfold cat concat hstack stack gather constant_pad_nd"
    " reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
    " contiguous im2col".split()
)

Magnitude = object
"""A tensor, or a tuple of them for a node that gives several."""


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """What a node reads.

    Attributes:
        value: The tensor, or tuple of tensors.
        magnitude: Its magnitude.
        is_constant: Whether it is stored in the model, or made of what is.
    """

    value: object
    magnitude: Magnitude
    is_constant: bool = False


def edge_magnitude(value: object, *, is_constant: bool = False) -> Magnitude:
    """|value|, and for stored numbers of a narrow type at least the smallest normal number."""
    if isinstance(value, tuple | list):
        return tuple(edge_magnitude(item, is_constant=is_constant) for item in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    wide = value.detach().abs().to(torch.float64 if value.dtype is torch.float64 else torch.float32)
    least = _SMALLEST_NORMAL.get(value.dtype) if is_constant else None
    return wide if least is None else wide.clamp_min(least)


def magnitude_of(node: fx.Node, read: Callable[[fx.Node], Operand], result: object) -> Magnitude:
    """The magnitude of what a node gives.

    Args:
        node: The node.
        read: Gives what it reads.
        result: What it gives.

    Raises:
        NoBoundError: No rule is known for it.
    """
    if node.target is operator.getitem:
        items = read(cast(fx.Node, node.args[0])).magnitude
        return cast(tuple[Magnitude, ...], items)[cast(int, node.args[1])]
    name = operator_name(node)
    rule = _RULES.get(name)
    if rule is None:
        raise NoBoundError(name or str(node.target))
    return rule(node, read, result)


_Reader = Callable[[fx.Node], Operand]


def _tensor(argument: object, read: _Reader) -> torch.Tensor:
    """The magnitude of an argument: a node, or a number."""
    if isinstance(argument, fx.Node):
        argument = read(argument).magnitude
    if isinstance(argument, torch.Tensor):
        return argument
    if isinstance(argument, int | float):
        return torch.tensor(abs(float(argument)))
    raise NoBoundError(f"an argument {argument!r}")


def _same_operation(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    """The node's own operation, on magnitudes."""

    def magnitude(argument: fx.Node) -> fx.node.Argument:
        return cast(fx.node.Argument, read(argument).magnitude)

    operands: object = fx.map_arg((node.args, node.kwargs), magnitude)
    args, kwargs = cast(tuple[tuple[object, ...], dict[str, object]], operands)
    return cast(Callable[..., object], node.target)(*args, **kwargs)


def _map(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    given = arguments(node)
    magnitude = cast(torch.Tensor, _same_operation(node, read, result))
    weight = _tensor(given["weight"], read)
    total = cast(torch.Tensor, edge_magnitude(result))
    channels_last = operator_name(node) == "linear"
    if given.get("bias") is not None:
        bias = _tensor(given["bias"], read)
        total = total + (bias if channels_last else bias.reshape(-1, *(1,) * (weight.dim() - 2)))
    return magnitude + _drift(_terms(node, weight), result) * total


def _drift(terms: int, result: object) -> float:
    """The factor of a sum of so many terms; none for types that are added up in a wider one."""
    return 0.0 if cast(torch.Tensor, result).dtype in _SMALLEST_NORMAL else drift(terms)


def _terms(node: fx.Node, weight: torch.Tensor) -> int:
    """How many products a convolution or linear adds up for an element of its result."""
    given = arguments(node)
    if given.get("transposed") or operator_name(node).startswith("conv_transpose"):
        stride = given.get("stride", 1)
        strides = [stride] if isinstance(stride, int) else [*cast(list[int], stride)]
        axes = weight.dim() - 2
        strides = strides * axes if len(strides) == 1 else strides
        return terms_of_transposed(weight.shape, cast(int, given.get("groups", 1)), strides)
    return math.prod(weight.shape[1:])


def _matmul(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    magnitude = cast(torch.Tensor, _same_operation(node, read, result))
    terms = _tensor(node.args[0], read).shape[-1]
    return magnitude + _drift(terms, result) * cast(torch.Tensor, edge_magnitude(result))


def _einsum(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    magnitude = cast(torch.Tensor, _same_operation(node, read, result))
    equation, parts = cast(tuple[str, list[object]], node.args)
    operands, _, letters = equation.replace(" ", "").partition("->")
    sizes = zip(operands.split(","), (_tensor(part, read).shape for part in parts), strict=True)
    summed = {
        letter: size
        for term, shape in sizes
        for letter, size in zip(term.replace("...", "."), shape if "." not in term else (), strict=False)
        if operands.count(letter) == len(parts) and letter not in letters
    }
    return magnitude + _drift(math.prod(summed.values()), result) * cast(torch.Tensor, edge_magnitude(result))


def _addmm(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    given = arguments(node)
    bias, first, second = (_tensor(given[name], read) for name in _addmm_names(given))
    alpha, beta = (abs(float(cast(float, given.get(name, 1)))) for name in ("alpha", "beta"))
    total = cast(torch.Tensor, edge_magnitude(result)) + beta * bias
    return beta * bias + alpha * (first @ second) + _drift(first.shape[-1], result) * total


def _addmm_names(given: Mapping[str, object]) -> tuple[str, str, str]:
    return ("self", "mat1", "mat2") if "mat1" in given else ("self", "batch1", "batch2")


def _batch_norm(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    given = arguments(node)
    if given.get("training") or given.get("running_mean") is None:
        raise NoBoundError("batch_norm in training mode")
    x, mean, var = (_tensor(given[name], read) for name in ("input", "running_mean", "running_var"))
    gamma, beta = (None if given[name] is None else _tensor(given[name], read) for name in ("weight", "bias"))
    weight, bias = (None if one is None else one.to(x.dtype) for one in (gamma, beta))
    epsilon = float(cast(float, given["eps"]))
    return torch.nn.functional.batch_norm(x, -mean.to(x.dtype), var.to(x.dtype), weight, bias, eps=epsilon)


def _sum(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    given = arguments(node)
    alpha = abs(float(cast(float, given.get("alpha", 1))))
    return _tensor(given["self"], read) + alpha * _tensor(given["other"], read)


def _product(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    given = arguments(node)
    return _tensor(given["self"], read) * _tensor(given["other"], read)


def _quotient(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    given = arguments(node)
    divisor = given["other"]
    if isinstance(divisor, fx.Node) and not read(divisor).is_constant:
        raise NoBoundError("div")
    return _tensor(given["self"], read) / _tensor(divisor, read)


def _same(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    return _tensor(node.args[0], read)


def _with_result(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    return _tensor(node.args[0], read) + cast(torch.Tensor, edge_magnitude(result))


def _largest(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    given = arguments(node)
    if "other" not in given:
        raise NoBoundError("min along an axis")
    return torch.maximum(_tensor(given["self"], read), _tensor(given["other"], read))


def _where(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    condition, *values = node.args
    assert isinstance(condition, fx.Node)  # a tensor of booleans
    return torch.where(cast(torch.Tensor, read(condition).value), *(_tensor(value, read) for value in values))


def _prelu(node: fx.Node, read: _Reader, _: object) -> Magnitude:
    data, slope = (_tensor(argument, read) for argument in node.args)
    steepest = slope.clamp_min(1.0)
    if data.dim() > 1 and steepest.numel() > 1:
        steepest = steepest.reshape(-1, *(1,) * (data.dim() - 2))
    return data * steepest


def _pad(node: fx.Node, read: _Reader, result: object) -> Magnitude:
    given = arguments(node)
    value = given.get("value") or 0
    if not isinstance(value, int | float) or value < 0:
        raise NoBoundError("pad with a negative value")
    return _same_operation(node, read, result)


_RULES: Mapping[str, Callable[[fx.Node, _Reader, object], Magnitude]] = {
    **dict.fromkeys(MAPS | {"linear"}, _map),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product,
    "div": _quotient,
    **dict.fromkeys(_SAME_MAGNITUDE, _same),
    **dict.fromkeys(_SLOPE_ABOUT_ONE, _with_result),
    **dict.fromkeys(_SAME_OPERATION, _same_operation),
    "prelu": _prelu,
    **dict.fromkeys(("maximum", "minimum", "min"), _largest),
    "where": _where,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}
