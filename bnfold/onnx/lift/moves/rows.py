"""ONNX operators that affines move past: which row of the rule table each node has, and what that row needs to know.

Shapes come from onnx's shape inference. Where something is not known, or a node does more than the row says, it is
opaque.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.linear_map import Window
from bnfold.algebra.positions import crop, repeated, run
from bnfold.graph import Along, Blocks, Gathered, Joined, Op, Permutation, Picked, Signs
from bnfold.onnx.lift.moves.node_view import Lifted, NoAxisError, NodeView
from bnfold.onnx.lift.nodes import lift_window
from bnfold.onnx.proto.names import (
    DEFAULT_DOMAINS,
    find_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)


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
    if node.op_type in ("Max", "Min"):
        return _extreme(view)
    if node.op_type in _BROADCASTING:
        return _BROADCASTING[node.op_type](len(node.input)) if all_inputs_flow else None
    lifter = _LIFTERS.get(node.op_type)
    if lifter is None or view.source is None or None in view.targets or not view.flows(0):
        return None
    if node.op_type == "Concat" and not all_inputs_flow:
        return None
    try:
        return lifter(view)
    except NoAxisError:
        return None


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
    return Op.CONCAT, Joined(view.axis(int_attribute(view.node, "axis", 0)))


def _split(view: NodeView) -> Lifted | None:
    """Each output takes the next run of elements along the axis."""
    source = view.source or ()
    axis = view.axis(int_attribute(view.node, "axis", 0))
    sizes = [None if target is None else target[axis] for target in view.targets]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or sum(known) != source[axis]:
        return Op.PICK, Picked(tuple({axis: None} for _ in sizes))
    ends = np.cumsum(known)
    runs = [run(end - size, end) for end, size in zip(ends.tolist(), known, strict=True)]
    return Op.PICK, Picked(tuple({axis: run} for run in runs))


def _slice(view: NodeView) -> Lifted | None:
    source = view.source or ()
    starts, ends = view.integers(1, "starts"), view.integers(2, "ends")
    axes, steps = view.integers(3, "axes"), view.integers(4, "steps")
    if axes is None:
        return None
    if starts is None or ends is None or steps is None:
        cut = axes or tuple(range(len(source)))
        return Op.PICK, Picked((dict.fromkeys(view.axes(cut)),))
    axes = view.axes(axes or range(len(starts)))
    steps = steps or (1,) * len(starts)
    if not len(axes) == len(starts) == len(ends) == len(steps):
        return None
    cuts: dict[int, NDArray[np.int64] | None] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = source[axis]
        cuts[axis] = _cut(size, start, end, step) if isinstance(size, int) else None
    return Op.PICK, Picked((cuts,))


def _cut(size: int, start: int, end: int, step: int) -> NDArray[np.int64] | None:
    """The positions that ONNX's Slice takes: ends beyond the size are clamped, negative ones count from the right."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    low, high = (0, size) if step > 0 else (-1, size - 1)
    return run(min(max(start, 0), high), min(max(end, low), size), step)


def _gather(view: NodeView) -> Lifted | None:
    source = view.source or ()
    axis = view.axis(int_attribute(view.node, "axis", 0))
    target = view.targets[0] or ()
    rank = len(target) - len(source) + 1
    numbers = view.integers(1, "") if view.is_constant(1) else None
    size = source[axis]
    if numbers is not None and isinstance(size, int) and size:
        return Op.GATHER, Gathered(axis, rank, tuple(number % size for number in numbers))
    return Op.GATHER, Gathered(axis, rank, None)


def _gather_elements(view: NodeView) -> Lifted | None:
    """Along one axis an index says which element is taken; along the others, the first ones are."""
    source, target = view.source or (), view.targets[0] or ()
    axis = view.axis(int_attribute(view.node, "axis", 0))
    cuts: dict[int, NDArray[np.int64] | None] = {axis: None}
    for other, (size, kept) in enumerate(zip(source, target, strict=True)):
        if other != axis and (size != kept or size is None):
            cuts[other] = run(0, kept) if isinstance(kept, int) else None
    return Op.PICK, Picked((cuts,))


def _gather_nd(view: NodeView) -> Lifted | None:
    """With one number for each pick, the axis behind those of the batch is replaced by those of the indices."""
    depth = view.last_size(1)
    if depth != 1:
        return None
    rank = len(view.targets[0] or ()) - len(view.source or ()) + 1
    return Op.GATHER, Gathered(int_attribute(view.node, "batch_dims", 0), rank, None)


