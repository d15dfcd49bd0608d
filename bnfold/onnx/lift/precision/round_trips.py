"""Casts to a wider element type and back to the first, as automatic mixed precision writes them around a batch norm.

    y = round(s · widen(x) + t)

What comes in has the narrower type, and what goes out is rounded to it again, so the casts let affines pass as if they
were not there: each value of the narrower type stays rounded to it, once. Between the two casts nothing may be seen
from outside, and there may be one batch norm or one chain of arithmetic with constants, then what cuts values off:
two affines could overflow the narrower type one by one, where both together do not.
"""

from collections.abc import Mapping, Sequence

from bnfold.algebra.rounding import STORAGE_DTYPES, has_every_number_of
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.types import ValueTypes, dtype_in
from bnfold.onnx.proto.names import GraphLike, is_standard

_STAGES = {
    ("widened", "BatchNormalization"): "normalised",
    **{(stage, op_type): "chain" for stage in ("widened", "chain") for op_type in ("Add", "Sub", "Mul", "Div")},
    **{(stage, op_type): "cut off" for stage in ("normalised", "chain", "cut off") for op_type in ("Relu", "Clip")},
}
"""What a value between the casts is, and the operator that reads it → what the result is; nothing else may be there."""

_STORED = {dtype.name: dtype for dtype in STORAGE_DTYPES}


def round_trips(
    graph: GraphLike,
    types: ValueTypes,
    constants: Constants,
    readers: Mapping[str, Sequence[int | None]],
    seen: frozenset[str],
) -> dict[int, tuple[str, ...]]:
    """Finds the casts of a graph that affines pass.

    Args:
        graph: The graph.
        types: What is known about its values.
        constants: Its constants.
        readers: The positions of the nodes that read each value, None for one in a nested graph.
        seen: The values that are its outputs.

    Returns:
        The positions of the casts there, each with the values between it and those back, and of the casts back.
    """
    found: dict[int, tuple[str, ...]] = {}
    for index, node in enumerate(graph.node):
        if is_standard(node, "Cast"):
            narrow, wide = (dtype_in(types, name) for name in (node.input[0], node.output[0]))
            if _is_wider(wide, narrow):
                found.update(_there_and_back(graph, types, constants, readers, seen, index, narrow))
    return found


def _is_wider(wide: str, narrow: str) -> bool:
    return wide in _STORED and narrow in _STORED and has_every_number_of(_STORED[wide], _STORED[narrow])


def _there_and_back(
    graph: GraphLike,
    types: ValueTypes,
    constants: Constants,
    readers: Mapping[str, Sequence[int | None]],
    seen: frozenset[str],
    index: int,
    narrow: str,
) -> dict[int, tuple[str, ...]]:
    """A cast and those that lead back to what it widened; nothing if anything else reads it."""
    back: set[int] = set()
    between: list[str] = []
    waiting = [(graph.node[index].output[0], "widened")]
    while waiting:
        name, stage = waiting.pop()
        positions = readers.get(name, ())
        if name in seen or not positions:
            return {}
        between.append(name)
        for position in positions:
            node = None if position is None else graph.node[position]
            if node is None or position is None:
                return {}
            if is_standard(node, "Cast") and dtype_in(types, node.output[0]) == narrow:
                back.add(position)
            elif (
                (stage, node.op_type) in _STAGES
                and is_standard(node, node.op_type)
                and [*node.input].count(name) == 1
                and all(other == name or not other or constants.is_constant(other) for other in node.input)
            ):
                waiting.append((node.output[0], _STAGES[stage, node.op_type]))
            else:
                return {}
    return {index: tuple(between), **dict.fromkeys(back, ())}
