"""Sums over an image, and how far rounding carries them; see `judging.drift`."""

from __future__ import annotations

import math

import numpy as np
import onnx

from bnfold.onnx.proto.names import ints_attribute, is_standard
from bnfold.verification.judging.drift import BLANK_SPREAD, UNNOTICED, blank_drift, drift
from bnfold.verification.judging.metrics import ROUNDOFF
from bnfold.verification.onnx.sites.emitter import FLOAT, Emitter

_OVER_ALL = ("GlobalAveragePool", "ReduceMean", "ReduceSum")


def may_be_carried(node: onnx.NodeProto) -> bool:
    """Whether a node adds up as many elements of one value as an image has, which only the run may tell."""
    if is_standard(node, "AveragePool"):
        return drift(math.prod(ints_attribute(node, "kernel_shape"))) > UNNOTICED
    return is_standard(node, *_OVER_ALL)


def carried(emitter: Emitter, node: onnx.NodeProto, source: str, result: str) -> str:
    """max(0, drift(n) + blank_drift(e) − UNNOTICED) for sums of n elements each, e of them like their neighbour.

    Args:
        emitter: Takes the nodes.
        node: The sum.
        source: What it reads, in the graph that is being built.
        result: What it gives.

    Returns:
        A float32 value that broadcasts to the result.
    """
    if node.op_type == "AveragePool":
        terms = emitter.constant(np.array(math.prod(ints_attribute(node, "kernel_shape")), np.float32))
    else:
        sizes = [emitter.node("Size", [name]) for name in (source, result)]
        terms = emitter.node("Div", [emitter.node("Cast", [size], to=FLOAT) for size in sizes])
    (equal,) = emitter.like(node, [_like_neighbours(emitter, node, source, terms), *node.input[1:]])
    if node.op_type != "ReduceSum":
        equal = emitter.node("Mul", [equal, terms])
    off = emitter.scaled(emitter.node("Sqrt", [terms]), drift(1))
    off = emitter.node("Add", [off, emitter.scaled(equal, blank_drift(1))])
    return emitter.node("Relu", [emitter.node("Sub", [off, emitter.constant(np.array(UNNOTICED, np.float32))])])


def _like_neighbours(emitter: Emitter, node: onnx.NodeProto, source: str, terms: str) -> str:
    """1 for each element that a sum rounds like the one before it, 0 for others and for zeros.

    The one before it stands there along the only axis that is added up, or of several along the last.
    """
    over = (ints_attribute(node, "axes") or [-1])[0]
    axis = over if node.op_type.startswith("Reduce") and len(ints_attribute(node, "axes")) == 1 else -1
    values = emitter.node("Cast", [source], to=FLOAT)
    first = emitter.sliced(values, 0, 1, axis)
    before, behind = emitter.sliced(values, 0, -1, axis), emitter.sliced(values, 1, None, axis)
    apart = emitter.node("Abs", [emitter.node("Sub", [behind, before])])
    unit = emitter.scaled(terms, BLANK_SPREAD * ROUNDOFF["float32"])
    near = emitter.node("Less", [apart, emitter.node("Mul", [emitter.node("Abs", [behind]), unit])])
    parts = [emitter.node("Less", [first, first]), near]
    return emitter.node("Concat", [emitter.node("Cast", [part], to=FLOAT) for part in parts], axis=axis)
