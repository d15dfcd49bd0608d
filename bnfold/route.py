"""Where a part of an affine ends up, and which ends there are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from bnfold.affine import Affine
from bnfold.graph import AffineNode, MapNode, Node, Stop, StopCode, Value
from bnfold.rounding import Float64Array


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

    def merge(self, other: "Route") -> None:
        """Adds another route, through other nodes."""
        self.maps.update(other.maps)
        self.affines.update(other.affines)
        self.changed += other.changed
        self.passed += other.passed


class Ends(Protocol):
    """Which affines that stay may be ends of a route."""

    def takes(self, node: AffineNode) -> bool:
        """Whether an affine takes another into itself."""

    def takes_shift(self, node: AffineNode, shape: tuple[int, ...]) -> bool:
        """Whether a node adds a constant that takes a shift of this shape, and is scaled where a scale passes."""


def into_map(node: MapNode, axis: int, channels: int, array: Float64Array, side: str) -> Float64Array | Stop:
    """The part as a vector along the channels of a linear map, or why it is none."""
    vector = Affine(array, array).along(axis, channels)
    if vector is not None:
        return vector.scale
    where = f"{side} channels of {node.op_type} '{node.name}' (axis {axis}, size {channels})"
    return Stop(StopCode.CHANNEL_AXIS, f"it does not act on the {where}")


def listed(names: Iterator[str], count: int, limit: int = 3) -> str:
    """Some names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in islice(names, limit))
    return shown if count <= limit else f"{shown} and {count - limit} more"
