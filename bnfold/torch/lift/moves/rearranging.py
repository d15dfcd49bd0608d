"""Torch operators that only move elements about: views, permutations, cuts, gathers, repetitions, pixel shuffles."""

import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import fx

from bnfold.algebra.positions import MOST_POSITIONS, repeated
from bnfold.algebra.rounding import Array
from bnfold.graph import Along, Blocks, Gathered, Op, Permutation, Picked
from bnfold.torch.fx.nodes import fake_tensor, operator_name, shape_of
from bnfold.torch.lift.moves.node_facts import Lifted, View

_Cut = NDArray[np.int64] | None


def _permutation(axes: tuple[int, ...] | None, rank: int) -> Lifted | None:
    if axes is None or sorted(axes) != [*range(rank)]:
        return None
    return Op.TRANSPOSE, Permutation(axes)


def _permute(view: View) -> Lifted | None:
    return _permutation(view.axes("dims"), view.rank)


def _swap(view: View) -> Lifted | None:
    """Two axes change places: transpose, swapaxes, t, mT; a vector has only one axis."""
    if view.rank < 2:
        return (Op.IDENTITY, None) if operator_name(view.node) in ("t", "numpy_T") else None
    named = [name for name in ("dim0", "axis0") if name in view.given]
    first = view.axis(named[0]) if named else view.rank - 2
    second = view.axis(named[0].replace("0", "1")) if named else view.rank - 1
    if first is None or second is None:
        return None
    axes = [*range(view.rank)]
    axes[first], axes[second] = axes[second], axes[first]
    return _permutation(tuple(axes), view.rank)


def _reverse(view: View) -> Lifted | None:
    return _permutation(tuple(reversed(range(view.rank))), view.rank)


def _move_axes(view: View) -> Lifted | None:
    sources, targets = view.axes("source"), view.axes("destination")
    if sources is None or targets is None or len(sources) != len(targets):
        return None
    rest = iter(axis for axis in range(view.rank) if axis not in sources)
    to = dict(zip(targets, sources, strict=True))
    axes = [to[axis] if axis in to else next(rest, -1) for axis in range(view.rank)]
    return _permutation(tuple(axes), view.rank)


def _reshape(_: View) -> Lifted | None:
    return Op.RESHAPE, None


def _view(view: View) -> Lifted | None:
    """Not `view.dtype`, which reads the same bits as other numbers."""
    return (Op.RESHAPE, None) if "size" in view.given or "shape" in view.given else None


def _pick(cuts: Mapping[int, _Cut]) -> Lifted:
    return Op.PICK, Picked((cuts,))


def _split(view: View) -> Lifted | None:
    """Each result takes the next run of elements along the axis."""
    axis = view.axis()
    if axis is None:
        return None
    sizes = [None if target is None else target[axis] for target in view.targets]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or sum(known) != view.source[axis]:
        return Op.PICK, Picked(tuple({axis: None} for _ in sizes))
    ends = np.cumsum(known, dtype=np.int64)
    runs = [np.arange(end - size, end) for end, size in zip(ends, known, strict=True)]
    return Op.PICK, Picked(tuple({axis: run} for run in runs))


def _tensor_split(view: View) -> Lifted | None:
    """Cut at positions that do not go up, the parts overlap or leave something out."""
    if "indices" not in view.given:
        return _split(view) if "sections" in view.given else None
    places = view.numbers("indices")
    rises = places is not None and places == tuple(sorted(places)) and min(places, default=0) >= 0
    return _split(view) if rises else None


def _slice(view: View) -> Lifted | None:
    axis, step = view.axis(), view.integer("step", 1)
    if axis is None:
        return None
    size = view.source[axis]
    start, end = view.integer("start", 0), view.integer("end", sys.maxsize)
    if step == 1 and start == 0 and end == sys.maxsize:
        return _pick({})
    if start is None or end is None or step is None or not isinstance(size, int):
        return _pick({axis: None})
    return _pick({axis: np.arange(size)[start:end:step]})


def _narrow(view: View) -> Lifted | None:
    axis, start, length = view.axis(), view.integer("start"), view.integer("length")
    if axis is None:
        return None
    size = view.source[axis]
    if start is None or length is None or not isinstance(size, int):
        return _pick({axis: None})
    start = start + size if start < 0 else start
    return _pick({axis: np.arange(size)[start : start + length]})


def _select(view: View) -> Lifted | None:
    axis, index = view.axis(), view.integer("index")
    if axis is None:
        return None
    size = view.source[axis]
    known = (index % size,) if index is not None and isinstance(size, int) and size else None
    return Op.GATHER, Gathered(axis, 0, known)


def _index_select(view: View) -> Lifted | None:
    axis = view.axis()
    return None if axis is None else (Op.GATHER, Gathered(axis, 1, _indices(view, view.given.get("index"), axis)))


def _gather(view: View) -> Lifted | None:
    """Along one axis an index says which element is taken; along the others, the first ones are."""
    axis, target = view.axis(), view.targets[0] or ()
    if axis is None or len(target) != view.rank:
        return None
    cuts: dict[int, _Cut] = {axis: None}
    for other, (size, kept) in enumerate(zip(view.source, target, strict=True)):
        if other != axis and size != kept:
            cuts[other] = np.arange(kept) if isinstance(kept, int) else None
    return _pick(cuts)


def _indices(view: View, given: object, axis: int) -> tuple[int, ...] | None:
    """Constant positions along an axis, counted from the left."""
    found, size = _integers(view, given), view.source[axis]
    if found is None or not isinstance(size, int):
        return None
    numbers = [int(number) for number in found.reshape(-1)]
    return tuple(number % size for number in numbers) if all(-size <= number < size for number in numbers) else None


