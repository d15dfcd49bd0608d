"""ONNX operators that affines move past: which row of the rule table each node has, and what that row needs to know.

Shapes come from onnx's shape inference. Where something is not known, or a node does more than the row says, it is
opaque.
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bnfold.algebra.linear_map import Window
from bnfold.algebra.positions import crop, repeated
from bnfold.graph import Along, Blocks, Gathered, Joined, Op, Parameters, Permutation, Picked, Scattered, Signs
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.nodes import lift_window
from bnfold.onnx.lift.types import Shape, ValueTypes
from bnfold.onnx.proto.names import (
    DEFAULT_DOMAINS,
    find_attribute,
    int_attribute,
    ints_attribute,
    is_standard,
    string_attribute,
)

Lifted = tuple[Op, Parameters | None]


class NodeView:
    """A node with what is known about its values.

    Args:
        node: The node.
        constants: The constants of its graph.
        source: The shape of its first input, None if the rank is not known.
        targets: The shapes of its outputs, None where the rank is not known.
        extra_is_read: Whether anything reads an output besides the first.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        constants: Constants,
        source: Shape | None,
        targets: tuple[Shape | None, ...],
        *,
        extra_is_read: bool,
    ) -> None:
        self.node = node
        self.source = source
        self.targets = targets
        self.extra_is_read = extra_is_read
        self._constants = constants

    def integers(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """Integers from a constant input, or from an attribute; empty if absent, None if not known."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            return ints_attribute(self.node, attribute)
        found = self._constants.find(name)
        if found is None or found.overridable:
            return None
        return tuple(int(number) for number in found.read().reshape(-1))

    def numbers(self, position: int, attribute: str) -> tuple[float, ...] | None:
        """Numbers from a constant input, or from an attribute; empty if absent, None if not known."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            given = find_attribute(self.node, attribute)
            return () if given is None else tuple(given.floats)
        found = self._constants.find(name)
        if found is None or found.overridable:
            return None
        return tuple(float(number) for number in found.read().reshape(-1))

    def flows(self, position: int) -> bool:
        """Whether an input is computed while the model runs."""
        return not self._constants.is_constant(self.node.input[position])

    def is_constant(self, position: int) -> bool:
        """Whether an input is a constant that nobody overrides."""
        found = self._constants.find(self.node.input[position])
        return found is not None and not found.overridable

    def is_zero(self, position: int) -> bool:
        """Whether an optional input is absent or a constant zero."""
        name = self.node.input[position] if len(self.node.input) > position else ""
        if not name:
            return True
        found = self._constants.find(name)
        return found is not None and not found.overridable and not found.read().any()

    def axes(self, axes: tuple[int, ...]) -> frozenset[int] | None:
        """Axes of the first input, counted from the left."""
        if self.source is None:
            return None
        return frozenset(axis % len(self.source) for axis in axes)


def lift_move(view: NodeView, *, all_inputs_flow: bool) -> Lifted | None:
    """Says which row a node has.

    Args:
        view: The node.
        all_inputs_flow: Whether no input is a constant.

    Returns:
        The row and its parameters, or None if the node is opaque.
    """
    node = view.node
    if node.domain not in DEFAULT_DOMAINS or any(given.ref_attr_name for given in node.attribute):
        return None
    if node.op_type in _BROADCASTING:
        return _BROADCASTING[node.op_type](len(node.input)) if all_inputs_flow else None
    lifter = _LIFTERS.get(node.op_type)
    if lifter is None or view.source is None or None in view.targets or not view.flows(0):
        return None
    if node.op_type == "Concat" and not all_inputs_flow:
        return None
    return lifter(view)


def lift_scatter(
    node: onnx.NodeProto, constants: Constants, types: ValueTypes
) -> tuple[Scattered, tuple[str, ...]] | None:
    """Reads a ScatterElements or ScatterND that adds.

    Args:
        node: The node.
        constants: The constants of its graph.
        types: What is known about its values.

    Returns:
        What its row needs to know, and the inputs that affines move to: the base, unless it is zero, and the updates.
    """
    if not is_standard(node, "ScatterElements", "ScatterND") or len(node.input) != 3 or not node.output:
        return None
    if string_attribute(node, "reduction", "none") != "add" or any(given.ref_attr_name for given in node.attribute):
        return None
    base, indices, updates = node.input
    data, places = types.get(node.output[0], types.get(base, (None, "")))[0], types.get(indices, (None, ""))[0]
    if not data or not places or constants.is_constant(updates):
        return None
    if node.op_type == "ScatterElements":
        scattered = Scattered(frozenset({int_attribute(node, "axis", 0) % len(data)}))
    else:
        depth = places[-1]
        if not isinstance(depth, int) or not 0 < depth <= len(data):
            return None
        scattered = Scattered(frozenset(range(depth)), leading=len(places) - 1)
    if _is_zero(base, constants):
        return scattered, (updates,)
    return None if constants.is_constant(base) else (scattered, (base, updates))


def _is_zero(name: str, constants: Constants) -> bool:
    """Whether a value is zero everywhere, whatever its shape is."""
    found, node = constants.find(name), constants.producer(name)
    if found is not None:
        return not found.overridable and not found.read().any()
    if node is not None and is_standard(node, "ConstantOfShape"):
        value = find_attribute(node, "value")
        return value is None or not numpy_helper.to_array(value.t).any()
    return node is not None and is_standard(node, "Expand") and _is_zero(node.input[0], constants)


_BROADCASTING: dict[str, Callable[[int], Lifted]] = {
    "Add": lambda _: (Op.ADD, Signs((1, 1))),
    "Sub": lambda _: (Op.ADD, Signs((1, -1))),
    "Sum": lambda count: (Op.ADD, Signs((1,) * count)),
    "Mean": lambda _: (Op.MEAN, None),
    "Mul": lambda _: (Op.MUL, None),
    "Div": lambda _: (Op.DIV, None),
}


def _transpose(view: NodeView) -> Lifted | None:
    axes = [*range(len(view.source or ()))]
    order = ints_attribute(view.node, "perm") or tuple(reversed(axes))
    return (Op.TRANSPOSE, Permutation(order)) if sorted(order) == axes else None


def _reshape(_: NodeView) -> Lifted | None:
    return Op.RESHAPE, None


def _concat(view: NodeView) -> Lifted | None:
    axes = view.axes((int_attribute(view.node, "axis", 0),))
    return None if axes is None else (Op.CONCAT, Joined(*axes))


def _split(view: NodeView) -> Lifted | None:
    """Each output takes the next run of elements along the axis."""
    source = view.source or ()
    axis = int_attribute(view.node, "axis", 0) % len(source)
    sizes = [None if target is None else target[axis] for target in view.targets]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or sum(known) != source[axis]:
        return Op.PICK, Picked(tuple({axis: None} for _ in sizes))
    ends = np.cumsum(known)
    runs = [np.arange(end - size, end) for end, size in zip(ends, known, strict=True)]
    return Op.PICK, Picked(tuple({axis: run} for run in runs))


def _slice(view: NodeView) -> Lifted | None:
    source = view.source or ()
    starts, ends = view.integers(1, "starts"), view.integers(2, "ends")
    axes, steps = view.integers(3, "axes"), view.integers(4, "steps")
    if axes is None:
        return None
    if starts is None or ends is None or steps is None:
        cut = axes or tuple(range(len(source)))
        return Op.PICK, Picked(({axis % len(source): None for axis in cut},))
    axes = tuple(axis % len(source) for axis in axes or range(len(starts)))
    steps = steps or (1,) * len(starts)
    if not len(axes) == len(starts) == len(ends) == len(steps):
        return None
    cuts: dict[int, NDArray[np.int64] | None] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = source[axis]
        cuts[axis] = _cut(size, start, end, step) if isinstance(size, int) else None
    return Op.PICK, Picked((cuts,))


def _cut(size: int, start: int, end: int, step: int) -> NDArray[np.int64]:
    """The positions that ONNX's Slice takes: ends beyond the size are clamped, negative ones count from the right."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    low, high = (0, size) if step > 0 else (-1, size - 1)
    return np.arange(min(max(start, 0), high), min(max(end, low), size), step)


def _gather(view: NodeView) -> Lifted | None:
    source = view.source or ()
    axis = int_attribute(view.node, "axis", 0) % len(source)
    target = view.targets[0] or ()
    rank = len(target) - len(source) + 1
    numbers = view.integers(1, "") if view.is_constant(1) else None
    size = source[axis]
    if numbers is not None and isinstance(size, int) and size:
        return Op.GATHER, Gathered(axis, rank, tuple(number % size for number in numbers))
    return Op.GATHER, Gathered(axis, rank, None)


def _expand(_: NodeView) -> Lifted | None:
    return Op.EXPAND, None


def _tile(view: NodeView) -> Lifted | None:
    repeats = view.integers(1, "")
    if repeats is None or len(repeats) != len(view.source or ()):
        return Op.EXPAND, None
    return Op.PICK, Picked((repeated(view.source or (), dict(enumerate(repeats))),))


def _pad(view: NodeView) -> Lifted | None:
    source = view.source or ()
    mode = string_attribute(view.node, "mode", "constant")
    pads = view.integers(1, "pads")
    axes = view.integers(3, "axes")
    if axes is None:
        return None
    cut = axes or tuple(range(len(source)))
    if pads is not None:
        half = len(pads) // 2
        if len(pads) != 2 * len(cut):
            return None
        pairs = {
            axis % len(source): pair for axis, pair in zip(cut, zip(pads[:half], pads[half:], strict=True), strict=True)
        }
        cropped = crop(source, pairs)
        if cropped is not None:
            return Op.PICK, Picked((cropped,))
        cut = tuple(axis for axis, pair in pairs.items() if any(pair))
    along = Along(frozenset(axis % len(source) for axis in cut))
    if mode in ("reflect", "edge", "wrap"):
        return Op.RESAMPLE, along
    value = find_attribute(view.node, "value")
    if mode != "constant" or not view.is_zero(2) or (value is not None and value.f != 0):
        return None
    return Op.ZERO_PAD, along


def _spatial(view: NodeView) -> frozenset[int]:
    return frozenset(range(2, len(view.source or ())))


def _average_pool(view: NodeView) -> Lifted | None:
    padded = any(ints_attribute(view.node, "pads")) or string_attribute(view.node, "auto_pad", "NOTSET") != "NOTSET"
    kernel = ints_attribute(view.node, "kernel_shape")
    window = lift_window(view.node, kernel) if kernel else None
    reaches_out = bool(int_attribute(view.node, "ceil_mode", 0)) and not _fits(view, kernel, window)
    counts = ""
    if int_attribute(view.node, "count_include_pad", 0):
        counts = "counts the zeros of its padding" if padded else ""
        counts = counts or ("counts zeros where its windows reach beyond its input, or may" if reaches_out else "")
    if window is None or reaches_out or (any(window.before + window.after) and not counts):
        return Op.AVERAGE, Along(_spatial(view), counts=counts)
    return Op.AVERAGE, Along(_spatial(view), counts=counts, kernel=kernel, window=window)


def _fits(view: NodeView, kernel: tuple[int, ...], window: Window | None) -> bool:
    """Whether the last window ends where the input, with its padding, does: rounding up adds none then."""
    if window is None:
        return False
    for size, taps, stride, dilation, *pads in zip(
        (view.source or ())[2:], kernel, window.strides, window.dilations, window.before, window.after, strict=True
    ):
        if not isinstance(size, int) or (size + sum(pads) - dilation * (taps - 1) - 1) % stride:
            return False
    return True


def _global_average_pool(view: NodeView) -> Lifted | None:
    return Op.AVERAGE, Along(_spatial(view))


def _max_pool(view: NodeView) -> Lifted | None:
    return None if view.extra_is_read else (Op.MAXIMUM, Along(_spatial(view)))


def _reduction(op: Op) -> Callable[[NodeView], Lifted | None]:
    def lift(view: NodeView) -> Lifted | None:
        axes = view.integers(1, "axes")
        if axes is None:
            return None
        if not axes and int_attribute(view.node, "noop_with_empty_axes", 0):
            return Op.IDENTITY, None
        along = view.axes(axes or tuple(range(len(view.source or ()))))
        return None if along is None else (op, Along(along, keep=bool(int_attribute(view.node, "keepdims", 1))))

    return lift


def _relu(_: NodeView) -> Lifted | None:
    return Op.RELU, None


def _prelu(view: NodeView) -> Lifted | None:
    return (Op.RELU, None) if view.is_constant(1) else None


def _resize(view: NodeView) -> Lifted | None:
    """An axis is left alone only if its scale is exactly one: a size may stay the same by rounding."""
    node, source = view.node, view.source or ()
    if string_attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    axes = tuple(axis % len(source) for axis in ints_attribute(node, "axes")) or tuple(range(len(source)))
    scales = view.numbers(2 if len(node.input) > 2 else 1, "scales")
    if len(node.input) > 3 and node.input[3]:
        stretches = string_attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        sizes = view.integers(3, "")
        same = {axis for axis, size in zip(axes, sizes or (), strict=False) if stretches and size == source[axis]}
    else:
        same = {axis for axis, scale in zip(axes, scales or (), strict=False) if scale == 1}
    return Op.RESAMPLE, Along(frozenset(axes) - same)


def _depth_to_space(view: NodeView) -> Lifted | None:
    depth_last = string_attribute(view.node, "mode", "DCR") == "DCR"
    return Op.DEPTH_TO_SPACE, Blocks(int_attribute(view.node, "blocksize", 1), depth_last)


def _space_to_depth(view: NodeView) -> Lifted | None:
    return Op.SPACE_TO_DEPTH, Blocks(int_attribute(view.node, "blocksize", 1), depth_last=True)


_LIFTERS: dict[str, Callable[[NodeView], Lifted | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "ReduceMean": _reduction(Op.AVERAGE),
    "ReduceMax": _reduction(Op.MAXIMUM),
    "ReduceSum": _reduction(Op.SUM),
    "Relu": _relu,
    "LeakyRelu": _relu,
    "PRelu": _prelu,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
