"""Torch operators that mix elements along some axes: pooling, reductions, resizing and padding."""

from collections.abc import Callable

from bnfold.algebra.linear_map import Window
from bnfold.algebra.positions import crop
from bnfold.graph import Along, Op, Picked
from bnfold.torch.fx.nodes import operator_name
from bnfold.torch.lift.moves.node_facts import Lifted, View

_Lifter = Callable[[View], Lifted | None]


def _dimensions(view: View) -> int:
    """The number of axes that an operator such as "max_pool2d" slides along."""
    return next(int(letter) for letter in operator_name(view.node) if letter.isdigit())


def _average_pool(view: View) -> Lifted | None:
    """Windows that reach beyond the padding are cut there, and count what is left: ceil_mode alone adds no zeros."""
    count = _dimensions(view)
    padding = view.numbers("padding")
    padded = padding is None or any(padding)
    counts = "counts the zeros of its padding" if view.flag("count_include_pad") and padded else ""
    if view.given.get("divisor_override") is not None:
        counts = "divides by another number than that of the elements that it adds up, or may"
    kernel, window = _window(view, count)
    return Op.AVERAGE, Along(view.last_axes(count), counts=counts, kernel=kernel, window=window)


def _window(view: View, count: int) -> tuple[tuple[int, ...], Window | None]:
    """The window of an average whose outputs are all the same sum; () and None for others."""
    kernel, padding = view.numbers("kernel_size"), view.numbers("padding")
    strides = view.numbers("stride") or kernel
    if not kernel or padding is None or strides is None:
        return (), None
    if view.flag("ceil_mode") or view.given.get("divisor_override") is not None:
        return (), None
    if any(padding) and not view.flag("count_include_pad"):
        return (), None
    ones = (1,) * count
    wide = [given * count if len(given) == 1 else given for given in (kernel, strides, padding or (0,))]
    if any(len(given) != count for given in wide):
        return (), None
    return wide[0], Window(wide[1], ones, wide[2], wide[2])


def _adaptive_average_pool(view: View) -> Lifted | None:
    return Op.AVERAGE, Along(view.last_axes(_dimensions(view)))


def _max_pool(view: View) -> Lifted | None:
    return None if view.extra_is_read else (Op.MAXIMUM, Along(view.last_axes(_dimensions(view))))


def _reduction(op: Op) -> _Lifter:
    """A reduction along some axes; along all of them if none are named."""

    def lift(view: View) -> Lifted | None:
        axes = view.axes()
        if axes is None or view.extra_is_read:
            return None
        return op, Along(frozenset(axes or range(view.rank)), keep=view.flag("keepdim"))

    return lift


def _maximum(view: View) -> Lifted | None:
    """The largest element; not the larger of two tensors, which has the same name."""
    return None if "other" in view.given else _reduction(Op.MAXIMUM)(view)


def _resample(view: View) -> Lifted | None:
    return Op.RESAMPLE, Along(view.last_axes(_dimensions(view)))


def _pads(view: View) -> dict[int, tuple[object, object]] | None:
    """What a list of pads, last axis first, puts before and behind the axes that it is about."""
    given = view.given.get("pad", view.given.get("padding"))
    if not isinstance(given, tuple | list) or len(given) % 2 or len(given) > 2 * view.rank:
        return None
    pairs = enumerate(zip(given[::2], given[1::2], strict=True), 1)
    return {view.rank - at: pair for at, pair in pairs if pair != (0, 0)}


def _pad(view: View) -> Lifted | None:
    pads = _pads(view)
    if pads is None:
        return None
    cropped = crop(view.source, pads)
    if cropped is not None:
        return Op.PICK, Picked((cropped,))
    if view.given.get("mode", "constant") != "constant":
        return Op.RESAMPLE, Along(frozenset(pads))
    value = view.given.get("value")
    is_zero = value is None or (isinstance(value, int | float) and value == 0)
    return (Op.ZERO_PAD, Along(frozenset(pads))) if is_zero else None


def _pad_by_copies(view: View) -> Lifted | None:
    pads = _pads(view)
    return None if pads is None else (Op.RESAMPLE, Along(frozenset(pads)))


def _each(lifter: _Lifter, *names: str) -> dict[str, _Lifter]:
    """The same for one, two and three axes."""
    return {f"{name}{count}d": lifter for name in names for count in (1, 2, 3)}


WINDOWS: dict[str, _Lifter] = {
    **_each(_average_pool, "avg_pool"),
    **_each(_adaptive_average_pool, "adaptive_avg_pool", "_adaptive_avg_pool"),
    **_each(_max_pool, "max_pool", "adaptive_max_pool"),
    **{f"max_pool{count}d_with_indices": _max_pool for count in (1, 2, 3)},
    "mean": _reduction(Op.AVERAGE),
    "sum": _reduction(Op.SUM),
    "amax": _reduction(Op.MAXIMUM),
    "max": _maximum,
    **_each(_resample, "upsample_nearest", "_upsample_nearest_exact"),
    "upsample_linear1d": _resample,
    "upsample_bilinear2d": _resample,
    "upsample_bicubic2d": _resample,
    "upsample_trilinear3d": _resample,
    "_upsample_bilinear2d_aa": _resample,
    "_upsample_bicubic2d_aa": _resample,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **_each(_pad_by_copies, "reflection_pad", "replication_pad"),
    "_pad_circular": _pad_by_copies,
}
