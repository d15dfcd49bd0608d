"""How a convolution of a program slides, written into its arguments.

A convolution in torch has as many zeros before the input as behind it. Only `padding="same"` may have one more behind,
and exists before decomposition alone. A transposed one cuts off as much before the output as behind it, and adds an
output padding there.
"""

from typing import cast

import torch
from torch import fx

from bnfold.algebra.linear_map import LinearMap, Window
from bnfold.graph import MapNode
from bnfold.torch.fx.nodes import arguments, operator_name
from bnfold.torch.lift.provenance import Handle

_CONVOLUTIONS = {
    "conv1d": (torch.ops.aten.conv1d.default, torch.ops.aten.conv1d.padding),
    "conv2d": (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding),
    "conv3d": (torch.ops.aten.conv3d.default, torch.ops.aten.conv3d.padding),
}
"""The overloads that take numbers of zeros and "same"."""

_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


def can_have_window(node: MapNode, linear: LinearMap) -> bool:
    """Whether the node of a map can be made to slide as another map does."""
    handle, window = node.handle, linear.window
    if window is None or not linear.out_first or window == node.linear.window or window.before == window.after:
        return True
    decomposed = not isinstance(handle, Handle) or operator_name(handle.node) not in _CONVOLUTIONS
    return not decomposed and _is_same(window, linear.weight.shape[2:])


def set_window(call: fx.Node, linear: LinearMap) -> None:
    """Makes a convolution slide as a map does.

    Args:
        call: A call of a map that `can_have_window`, with its input, weight and bias in place.
        linear: The map.
    """
    name, window = operator_name(call), linear.window
    if window is None:
        return
    strides, dilations = [*window.strides], [*window.dilations]
    data, weight, bias = cast(list[fx.node.Argument], [*arguments(call).values()][:3])
    call.kwargs = {}
    pads = [*window.before]
    extra = [] if linear.out_first else [pad - after for pad, after in zip(pads, window.after, strict=True)]
    if name in _TRANSPOSED:
        call.args = (data, weight, bias, strides, pads, extra, linear.groups, dilations)
        return
    if name not in _CONVOLUTIONS:
        extra = extra or [0] * len(strides)
        call.args = (data, weight, bias, strides, pads, dilations, not linear.out_first, extra, linear.groups)
        return
    by_number, by_name = _CONVOLUTIONS[name]
    symmetric = window.before == window.after
    call.target = by_number if symmetric else by_name
    call.args = (data, weight, bias, strides, pads if symmetric else "same", dilations, linear.groups)


def _is_same(window: Window, kernel: tuple[int, ...]) -> bool:
    reaches = [dilation * (size - 1) for dilation, size in zip(window.dilations, kernel, strict=True)]
    before, after = tuple(reach // 2 for reach in reaches), tuple(reach - reach // 2 for reach in reaches)
    return (window.before, window.after) == (before, after) and set(window.strides) <= {1}