def _integers(view: View, given: object) -> Array | None:
    """A constant vector of integers, or a single one."""
    found = view.constants.find(given)
    if found is None or len(found.shape) > 1 or not np.issubdtype(found.dtype, np.integer):
        return None
    return found.read()


def _index(view: View) -> Lifted | None:
    """In x[:, i] one axis is replaced by those of the indices; x[:, :, i, j] picks elements of neighbouring axes."""
    listed = view.given.get("indices")
    if not isinstance(listed, tuple | list) or len(view.targets) != 1 or view.targets[0] is None:
        return None
    axes = [axis for axis, given in enumerate(listed) if given is not None]
    fakes = [fake_tensor(given) for given in listed if isinstance(given, fx.Node)]
    integers = [
        fake for fake in fakes if fake is not None and not fake.dtype.is_floating_point and fake.dtype.itemsize > 1
    ]
    if not axes or len(integers) != len(axes) or axes != [*range(axes[0], axes[-1] + 1)]:
        return None
    if len(axes) == 1:
        rank = len(view.targets[0]) - view.rank + 1
        shape = shape_of(integers[0])
        if shape is None or len(shape) != rank:
            return None
        return Op.GATHER, Gathered(axes[0], rank, _indices(view, listed[axes[0]], axes[0]) if rank == 1 else None)
    if max(fake.ndim for fake in integers) != len(axes) or len(view.targets[0]) != view.rank:
        return None
    return Op.RESAMPLE, Along(frozenset(axes))


def _roll(view: View) -> Lifted | None:
    shifts, axes = view.numbers("shifts"), view.axes("dims")
    if not axes or (shifts is not None and len(shifts) != len(axes)) or len(set(axes)) != len(axes):
        return None
    cuts: dict[int, _Cut] = {}
    for position, axis in enumerate(axes):
        size = view.source[axis]
        cuts[axis] = (
            np.roll(np.arange(size), shifts[position]) if shifts is not None and isinstance(size, int) else None
        )
    return _pick(cuts)


def _flip(view: View) -> Lifted | None:
    axes = view.axes("dims")
    if axes is None:
        return None
    sizes = {axis: view.source[axis] for axis in axes}
    return _pick({axis: np.arange(size)[::-1] if isinstance(size, int) else None for axis, size in sizes.items()})


def _channel_shuffle(view: View) -> Lifted | None:
    groups, channels = view.integer("groups"), view.source[1] if view.rank > 1 else None
    if groups is None or groups < 1:
        return None
    if not isinstance(channels, int) or channels % groups:
        return _pick({1: None})
    return _pick({1: np.arange(channels).reshape(groups, -1).T.reshape(-1)})


def _expand(_: View) -> Lifted | None:
    return Op.EXPAND, None


def _repeat(view: View) -> Lifted | None:
    """As many copies, one behind the other, as are asked for along each axis; along new axes they are an expansion."""
    repeats = view.numbers("repeats" if "repeats" in view.given else "dims")
    if repeats is None or len(repeats) > view.rank:
        return Op.EXPAND, None
    first = view.rank - len(repeats)
    return _pick(repeated(view.source, {first + at: count for at, count in enumerate(repeats)}))


def _repeat_interleave(view: View) -> Lifted | None:
    """Copies of each element, each as many times as it is told; a size that stays the same says nothing about them."""
    axis, given = view.axis(), view.given.get("repeats")
    if axis is None or view.given.get("dim") is None:
        return None
    size = view.source[axis]
    found = np.array([given]) if isinstance(given, int) else _integers(view, given)
    if found is None or not isinstance(size, int):
        return _pick({axis: None})
    counts = np.broadcast_to(found.reshape(-1).astype(np.int64), size)
    return _pick({axis: np.repeat(np.arange(size), counts) if counts.sum() <= MOST_POSITIONS else None})


def _pixel_shuffle(view: View) -> Lifted | None:
    """The channel of a block varies slowest in the deep image: mode CRD of ONNX."""
    size = view.integer("upscale_factor")
    return None if size is None or view.rank != 4 else (Op.DEPTH_TO_SPACE, Blocks(size, depth_last=False))


def _pixel_unshuffle(view: View) -> Lifted | None:
    size = view.integer("downscale_factor")
    return None if size is None or view.rank != 4 else (Op.SPACE_TO_DEPTH, Blocks(size, depth_last=False))


REARRANGING: dict[str, Callable[[View], Lifted | None]] = {
    "permute": _permute,
    "transpose": _swap,
    "swapaxes": _swap,
    "swapdims": _swap,
    "t": _swap,
    "mT": _swap,
    "numpy_T": _reverse,
    "movedim": _move_axes,
    "moveaxis": _move_axes,
    "reshape": _reshape,
    "view": _view,
    "view_as": _reshape,
    "reshape_as": _reshape,
    "_unsafe_view": _reshape,
    "_reshape_alias": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "split": _split,
    "split_with_sizes": _split,
    "split_copy": _split,
    "split_with_sizes_copy": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "chunk": _split,
    "unsafe_chunk": _split,
    "tensor_split": _tensor_split,
    "slice": _slice,
    "slice_copy": _slice,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "gather": _gather,
    "index": _index,
    "_unsafe_index": _index,
    "roll": _roll,
    "flip": _flip,
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
    "expand": _expand,
    "expand_as": _expand,
    "expand_copy": _expand,
    "broadcast_to": _expand,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
