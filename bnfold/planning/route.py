"""Where a part of an affine ends up, which ends there are, and who else reads what lies on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np

from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, MapNode, Node, OpNode, RoundTrip, Value
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode


@dataclass(slots=True)
class Route:
    """Where a part of an affine ends up.

    Attributes:
        maps: The linear maps that take it, as a vector along their channels.
        affines: The affines that stay and take it, as an array on their output (backward) or input (forward).
        changed: The values that are no longer what they were.
        passed: The nodes that it moves past.
    """

    maps: dict[MapNode, Float64Array] = field(default_factory=dict)
    affines: dict[AffineNode, Float64Array] = field(default_factory=dict)
    changed: list[Value] = field(default_factory=list)
    passed: list[Node] = field(default_factory=list)


class Ends(Protocol):
    """Which affines that stay may be ends of a route."""

    def takes(self, node: AffineNode) -> bool:
        """Whether an affine takes another into itself."""

    def takes_shift(self, node: AffineNode, shape: tuple[int, ...]) -> bool:
        """Whether a node adds a constant that takes a shift of this shape, and is scaled where a scale passes."""


def into_map(node: MapNode, axis: int, channels: int, array: Float64Array, side: str) -> Float64Array | Stop:
    """The part as a vector along the channels of a linear map, or why it is none."""
    if array.ndim >= -axis and array.size == array.shape[axis] and array.size in (1, channels):
        return array.reshape(-1) if array.size == channels else np.full(channels, array.item())
    where = f"it does not act on the {side} channels of {node.op_type} '{node.name}' (axis {axis}, size {channels})"
    others = [at for at, size in enumerate(array.shape) if size != 1 and at != array.ndim + axis]
    along = f"it varies along axis {others[0]} of {array.ndim}, so " if others else ""
    return Stop(StopCode.CHANNEL_AXIS, along + where)


def changes_type(source: Value, node: Node) -> Stop | None:
    """Why an affine does not move between an input of a node and its output: they are of different element types.

    What the node rounds, or computes in fewer digits, would be another number.
    """
    if isinstance(node, OpNode) and isinstance(node.parameters, RoundTrip):
        return None
    result = node.outputs[0]
    if source.dtype == result.dtype or not source.dtype or not result.dtype:
        return None
    what = f"{node.op_type} '{node.name}' makes {result.dtype} of {source.dtype}"
    return Stop(StopCode.CHANGES_DTYPE, f"{what}, and what it rounds must not change")


def listed(names: Iterator[str], count: int, limit: int = 3) -> str:
    """Some names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in islice(names, limit))
    return shown if count <= limit else f"{shown} and {count - limit} more"


def seen_by_others(tensors: Tensors, root: Value, reader: Node) -> Stop | None:
    """Why a tensor that a node computes must keep its value: somebody reads it besides one use by `reader`."""
    assert root.producer is not None  # the caller has looked
    seen = tensors.observed(root)
    if seen is not None and seen.observer is not None:
        output = f"'{seen.name}', the output of '{root.producer.name}',"
        return Stop(seen.observer.code, f"{output} {seen.observer.reason}")
    uses = tensors.uses(root)
    if len(uses) == 1 and uses[reader] == 1:
        return None
    others = (user.name for user in uses if user is not reader)
    who = listed(others, len(uses) - 1) if len(uses) > 1 else "the same node a second time"
    of = f"the output of {root.producer.op_type} '{root.producer.name}'"
    return Stop(StopCode.OTHER_CONSUMERS, f"{of} is also read by {who}")
