"""Resizes in cubic mode, whose weights sum to one only nearly.

A weight is a polynomial of a position, computed in float32 from terms of up to 8·|a|, so that a constant image comes
out up to some 30 units of its rounding off. A shift behind such a node is exact, one before it is not: correct folds
differ by that much of what they move. The magnitude of a result is bounded by the largest of the elements around it,
those that a window of five around the nearest one holds, times the sum of the absolute weights along both axes:

    Σ |w(t)|  =  1 − 2·a·t·(1 − t)  ≤  1 + |a|/2        for a ≤ 0
"""

from __future__ import annotations

import onnx

from bnfold.onnx.proto.names import float_attribute, int_attribute, is_standard, string_attribute
from bnfold.verification.judging.sites import NoBoundError
from bnfold.verification.onnx.sites.emitter import Emitter

CARRIED = 8.0
"""How far the weights carry a result, in units of its rounding: the root mean square over a constant image."""

_OF_WEIGHTS = ("mode", "cubic_coeff_a", "antialias", "exclude_outside")
_REACH = 2
_COEFFICIENT = -0.75  # of a node without one


def is_cubic(node: onnx.NodeProto) -> bool:
    """Whether a node is such a Resize."""
    return is_standard(node, "Resize") and string_attribute(node, "mode", "nearest") == "cubic"


def taking_the_nearest(node: onnx.NodeProto) -> onnx.NodeProto:
    """The same node in nearest mode: its result has elements of what it resizes, in the same shape."""
    nearest = onnx.NodeProto()
    nearest.CopyFrom(node)
    kept = [given for given in node.attribute if given.name not in _OF_WEIGHTS]
    del nearest.attribute[:]
    nearest.attribute.extend(kept)
    return nearest


def cubic_magnitude(emitter: Emitter, node: onnx.NodeProto, inputs: list[str]) -> list[str]:
    """The magnitude of its result; runtimes have such a node for images alone.

    Args:
        emitter: Takes the nodes.
        node: The node.
        inputs: What it reads, with the magnitude of its first input.

    Raises:
        NoBoundError: It weighs more elements, or in another way.
    """
    coefficient = float_attribute(node, "cubic_coeff_a", _COEFFICIENT)
    if coefficient > 0 or any(int_attribute(node, name, 0) for name in ("antialias", "exclude_outside")):
        raise NoBoundError("Resize in cubic mode, antialiased or without what is outside")
    around = emitter.node("MaxPool", inputs[:1], kernel_shape=[2 * _REACH + 1] * 2, pads=[_REACH] * 4)
    (largest,) = emitter.like(taking_the_nearest(node), [around, *inputs[1:]])
    return [emitter.scaled(largest, (1 + abs(coefficient) / 2) ** 2)]
