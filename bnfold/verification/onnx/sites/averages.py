"""Sums over an image, and how far rounding carries them; see `judging.drift`."""

from __future__ import annotations

import math

import numpy as np
import onnx

from bnfold.onnx.proto.names import ints_attribute, is_standard
from bnfold.verification.judging.drift import UNNOTICED, drift
from bnfold.verification.onnx.sites.emitter import FLOAT, Emitter

_OVER_ALL = ("GlobalAveragePool", "ReduceMean", "ReduceSum")


def may_be_carried(node: onnx.NodeProto) -> bool:
    """Whether a node adds up as many elements of one value as an image has, which only the run may tell."""
    if is_standard(node, "AveragePool"):
        return drift(math.prod(ints_attribute(node, "kernel_shape"))) > UNNOTICED
    return is_standard(node, *_OVER_ALL)


def carried(emitter: Emitter, node: onnx.NodeProto, source: str, result: str) -> str:
    """max(0, drift(n) − UNNOTICED) for a sum of n elements, a float32 scalar.

    Args:
        emitter: Takes the nodes.
        node: The sum.
        source: What it reads, in the graph that is being built.
        result: What it gives.
    """
    if node.op_type == "AveragePool":
        terms = emitter.constant(np.array(math.prod(ints_attribute(node, "kernel_shape")), np.float32))
    else:
        sizes = [emitter.node("Size", [name]) for name in (source, result)]
        terms = emitter.node("Div", [emitter.node("Cast", [size], to=FLOAT) for size in sizes])
    off = emitter.scaled(emitter.node("Sqrt", [terms]), drift(1))
    return emitter.node("Relu", [emitter.node("Sub", [off, emitter.constant(np.array(UNNOTICED, np.float32))])])
