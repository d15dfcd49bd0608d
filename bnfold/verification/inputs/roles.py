"""Inputs that say sizes, positions or counts: what a model does with them decides which values make sense.

A target of Reshape of random numbers fits no tensor, and a divisor of zero ends the process. So such an input is given
what every tensor allows: ones, zeros, everything to the end, or the axes in order.
"""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum

import numpy as np
import onnx

from bnfold.input_spec import Array
from bnfold.onnx.proto.names import is_standard


class Role(StrEnum):
    """What an input stands for."""

    VALUES = "values"
    ONES = "ones"
    ZEROS = "zeros"
    REST = "rest"
    END = "end"
    AXES = "axes"


_ROLES = {
    ("Reshape", 1): Role.REST,
    ("Slice", 1): Role.ZEROS,
    ("Slice", 2): Role.END,
    ("Slice", 3): Role.AXES,
    ("Pad", 1): Role.ZEROS,
    **dict.fromkeys(
        [
            *(("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("TopK", 1), ("Slice", 4), ("Range", 2)),
            *(("Div", 1), ("Mod", 1), ("OneHot", 1), ("Resize", 2), ("Upsample", 1)),
        ],
        Role.ONES,
    ),
}
_KEEPS_NUMBERS = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten")
_TOGETHER = ("Concat", "Mul", "Max")
_PICKS = ("Gather", "Slice")
"""Behind these a number is one of several that say something together."""


def roles(graph: onnx.GraphProto) -> dict[str, Role]:
    """The inputs of a graph that stand for more than values.

    Args:
        graph: The main graph of a model.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name].append((node, position))
    found = {value.name: _role(value.name, readers) for value in graph.input}
    return {name: role for name, role in found.items() if role is not Role.VALUES}


def _role(name: str, readers: dict[str, list[tuple[onnx.NodeProto, int]]]) -> Role:
    waiting, seen = [(name, True)], {name}
    while waiting:
        value, alone = waiting.pop()
        for node, position in readers.get(value, ()):
            if not is_standard(node, node.op_type):
                continue
            role = _ROLES.get((node.op_type, position))
            if role is not None:
                return role if alone else Role.ONES
            passes = (
                position == 0 if node.op_type in (*_KEEPS_NUMBERS, "Gather", "Slice") else node.op_type in _TOGETHER
            )
            if passes:
                new = [output for output in node.output if output not in seen]
                seen.update(new)
                waiting += [(output, alone and node.op_type in _KEEPS_NUMBERS) for output in new]
    return Role.VALUES


def values_for(role: Role, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """What an input of a role other than `VALUES` is given.

    Args:
        role: What it stands for.
        shape: Its shape.
        dtype: Its element type, a number.
    """
    match role:
        case Role.ZEROS:
            return np.zeros(shape, dtype)
        case Role.END:
            return np.full(shape, np.iinfo(dtype.name).max, dtype)
        case Role.AXES:
            return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    values = np.ones(shape, dtype)
    if role is Role.REST and values.size:
        values.reshape(-1)[-1] = -1
    return values
