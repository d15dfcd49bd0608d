"""Carrying an array past a change of shape, against the definition: write it out in full, reshape, compare."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.rules.shapes import compact, narrowed, reshaped, widened

SIZES = (1, 2, 2, 3, 4, 6)


def factorisations(total: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes with so many elements."""

    @st.composite
    def shape(draw: st.DrawFn) -> tuple[int, ...]:
        rest, sizes = total, []
        while rest > 1 or not sizes:
            divisors = [size for size in range(1, rest + 1) if rest % size == 0]
            sizes.append(draw(st.sampled_from(divisors)))
            rest //= sizes[-1]
            if len(sizes) == 4:
                sizes.append(rest)
                break
        return tuple(sizes)

    return shape()


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """An array that broadcasts against a shape, that shape, and another with as many elements."""
    source = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4)))
    target = draw(factorisations(prod(source)))
    varies = draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source)))
    array = np.arange(prod(source), dtype=float).reshape(source)
    for axis, kept in enumerate(varies):
        array = array if kept else array.take([0], axis)
    return array, source, target


@settings(deadline=None)
@given(reshapes())
def test_known_sizes_are_always_carried(case: tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]) -> None:
    array, source, target = case
    carried = reshaped(array, source, target)
    assert carried is not None
    assert all(size in (1, whole) for size, whole in zip(carried.shape, target, strict=True))
    expected = np.broadcast_to(array, source).reshape(target)
    np.testing.assert_array_equal(np.broadcast_to(carried, target), expected)


@settings(deadline=None, max_examples=300)
@given(reshapes(), st.data())
def test_symbols_are_carried_only_if_right_for_every_size(
    case: tuple[np.ndarray, tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    """Sizes become symbols, or nothing is known about them; what is carried is right for the real sizes."""
    array, source, target = case
    hidden = [data.draw(st.sampled_from(["known", "symbol", "unknown"])) for _ in source]
    known = tuple(_hide(size, how, array.shape[at]) for at, (size, how) in enumerate(zip(source, hidden, strict=True)))
    symbols = {size for size in known if isinstance(size, str)}
    new = tuple(f"n{size}" if f"n{size}" in symbols and data.draw(st.booleans()) else size for size in target)
    new = tuple(None if data.draw(st.integers(0, 5)) == 0 else size for size in new)
    carried = reshaped(array, known, new)
    if carried is not None:
        expected = np.broadcast_to(array, source).reshape(target)
        np.testing.assert_array_equal(np.broadcast_to(carried, target), expected)


def _hide(size: int, how: str, varies: int) -> int | str | None:
    if how == "known" or varies > 1:
        return size
    return f"n{size}" if how == "symbol" else None


CHANNELS = np.arange(1.0, 5)


@pytest.mark.parametrize(
    ("shape", "source", "target", "expected"),
    [
        # Batch and tokens merge; the channels are the last axis.
        ((1, 1, 4), ("N", "L", 4), (None, 4), (1, 4)),
        # Flatten with a symbolic batch: from the left the batch, from the right what is known.
        ((1, 4, 1, 1), ("N", 4, 2, 2), ("N", 16), (1, 16)),
        ((1, 4, 1, 1), ("N", 4, 1, 1), ("N", 4), (1, 4)),
        ((1, 4, 1), ("N", 4, "L"), ("N", 4, "H", "W"), (1, 4, 1, 1)),
        # A channel split into two.
        ((1, 4, 1, 1), ("N", 4, "H", "W"), ("N", 2, 2, "H", "W"), (1, 2, 2, 1, 1)),
        # Heads move out of the channels at the end.
        ((1, 1, 4), ("N", "L", 4), ("N", "L", 2, 2), (1, 1, 2, 2)),
        ((1, 4), (None, 4), (None, 1, 4, 1, 1), (1, 1, 4, 1, 1)),
    ],
)
def test_unknown_sizes_beside_the_channels(shape: tuple, source: tuple, target: tuple, expected: tuple) -> None:
    carried = reshaped(CHANNELS.reshape(shape), source, target)
    assert carried is not None
    assert carried.shape == expected


@pytest.mark.parametrize(
    ("shape", "source", "target"),
    [
        # In the middle nothing is known: (N, C, ?) to (?, C) would move the channels unless ? is 1.
        ((1, 4, 1), ("N", 4, None), (None, 4)),
        ((1, 4, 1), (None, 4, "L"), (None, 4, "M")),
        # The sizes are equal, the axes are not: (N, L, C) with L = C.
        ((1, 4, 1), ("N", 4, "L"), (None, 4)),
        ((1, 4, 1, 1), ("N", 4, "H", "W"), ("N", "K")),
        ((1, 4), (None, 4), (None, 3, "K")),
    ],
)
def test_nothing_is_guessed(shape: tuple, source: tuple, target: tuple) -> None:
    assert reshaped(CHANNELS.reshape(shape), source, target) is None


def test_a_constant_array_passes_any_reshape() -> None:
    carried = reshaped(np.full((1, 1), 2.0), (None, None), (None, None, None))
    assert carried is not None
    assert carried.shape == (1, 1, 1)


def test_an_array_too_large_to_write_out_is_not_carried() -> None:
    array = np.arange(1 << 13, dtype=float).reshape(-1, 1)
    assert reshaped(array, (1 << 13, 1 << 13), (1 << 26,)) is None


def test_compact_drops_what_is_constant() -> None:
    array = np.broadcast_to(np.arange(3.0).reshape(1, 3, 1), (2, 3, 4))
    assert compact(array).shape == (1, 3, 1)
    assert compact(np.arange(4.0).reshape(2, 2)).shape == (2, 2)
    assert compact(np.zeros((0, 3))).shape[1] in (1, 3)


@pytest.mark.parametrize(
    ("array", "shape", "expected"),
    [
        ((1, 4, 1, 1), (2, 4, 3, 3), (1, 4, 1, 1)),
        ((1, 4, 1, 1), (4, 1, 1), (4, 1, 1)),
        ((1, 1, 1, 1), (None, None), (1, 1)),
        ((1, 4), ("N", 4), (1, 4)),
    ],
)
def test_narrowed(array: tuple, shape: tuple, expected: tuple) -> None:
    carried = narrowed(np.ones(array), shape)
    assert carried is not None
    assert carried.shape == expected


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        ((1, 4, 1, 1), (2, 1, 3, 3)),
        ((1, 4, 1, 1), (2, None, 3, 3)),  # it may be 1
        ((1, 4, 1, 1), (2, "C", 3, 3)),
        ((1, 4, 1, 1), (3, 3)),
        ((1, 4), None),
        ((4,), (1, 4)),  # no result of a broadcast has fewer axes than an operand
    ],
)
def test_what_may_be_broadcast_is_not_narrowed(array: tuple, shape: tuple | None) -> None:
    assert narrowed(np.ones(array), shape) is None


def test_widened_adds_axes_on_the_left() -> None:
    assert widened(np.ones((4, 1)), 4).shape == (1, 1, 4, 1)
