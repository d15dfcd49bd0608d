"""Random models in which the ways of one value part and meet again, before an affine or behind it.

The parts of a value (Split, Slice, Gather, or maps of it) are joined in another order, added, multiplied, given twice
or not at all: whatever moves through both ways ends in one map or affine twice, each time with a part of what it
brings, and has to be put together there.
"""

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
from random_models import (
    AFFINES,
    MAPS,
    MOST_ELEMENTS,
    MOVES,
    SHAPES,
    Choose,
    Maker,
    Tensor,
    activation,
    batch_norm,
    conv,
    finish,
    identity,
    matmul,
    matmul_left,
    spelled_out,
)


def split(m: Maker, x: Tensor, axis: int) -> list[Tensor]:
    """Two or three outputs of one Split, of sizes that are equal where they can be."""
    size = x.shape[axis]
    halves = [size // 2, size - size // 2]
    sizes = m.pick(halves, [1, size - 1], [1, size - 2, 1] if size > 2 else halves)
    shapes = [_cut(x, axis, size) for size in sizes]
    return m.add("Split", [x.name, m.integers(*sizes)], *shapes, axis=axis, keep=False)


def slices(m: Maker, x: Tensor, axis: int) -> list[Tensor]:
    """Slices of one value: both sides of a cut, both steps of two, or two that overlap."""
    size = x.shape[axis]
    cuts = m.pick(
        [(0, size // 2, 1), (size // 2, size, 1)],
        [(0, size, 2), (1, size, 2)],
        [(0, size - 1, 1), (1, size, 1)],
        [(0, size, 1), (-1, -(2**62), -1)],
    )
    parts = []
    for start, end, step in cuts:
        count = len(range(size)[slice(start, end, step)])
        numbers = [m.integers(number) for number in (start, end, axis, step)]
        parts += m.add("Slice", [x.name, *numbers], _cut(x, axis, count), keep=False)
    return parts


def gathers(m: Maker, x: Tensor, axis: int) -> list[Tensor]:
    """Gathers of one value: its ends, its halves turned round, or all of it in two orders."""
    size = x.shape[axis]
    turned = [*reversed(range(size))]
    choices = m.pick([[0], [size - 1]], [turned[: size // 2], turned[size // 2 :]], [turned, [0, *range(size - 1)]])
    parts = []
    for indices in choices:
        array = np.array(indices, np.int64)
        parts += m.add("Gather", [x.name, m.constant(array)], _cut(x, axis, len(array)), axis=axis, keep=False)
    return parts


def maps(m: Maker, x: Tensor, _: int) -> list[Tensor]:
    """Several linear maps of one value, their outputs of one shape."""
    count, parts = m.pick(2, 3), []
    for _ in range(count):
        if 3 <= len(x.shape) <= 5:
            weight = m.normal(4, x.shape[1], *[1] * (len(x.shape) - 2))
            parts += m.add("Conv", [x.name, weight], (x.shape[0], 4, *x.shape[2:]), keep=False)
        else:
            parts += m.add("MatMul", [x.name, m.normal(x.shape[-1], 4)], (*x.shape[:-1], 4), keep=False)
    return parts


def uses(_: Maker, x: Tensor, __: int) -> list[Tensor]:
    """The value itself, twice."""
    return [x, x]


def rejoined(m: Maker, x: Tensor) -> None:
    """Parts of a value, something on some of them, and what joins them again."""
    axis = m.pick(*[min(1, len(x.shape) - 1)] * 3, m.axis(x))
    if x.shape[axis] < 2:
        return
    parts = [_way(m, part) for part in m.pick(*[split] * 6, slices, gathers, maps, uses)(m, x, axis)]
    order = m.pick("turned", "turned", "as they are", "one is dropped", "one comes twice")
    if order in ("turned", "one comes twice"):
        parts.reverse()
    if order == "one is dropped":
        dropped = parts.pop(m.choose(len(parts)))
        if m.pick(False, True):
            m.values.append(dropped)  # and may be read by something else, or be an output
    if order == "one comes twice":
        parts.append(parts[m.choose(len(parts))])
    join(m, parts, axis)


def join(m: Maker, parts: list[Tensor], axis: int) -> None:
    """Concat, along the axis of the cut if the parts allow no other, or an operator of equal shapes."""
    first, names = parts[0], [part.name for part in parts]
    equal = all(part.shape == first.shape for part in parts)
    along = m.pick(axis, m.axis(first)) if equal else axis
    apart = [[size for at, size in enumerate(part.shape) if at != along] for part in parts]
    total = sum(part.shape[along] for part in parts if along < len(part.shape))
    op_type = m.pick(*["Concat"] * 5, "Add", "Sub", "Sum", "Mul")
    if op_type == "Concat" or not equal or len(parts) < 2:
        if any(sizes != apart[0] for sizes in apart) or prod(apart[0]) * total > MOST_ELEMENTS:
            m.values += parts
            return
        shape = [*first.shape[:along], total, *first.shape[along + 1 :]]
        m.add("Concat", names, shape, axis=along)
        return
    if op_type == "Sum":
        m.add("Sum", names, first.shape)
        return
    for name in names[1:-1]:
        (first,) = m.add(op_type, [first.name, name], first.shape, keep=False)
    m.add(op_type, [first.name, names[-1]], first.shape)


def _way(m: Maker, part: Tensor) -> Tensor:
    """What lies on one way between the parting and the joining, if anything; an output of an unknown shape is not."""
    step = m.pick(*[None] * 16, identity, activation, batch_norm, spelled_out, conv, matmul, matmul_left, rejoined)
    if step is None:
        return part
    known = len(m.values)
    step(m, part)
    added = m.values[known:]
    del m.values[known:]
    return added[-1] if added else part


def _cut(x: Tensor, axis: int, size: int) -> tuple[int, ...]:
    return (*x.shape[:axis], size, *x.shape[axis + 1 :])


def channel_map(m: Maker, x: Tensor) -> None:
    """A map whose output channels are where those of a BN are."""
    if len(x.shape) > 2:
        out = m.pick(4, 6, 2)
        inputs = [x.name, m.normal(out, x.shape[1], *[1] * (len(x.shape) - 2)), *m.pick([], [m.normal(out)])]
        m.add("Conv", inputs, (x.shape[0], out, *x.shape[2:]))
    else:
        matmul(m, x)


REJOINED = (rejoined,)


def make(choose: Choose) -> onnx.ModelProto:
    """A map or an affine, ways that part and meet, and an affine or maps behind them."""
    maker = Maker(choose, [])
    maker.values.append(Tensor("x", maker.pick(*SHAPES)))
    groups = [*maker.pick(*[[(channel_map,)]] * 4, [MAPS], [(batch_norm,)], [MAPS, AFFINES])]
    for _ in range(maker.number(1, 2)):
        groups += maker.pick([REJOINED], [REJOINED], [REJOINED], [MOVES, REJOINED], [REJOINED, MOVES])
        groups += maker.pick([(batch_norm,)], [(batch_norm,)], [AFFINES], [])
    groups += maker.pick([], [], [(channel_map,)], [(channel_map,)], [(channel_map,)], [MAPS], [MAPS, MAPS])
    for group in groups:
        maker.pick(*group)(maker, maker.values[-maker.pick(*[1] * 15, min(2, len(maker.values)))])
    return finish(maker)


def of_seed(seed: int) -> onnx.ModelProto:
    """The model of a seed, the same every time; all choices are equally likely."""
    rng = np.random.default_rng(seed)
    choose: Callable[[int], int] = lambda count: int(rng.integers(count))  # noqa: E731
    return make(choose)
