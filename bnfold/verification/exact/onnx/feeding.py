"""What a region is fed: small integers of both signs, in multiples by which every average comes out exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import onnx

from bnfold.algebra.rounding import Array
from bnfold.onnx.lift.types import ValueTypes
from bnfold.onnx.proto.names import int_attribute, ints_attribute, is_standard, string_attribute
from bnfold.system.memory import require_memory
from bnfold.verification.exact.onnx.regions import Region
from bnfold.verification.exact.onnx.sizes import shape_for, static_shape
from bnfold.verification.exact.onnx.wide_sums import is_wide
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure

_LARGEST = 3
_LARGE_WINDOW = 256
_MOST = 1 << 14
"""Products of such values with weights, biases and scales stay whole numbers that float32 has."""

_LARGEST_EXACT = 1 << 24

_MOST_DRAWN = 1 << 40
"""Larger multiples are given up; they need windows in which each number of elements occurs."""

_NBYTES_EACH = 24
"""Each element is drawn, multiplied, and given its type."""

_REFUSED = partial(RuntimeFailure, FailureKind.REJECTED)
_POWERS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)


def feed(region: Region, types: ValueTypes, dtypes: Mapping[str, np.dtype[np.generic]], seed: int) -> dict[str, Array]:
    """Values for the entries of a region.

    Args:
        region: The region.
        types: What is known about the values of the original, at the sizes wanted.
        dtypes: For each entry, as it is called in the region.
        seed: Another seed gives other values.

    Raises:
        LookupError: The rank of an entry is not known; the message is its name.
        RuntimeFailure: They would not fit into memory.
    """
    draw = np.random.default_rng(seed)
    originals = _originals(region)
    multiple = _multiple(originals, types)
    multiple = multiple if multiple <= _MOST_DRAWN else 1
    divisors = {node.input[1] for node in originals if is_standard(node, "Div")}
    values: dict[str, Array] = {}
    for name, value in region.entries.items():
        shape, dtype = shape_for(types, value, seed), dtypes[name]
        require_memory(math.prod(shape) * _NBYTES_EACH, f"{value!r} of shape {shape}", _REFUSED)
        if dtype == np.bool_ or np.issubdtype(dtype, np.integer):
            values[name] = draw.integers(0, 2, shape).astype(dtype)
        elif value in divisors:
            values[name] = draw.choice(_POWERS, shape).astype(dtype)
        else:
            values[name] = (draw.integers(-_LARGEST, _LARGEST, shape, endpoint=True) * multiple).astype(dtype)
    return values


def is_exact(region: Region, types: ValueTypes, opset: int) -> bool:
    """Whether sums of such values are exact: in float32 not over large windows, nor in such multiples as they need."""
    originals = _originals(region)
    narrow = [node for node in originals if is_standard(node, "AveragePool") and not is_wide(node, opset)]
    windows = [math.prod(ints_attribute(node, "kernel_shape")) for node in narrow]
    large = max((window for window in windows if window > _LARGE_WINDOW), default=1)
    return _multiple(originals, types) * large <= _MOST


def outgrows(region: Region, result: Array) -> bool:
    """Whether numbers that grow from turn to turn have grown beyond the whole numbers that float32 has."""
    turns = any(is_standard(node, "Loop", "Scan") for node in _originals(region))
    return turns and result.dtype.kind == "f" and bool((np.abs(result) > _LARGEST_EXACT).any())


def _originals(region: Region) -> list[onnx.NodeProto]:
    return [] if region.cut is None else [node for _, node in sorted(region.cut.originals.items())]


def _multiple(nodes: Iterable[onnx.NodeProto], types: ValueTypes) -> int:
    """What whole numbers have to be multiples of to be exact behind all the averages on a way through the nodes.

    Powers of two divide exactly. Multiples of them would only make sums over large windows too large to be exact, but
    for an average over more elements than leave bits for the whole numbers.
    """
    needed: dict[str, int] = {}
    for node in nodes:
        before = math.lcm(*(needed.get(name, 1) for name in node.input))
        divisor = _divided_by(node, types)
        twos = divisor & -divisor
        needed |= dict.fromkeys(node.output, before * (divisor // twos) * max(1, twos // _LARGE_WINDOW))
    return math.lcm(*needed.values())


def _divided_by(node: onnx.NodeProto, types: ValueTypes) -> int:
    if is_standard(node, "AveragePool"):
        kernel = ints_attribute(node, "kernel_shape")
        whole = not any(ints_attribute(node, "pads")) and string_attribute(node, "auto_pad", "NOTSET") != "SAME_UPPER"
        whole = whole and not int_attribute(node, "ceil_mode", 0)
        if whole or int_attribute(node, "count_include_pad", 0):
            return math.prod(kernel)
        return math.prod(math.lcm(*range(1, size + 1)) for size in kernel)
    if is_standard(node, "Mean"):
        return len(node.input)
    if is_standard(node, "GlobalAveragePool", "ReduceMean"):
        source, target = static_shape(types, node.input[0]), static_shape(types, node.output[0])
        if source and target:
            return max(1, math.prod(source) // max(1, math.prod(target)))
    return 1
