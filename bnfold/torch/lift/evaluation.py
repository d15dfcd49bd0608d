"""Evaluating one operator of a constant expression, on the CPU.

An operator that is smooth in its arguments is evaluated in float64, so that an expression is rounded once, where it is
stored. All others (casts, roundings, comparisons) are evaluated in the types that the program gives to their arguments:
there a tiny difference could change the result altogether.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument

from bnfold.errors import UnsupportedModelError
from bnfold.torch.fx.nodes import fake_tensor, fake_tensors, is_tuple_item, operator_name, overload

_REARRANGES = frozenset(
    "reshape view _unsafe_view permute t transpose swapaxes movedim mT numpy_T flatten unflatten squeeze unsqueeze"
    " expand expand_as view_as repeat clone contiguous detach alias lift_fresh lift_fresh_copy slice select narrow cat"
    " stack split split_with_sizes chunk unbind flip roll index_select dropout triu tril diag diag_embed"
    " diagonal".split()
)
"""Operators that compute nothing: they take elements of any precision."""

_SMOOTH = frozenset(
    "add sub rsub mul div neg sqrt rsqrt pow square reciprocal exp log sigmoid tanh softplus abs clamp clamp_min"
    " clamp_max maximum minimum relu mean sum var var_mean std norm linalg_vector_norm linalg_norm frobenius_norm"
    " _weight_norm mv mm bmm matmul dot vdot addmm addmv outer einsum linear conv1d conv2d conv3d convolution"
    " batch_norm native_batch_norm _native_batch_norm_legit softmax _softmax cumsum prod lerp addcmul addcdiv".split()
)
_CASTS = frozenset("to _to_copy type_as float half double bfloat16".split())
_UNDEFINED = frozenset("empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize".split())
"""Operators whose results are whatever the memory holds."""

_QUANTISES = frozenset("quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize".split())

_ERRORS = (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What torch raises on an expression that makes no sense."""


def is_pure(node: fx.Node) -> bool:
    """Whether a node calls an aten operator whose result follows from its arguments alone, and that changes none."""
    target = overload(node)
    name = operator_name(node)
    if target is None or not name or name in _UNDEFINED:
        return False
    if name in ("detach", "dropout"):
        return name == "detach" or not (len(node.args) > 2 and node.args[2])
    writes = any(part.alias_info is not None and part.alias_info.is_write for part in target._schema.arguments)
    return not writes and torch.Tag.nondeterministic_seeded not in target.tags


def quantises(node: fx.Node) -> bool:
    """Whether a node quantises, really or for show.

    The weights that come out of it are not those that are stored: what trains or converts the model needs the operator.
    """
    name = operator_name(node)
    return name in _QUANTISES or "fake_quant" in name


def run(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    """Evaluates one node.

    Args:
        node: A node that `is_pure`, or that takes an item of a tuple.
        values: The values of its arguments: tensors (floating-point ones of any precision) and tuples of tensors.

    Returns:
        A tensor, or a tuple of tensors; floating-point ones perhaps in float64.

    Raises:
        UnsupportedModelError: The program contradicts itself here.
    """
    try:
        with torch.no_grad():
            result = _run(node, values)
    except _ERRORS as error:
        message = f"the constant expression '{node.name}' of the program cannot be evaluated: {error}"
        raise UnsupportedModelError(message) from error
    fake = fake_tensor(node)
    if fake is not None and not (isinstance(result, torch.Tensor) and result.shape == fake.shape):
        message = f"the constant expression '{node.name}' has another shape than the program says"
        raise UnsupportedModelError(message, hint="Export the model again.")
    return result


def _run(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    if is_tuple_item(node):
        items = cast(tuple[object, ...], values[cast(fx.Node, node.args[0])])
        return items[cast(int, node.args[1])]
    name = operator_name(node)
    if name in _CASTS:
        return _cast(node, values)
    if name == "detach":
        return values[cast(fx.Node, node.args[0])]
    adapt: Callable[[fx.Node, object], object] = _as_stored
    if name in _SMOOTH or name in _REARRANGES:
        adapt = _in_float64 if name in _SMOOTH else _as_it_is

    def argument(given: Argument) -> Argument:
        if isinstance(given, fx.Node):
            return cast(Argument, adapt(given, values[given]))
        return torch.device("cpu") if isinstance(given, torch.device) else given

    target = cast(Callable[..., object], cast(OpOverload, node.target))
    arguments = fx.node.map_aggregate(node.args, argument)
    keywords = dict(fx.node.map_aggregate(node.kwargs, argument))
    if name in _SMOOTH and isinstance(keywords.get("dtype"), torch.dtype):
        keywords["dtype"] = _wider(cast(torch.dtype, keywords["dtype"]))
    return target(*arguments, **keywords)


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _in_float64(_: fx.Node, value: object) -> object:
    if isinstance(value, tuple | list):
        return [item.to(_wider(item.dtype)) for item in value]
    return value.cpu().to(_wider(value.dtype)) if isinstance(value, torch.Tensor) else value


def _as_it_is(_: fx.Node, value: object) -> object:
    if isinstance(value, tuple | list):
        return [item.cpu() for item in value]
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _as_stored(node: fx.Node, value: object) -> object:
    fakes = fake_tensors(node)
    if isinstance(value, tuple | list) and fakes is not None:
        return [item.cpu().to(fake.dtype) for item, fake in zip(value, fakes, strict=True)]
    fake = fake_tensor(node)
    if not isinstance(value, torch.Tensor) or fake is None:
        return value
    return value.cpu().to(fake.dtype)


def _cast(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    source = values[cast(fx.Node, node.args[0])]
    fake = fake_tensor(node)
    if not isinstance(source, torch.Tensor) or fake is None:
        message = f"'{node.name}' casts no tensor"
        raise TypeError(message)
    stored = cast(fx.Node, node.args[0]).meta.get("val")
    if isinstance(stored, torch.Tensor) and stored.dtype == fake.dtype:
        return source
    return source.to(fake.dtype)