def _compress(view: NodeView) -> Lifted | None:
    """Without an axis it takes elements of all in a row."""
    if find_attribute(view.node, "axis") is None:
        return None
    axis = view.axis(int_attribute(view.node, "axis", 0))
    kept = view.integers(1, "") if view.is_constant(1) else None
    return Op.PICK, Picked(({axis: None if kept is None else np.flatnonzero(kept)},))


def _reverse_sequence(view: NodeView) -> Lifted | None:
    """Elements change places along one axis, others in each item of the batch."""
    return Op.PICK, Picked(({view.axis(int_attribute(view.node, "time_axis", 0)): None},))


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
        pairs = dict(zip(view.axes(cut), zip(pads[:half], pads[half:], strict=True), strict=True))
        cropped = crop(source, pairs)
        if cropped is not None:
            return Op.PICK, Picked((cropped,))
        cut = tuple(axis for axis, pair in pairs.items() if any(pair))
    along = Along(frozenset(view.axes(cut)))
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
        along = frozenset(view.axes(axes or range(len(view.source or ()))))
        return op, Along(along, keep=bool(int_attribute(view.node, "keepdims", 1)))

    return lift


def _relu(_: NodeView) -> Lifted | None:
    return Op.RELU, None


def _clip(view: NodeView) -> Lifted | None:
    """Without bounds it changes nothing, and with none but zero it keeps what is on one side of zero, as Relu does."""
    low, high = view.bound(1, "min", -1), view.bound(2, "max", 1)
    if low is None or high is None:
        return None
    bounds = {*low, *high}
    return (Op.IDENTITY, None) if not bounds else (Op.RELU, None) if bounds == {0} else None


def _extreme(view: NodeView) -> Lifted | None:
    """Max and Min of one value and zero keep what is on one side of zero, too."""
    others = [position for position in range(len(view.node.input)) if not view.flows(position)]
    alone = len(others) == len(view.node.input) - 1 and view.source is not None
    zero = alone and all(view.is_zero(position) and view.is_one_number(position) for position in others)
    return (Op.RELU, None) if zero else None


def _einsum(view: NodeView) -> Lifted | None:
    """Of one operand it may do no more than put the axes in another order."""
    before, arrow, after = string_attribute(view.node, "equation", "").replace(" ", "").partition("->")
    letters = [*before]
    if (
        len(view.node.input) != 1
        or not arrow
        or len({*letters}) < len(letters)
        or len(letters) != len(view.source or ())
    ):
        return None
    if not before.isalpha() or sorted(after) != sorted(before):
        return None
    return Op.TRANSPOSE, Permutation(tuple(map(before.index, after)))


def _prelu(view: NodeView) -> Lifted | None:
    return (Op.RELU, None) if view.is_constant(1) else None


def _resize(view: NodeView) -> Lifted | None:
    """An axis is left alone only if its scale is exactly one: a size may stay the same by rounding."""
    node, source = view.node, view.source or ()
    if string_attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    axes = view.axes(ints_attribute(node, "axes") or range(len(source)))
    scales = view.numbers(2 if len(node.input) > 2 else 1, "scales")
    if len(node.input) > 3 and node.input[3]:
        stretches = string_attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        sizes = view.integers(3, "")
        same = {axis for axis, size in zip(axes, sizes or (), strict=False) if stretches and size == source[axis]}
    else:
        same = {axis for axis, scale in zip(axes, scales or (), strict=False) if scale == 1}
    return Op.RESAMPLE, Along(frozenset(axes) - same)


def _blocks(op: Op) -> Callable[[NodeView], Lifted | None]:
    def lift(view: NodeView) -> Lifted | None:
        size, depth_last = int_attribute(view.node, "blocksize", 1), string_attribute(view.node, "mode", "DCR") == "DCR"
        return (op, Blocks(size, depth_last)) if size > 0 else None

    return lift


_LIFTERS: dict[str, Callable[[NodeView], Lifted | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Einsum": _einsum,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Compress": _compress,
    "ReverseSequence": _reverse_sequence,
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
    "Clip": _clip,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _blocks(Op.DEPTH_TO_SPACE),
    "SpaceToDepth": _blocks(Op.SPACE_TO_DEPTH),
}
