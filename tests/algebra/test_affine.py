"""The frozen linear transform: its definition, its composition, its vectors along an axis, and what defines none."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from exact import UNIT, fraction, root
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine, batch_norm_defect

QUICK = settings(deadline=None, derandomize=True)
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def vectors(scale: list[float], shift: list[float]) -> Affine:
    return Affine(np.array(scale, np.float64), np.array(shift, np.float64))


def apply(affine: Affine, x: np.ndarray) -> np.ndarray:
    return affine.scale * x + affine.shift


@QUICK
@given(
    channels=st.integers(0, 5),
    dtypes=st.tuples(*[st.sampled_from(FLOATS)] * 4),
    epsilon=st.sampled_from([0.0, float(np.float32(1e-5)), 1e-3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_batch_norm_is_its_definition(channels: int, dtypes: tuple[type, ...], epsilon: float, seed: int) -> None:
    """Against rational arithmetic: 2.5 roundings in the scale, 3.5 in scale · mean, 1 in the difference."""
    rng = np.random.default_rng(seed)
    gamma, beta, mean = (rng.normal(size=channels).astype(np.float32).astype(dtype) for dtype in dtypes[:3])
    variance = rng.uniform(0.01, 3, channels).astype(np.float32).astype(dtypes[3])
    gamma[: channels // 3] = 0
    affine = Affine.from_batch_norm(gamma, beta, mean, variance, epsilon, rank=4)
    assert affine.scale.shape == affine.shift.shape == (1, channels, 1, 1)
    assert affine.scale.dtype == affine.shift.dtype == np.float64
    for channel in range(channels):
        scale = fraction(gamma[channel]) / root(fraction(variance[channel]) + Fraction(epsilon))
        product = scale * fraction(mean[channel])
        shift = fraction(beta[channel]) - product
        assert abs(fraction(affine.scale[0, channel, 0, 0]) - scale) <= abs(scale) * UNIT * 5 / 2
        slack = UNIT * (Fraction(36, 10) * abs(product) + abs(shift) * Fraction(11, 10))
        assert abs(fraction(affine.shift[0, channel, 0, 0]) - shift) <= slack


@pytest.mark.parametrize(
    ("rank", "axis", "shape"),
    [
        (1, 0, (3,)),
        (2, 1, (1, 3)),
        (3, 1, (1, 3, 1)),
        (4, 1, (1, 3, 1, 1)),
        (4, 3, (1, 1, 1, 3)),
        (5, 1, (1, 3, 1, 1, 1)),
    ],
)
def test_the_channel_axis_is_counted_from_the_left(rank: int, axis: int, shape: tuple[int, ...]) -> None:
    ones = np.ones(3)
    affine = Affine.from_batch_norm(ones, ones, ones, ones, 0.0, rank=rank, axis=axis)
    assert affine.scale.shape == affine.shift.shape == shape
    assert affine.rank == rank


def test_scale_and_shift_have_one_rank() -> None:
    with pytest.raises(ValueError, match="scale of rank 2 and shift of rank 1"):
        Affine(np.ones((1, 3)), np.ones(3))


@QUICK
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_then_applies_this_one_first(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    sizes = (2, 3, 4)
    shapes = st.tuples(*[st.sampled_from([1, size]) for size in sizes])
    first, second, third = (
        Affine(rng.normal(size=data.draw(shapes)), rng.normal(size=data.draw(shapes))) for _ in range(3)
    )
    x = rng.normal(size=sizes)
    expected = apply(third, apply(second, apply(first, x)))
    for composed in (first.then(second).then(third), first.then(second.then(third))):
        np.testing.assert_allclose(apply(composed, x), expected, rtol=1e-12, atol=1e-12)


def test_then_is_not_commutative() -> None:
    double, add_one = vectors([2], [0]), vectors([1], [1])
    assert apply(double.then(add_one), np.array([5.0])) == 11
    assert apply(add_one.then(double), np.array([5.0])) == 12


@pytest.mark.parametrize(
    ("scale_shape", "shift_shape", "axis", "size", "fits"),
    [
        ((1, 3, 1, 1), (1, 3, 1, 1), -3, 3, True),
        ((1, 3, 1, 1), (1, 1, 1, 1), -3, 3, True),
        ((1, 1, 1, 1), (1, 1, 1, 1), -1, 7, True),
        ((1, 1, 1, 3), (1, 1, 1, 3), -1, 3, True),
        # The size is right and the axis is not: the guess that must never be made.
        ((1, 3, 1, 1), (1, 3, 1, 1), -1, 3, False),
        ((1, 3, 1, 1), (1, 3, 1, 1), -2, 3, False),
        ((1, 1, 1, 1), (1, 3, 1, 1), -1, 3, False),
        ((1, 3, 1, 1), (1, 1, 1, 1), -1, 3, False),
        ((1, 3, 1, 3), (1, 1, 1, 1), -3, 3, False),
        ((1, 3, 1, 1), (1, 3, 1, 1), -3, 6, False),
        ((1, 3), (1, 3), -3, 3, False),
        ((3,), (3,), -1, 3, True),
        ((1, 1, 1), (1, 1, 1), -2, 1, True),
        ((1, 0, 1), (1, 0, 1), -2, 0, True),
    ],
)
def test_along_an_axis(
    scale_shape: tuple[int, ...], shift_shape: tuple[int, ...], axis: int, size: int, *, fits: bool
) -> None:
    rng = np.random.default_rng(0)
    affine = Affine(rng.normal(size=scale_shape), rng.normal(size=shift_shape))
    got = affine.along(axis, size)
    if not fits:
        assert got is None
        return
    assert got is not None
    assert got.scale.shape == got.shift.shape == (size,)
    value_shape = [1] * affine.rank
    value_shape[axis] = size
    x = rng.normal(size=value_shape)
    np.testing.assert_array_equal(apply(affine, x).reshape(-1), apply(got, x.reshape(-1)))


@pytest.mark.parametrize(
    ("scale", "shift", "dtype_name", "fits"),
    [
        (65504.0, 0.0, "float16", True),
        (65519.999, -65519.999, "float16", True),
        (65520.0, 0.0, "float16", False),
        (1.0, -65520.0, "float16", False),
        (65520.0, 0.0, "bfloat16", True),
        (3.4e38, 3.38e38, "bfloat16", False),
        (1e39, 0.0, "float32", False),
        (1e39, 0.0, "float64", True),
        (np.inf, 0.0, "float64", False),
        (1.0, np.nan, "float32", False),
        (1.0, 0.0, "int32", False),
        (1.0, 0.0, "", False),
    ],
)
def test_what_fits_a_dtype(scale: float, shift: float, dtype_name: str, *, fits: bool) -> None:
    assert vectors([1, scale], [0, shift]).fits(dtype_name) is fits


def test_scales_that_are_all_below_the_normal_numbers_of_float16_do_not_fit() -> None:
    assert not vectors([1e-5, -1e-7], [0, 1]).fits("float16")
    assert vectors([1e-5, 1e-4], [0, 1]).fits("float16")
    assert vectors([0, 0], [0, 1]).fits("float16")
    assert vectors([1e-5, -1e-7], [0, 1]).fits("bfloat16")


def defect(*, epsilon: float = 0.0, dtype: type = np.float32, **changed: list[float]) -> str | None:
    parameters = {name: np.ones(3, dtype) for name in ("gamma", "beta", "mean", "variance")}
    parameters.update({name: np.array(values, dtype) for name, values in changed.items()})
    return batch_norm_defect(**parameters, epsilon=epsilon)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "variance"])
@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_parameter_that_is_not_finite_is_named(name: str, value: float, text: str, dtype: type) -> None:
    assert defect(dtype=dtype, **{name: [1, value, np.nan]}) == f"{name} is {text} in channel 1"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("variance", "epsilon", "text"),
    [
        (0.0, 0.0, "variance + epsilon is 0 in channel 2, which has no real root"),
        (-0.5, 0.25, "variance + epsilon is -0.25 in channel 2, which has no real root"),
        (-0.5, 0.5, "variance + epsilon is 0 in channel 2, which has no real root"),
        (0.0, 1e-30, None),
        (-0.5, 0.75, None),
    ],
)
def test_the_root_must_be_real_and_positive(variance: float, epsilon: float, text: str | None, dtype: type) -> None:
    assert defect(dtype=dtype, variance=[1, 1, variance], epsilon=epsilon) == text


def test_zero_and_negative_gammas_are_legal() -> None:
    assert defect(gamma=[0, -1, 1]) is None
    assert defect(gamma=[], beta=[], mean=[], variance=[]) is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"gamma": [1e200, 1, 1], "variance": [1e-300, 1, 1]},
        {"gamma": [1e200, 1, 1], "mean": [1e200, 1, 1]},
        {"gamma": [1e308, 1, 1], "mean": [-1.7, 1, 1], "beta": [1e308, 1, 1]},
    ],
    ids=["scale", "product", "difference"],
)
def test_finite_float64_parameters_can_define_an_infinite_affine(parameters: dict[str, list[float]]) -> None:
    text = defect(dtype=np.float64, **parameters)
    assert text is not None
    assert "channel 0" in text


def test_an_epsilon_that_is_not_a_number_is_a_defect() -> None:
    assert defect(epsilon=np.nan) is not None


def test_a_composition_beyond_float64_is_infinite_and_does_not_fit() -> None:
    huge = vectors([1e300], [1e300])
    assert not huge.then(huge).fits("float64")
