"""The affines that stay in a program, written as the frozen linear transform instead of a batch norm.

Two forms: a 1x1 depthwise convolution with bias, or mul and add. The convolution is one pass over memory and quantises
like any other; it exists for values of rank 3 to 5, and does not run on an empty image. Inside a region of autocast,
which would run it in another type, and for everything else there are mul and add. An add of zeros is not written.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import Array
from bnfold.graph import AffineNode
from bnfold.planning.leftover import mul_add_parts, stored, wants_convolution
from bnfold.planning.plan import Leftover
from bnfold.torch.fx.nodes import operator_name
from bnfold.torch.lift.provenance import Handle, Scope

_CONVOLUTIONS = {
    3: torch.ops.aten.conv1d.default,
    4: torch.ops.aten.conv2d.default,
    5: torch.ops.aten.conv3d.default,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call that takes the place of an affine.

    Attributes:
        target: The operator.
        constants: Its constants, by the names that their parameters begin with.
        arguments: Gives its arguments from the nodes of its input and of its constants.
    """

    target: torch._ops.OpOverload
    constants: tuple[tuple[str, Array], ...]
    arguments: Callable[..., tuple[fx.node.Argument, ...]]


def leftover_calls(form: Leftover, node: AffineNode, affine: Affine, handle: Handle) -> tuple[Call, ...] | None:
    """Writes an affine as calls of its own.

    Args:
        form: The form asked for.
        node: The node that stays.
        affine: Its affine, with what was composed into it.
        handle: Where it is in the program.

    Returns:
        The calls, each reading the result of the one before; None if the node has to stay as it is.
    """
    numbers = stored(form, node, affine)
    if numbers is None:
        return None
    scale, shift = numbers
    if _is_convolution(form, node, affine, handle):
        return (_depthwise_convolution(scale, shift, decomposed=operator_name(handle.node) != "batch_norm"),)
    return _mul_add(scale, shift)


def written_as(form: Leftover, node: AffineNode, affine: Affine, handle: Handle) -> str:
    """What `leftover_calls` writes, in words; "" if the node stays as it is."""
    numbers = stored(form, node, affine)
    if numbers is None:
        return ""
    if _is_convolution(form, node, affine, handle):
        return "a 1x1 depthwise convolution"
    return " and ".join(op_type.lower() for op_type, _ in mul_add_parts(*numbers))


def _is_convolution(form: Leftover, node: AffineNode, affine: Affine, handle: Handle) -> bool:
    return wants_convolution(form, node) and affine.rank in _CONVOLUTIONS and not _runs_in_autocast(handle.scope)


def _depthwise_convolution(scale: Array, shift: Array, *, decomposed: bool) -> Call:
    channels, spatial = scale.shape[1], scale.ndim - 2
    ones, zeros = [1] * spatial, [0] * spatial
    constants = [("weight", scale.reshape(channels, 1, *ones))]
    if shift.any():
        constants.append(("bias", shift.reshape(channels)))

    def arguments(value: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> tuple[fx.node.Argument, ...]:
        if decomposed:
            return value, weight, bias, ones, zeros, ones, False, zeros, channels
        return value, weight, bias, ones, zeros, ones, channels

    target = torch.ops.aten.convolution.default if decomposed else _CONVOLUTIONS[scale.ndim]
    return Call(target, tuple(constants), arguments)


def _mul_add(scale: Array, shift: Array) -> tuple[Call, ...]:
    forms = {"Mul": (torch.ops.aten.mul.Tensor, "scale"), "Add": (torch.ops.aten.add.Tensor, "shift")}
    calls = []
    for op_type, array in mul_add_parts(scale, shift):
        target, name = forms[op_type]
        calls.append(Call(target, ((name, _short(array)),), _both))
    return tuple(calls)


def _both(value: fx.Node, constant: fx.Node) -> tuple[fx.node.Argument, ...]:
    return value, constant


def _short(array: Array) -> Array:
    """Without the batch axis, which broadcasting adds again."""
    return array.reshape(array.shape[1:]) if array.shape[0] == 1 else array


def _runs_in_autocast(scope: Scope) -> bool:
    while scope.caller is not None:
        scope, caller = scope.caller
        if caller.target is torch.ops.higher_order.wrap_with_autocast:
            return True
    return False
