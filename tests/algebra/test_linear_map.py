"""Linear maps and what they absorb, against two oracles that share nothing with the code under test.

- The *function*: torch's convolutions and plain products in float64, the affine applied to their input or output.
- The *stored numbers*: rational arithmetic over the parameters as they are stored (`tests/exact.py`), rounded once.

What the second one may ask for. float64 itself rounds: a scale gamma / sqrt(variance + epsilon) carries 2.5 units
u = 2**-53 of relative error (sum 1, halved by the root; root 1; quotient 1), composing or applying it 1 more. So
with n affines a new weight is the correctly rounded one unless the exact value lies within 3.5 · n · u of a tie,
and then it is one of the two values beside that tie. A bias is a sum, and its float64 error is relative to the sum of
the *magnitudes* of its terms: cancellation is where it can be off, by exactly that much and no more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite, prod

import ml_dtypes
import numpy as np
import pytest
import torch
from exact import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, UNIT, distance_to_float, distance_to_tie, fraction, nearest, root
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import Folding, LinearMap
from bnfold.algebra.tensor import ArrayTensor

CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
TRANSPOSED = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
DTYPES = [FLOAT16, BFLOAT16, FLOAT32, FLOAT64]
QUICK = settings(deadline=None, derandomize=True)
Function = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer and its definition.

    Attributes:
        linear: The map under test.
        run: (input, weight, bias) → output, in float64; None for no bias. Without alpha and beta.
        in_shape: The shape of an input.
        in_channel: The channel of the input that weight[index] multiplies.
        out_channel: The channel of the output that weight[index] contributes to.
        alpha: What multiplies the product.
        beta: What multiplies the bias.
    """

    linear: LinearMap
    run: Function
    in_shape: tuple[int, ...]
    in_channel: Callable[[tuple[int, ...]], int]
    out_channel: Callable[[tuple[int, ...]], int]

    def before(self, x: np.ndarray) -> np.ndarray:
        """What the layer computes."""
        bias = self.linear.bias
        product = self.run(x, self.linear.weight.read().astype(np.float64), None)
        scaled = self.linear.alpha * product
        if bias is None:
            return scaled
        wide = bias.read().astype(np.float64)
        if len(self.linear.weight.shape) > 2:
            wide = wide.reshape(-1, *[1] * (len(self.linear.weight.shape) - 2))
        return scaled + self.linear.beta * wide

    def after(self, x: np.ndarray, folding: Folding) -> np.ndarray:
        """What it computes with its new weight and bias; beta is 1 from then on."""
        product = self.linear.alpha * self.run(x, folding.weight().astype(np.float64), None)
        bias = folding.bias()
        if bias is None:
            return product
        wide = bias.astype(np.float64)
        if len(self.linear.weight.shape) > 2:
            assert wide.shape == (self.linear.out_channels,)
            wide = wide.reshape(-1, *[1] * (len(self.linear.weight.shape) - 2))
        return product + wide


def tensor(array: np.ndarray | None) -> ArrayTensor | None:
    return None if array is None else ArrayTensor(array)


def draw_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32).astype(dtype)


def torch_run(function: Callable[..., torch.Tensor], **options: object) -> Function:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        assert bias is None
        return function(torch.from_numpy(x), torch.from_numpy(weight), None, **options).numpy()

    return run


def convolution(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    spatial = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    in_per_group = data.draw(st.integers(1, 3))
    out_per_group = data.draw(st.integers(1, 3))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(spatial))
    stride, dilation = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    weight = draw_array(rng, (groups * out_per_group, in_per_group, *kernel), dtype)
    bias = draw_array(rng, (groups * out_per_group,), dtype) if data.draw(st.booleans()) else None
    return Layer(
        LinearMap(
            weight=ArrayTensor(weight),
            bias=tensor(bias),
            groups=groups,
            output_axis=-1 - spatial,
            input_axis=-1 - spatial,
        ),
        torch_run(CONVOLUTIONS[spatial], stride=stride, dilation=dilation, groups=groups),
        (2, groups * in_per_group, *[6] * spatial),
        in_channel=lambda index: index[0] // out_per_group * in_per_group + index[1],
        out_channel=lambda index: index[0],
    )


def transposed(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    """Kernels of one tap, or kernels of more whose every output sees one tap of each (stride = kernel is not such)."""
    spatial = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    in_per_group = data.draw(st.integers(1, 3))
    out_per_group = data.draw(st.sampled_from([in_per_group, 1, 2, 3]))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(spatial))
    stride = data.draw(st.integers(1, 2))
    weight = draw_array(rng, (groups * in_per_group, out_per_group, *kernel), dtype)
    bias = draw_array(rng, (groups * out_per_group,), dtype) if data.draw(st.booleans()) else None
    whole = prod(kernel) == 1 and stride == 1
    return Layer(
        LinearMap(
            weight=ArrayTensor(weight),
            bias=tensor(bias),
            groups=groups,
            out_first=False,
            output_axis=-1 - spatial,
            input_axis=-1 - spatial,
            partial_kernel="" if whole else "gives its outputs different taps",
        ),
        torch_run(TRANSPOSED[spatial], stride=stride, groups=groups),
        (2, groups * in_per_group, *[3] * spatial),
        in_channel=lambda index: index[0],
        out_channel=lambda index: index[0] // in_per_group * out_per_group + index[1],
    )


def gemm(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    rows, inner, columns = (data.draw(st.integers(1, 4)) for _ in range(3))
    transpose_a, transpose_b = data.draw(st.booleans()), data.draw(st.booleans())
    weight = draw_array(rng, (columns, inner) if transpose_b else (inner, columns), dtype)
    shapes: list[tuple[int, ...] | None] = [
        None, (), (1,), (columns,), (1, columns), (rows, 1), (rows, columns), (1, 1)
    ]  # fmt: skip
    shape = data.draw(st.sampled_from(shapes))
    numbers = st.sampled_from([1.0, 1.0, 0.0, -0.5, float(np.float32(0.1)), 3.0])
    return Layer(
        LinearMap(
            weight=ArrayTensor(weight),
            bias=None if shape is None else ArrayTensor(draw_array(rng, shape, dtype).reshape(shape)),
            out_first=transpose_b,
            input_axis=-2 if transpose_a else -1,
            alpha=data.draw(numbers),
            beta=data.draw(numbers),
        ),
        lambda x, w, _: (x.T if transpose_a else x) @ (w.T if transpose_b else w),
        (inner, rows) if transpose_a else (rows, inner),
        in_channel=lambda index: index[1] if transpose_b else index[0],
        out_channel=lambda index: index[0] if transpose_b else index[1],
    )


def matmul(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    inner, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    batch = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    weight = draw_array(rng, (inner, columns), dtype)
    bias = data.draw(st.sampled_from([None, (), (columns,), (1,) * (len(batch) + 1)]))
    return Layer(
        LinearMap(
            weight=ArrayTensor(weight),
            bias=None if bias is None else ArrayTensor(draw_array(rng, bias, dtype).reshape(bias)),
            out_first=False,
        ),
        lambda x, w, _: x @ w,
        (*batch, inner),
        in_channel=lambda index: index[0],
        out_channel=lambda index: index[1],
    )


def matmul_from_the_left(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    inner, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    batch = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    weight = draw_array(rng, (rows, inner), dtype)
    shapes: list[tuple[int, ...] | None] = [None, (), (rows, 1), *[(1,) * len(batch) + (rows, 1)]]
    bias = data.draw(st.sampled_from(shapes))
    return Layer(
        LinearMap(
            weight=ArrayTensor(weight),
            bias=None if bias is None else ArrayTensor(draw_array(rng, bias, dtype).reshape(bias)),
            output_axis=-2,
            input_axis=-2,
        ),
        lambda x, w, _: w @ x,
        (*batch, inner, 3),
        in_channel=lambda index: index[1],
        out_channel=lambda index: index[0],
    )


def vector_times_matrix(data: st.DataObject, rng: np.random.Generator, dtype: np.dtype) -> Layer:
    """W @ x with x of rank 1: the channel axis is the last one on both sides."""
    inner, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    weight = draw_array(rng, (rows, inner), dtype)
    bias = draw_array(rng, (rows,), dtype) if data.draw(st.booleans()) else None
    return Layer(
        LinearMap(weight=ArrayTensor(weight), bias=tensor(bias)),
        lambda x, w, _: w @ x,
        (inner,),
        in_channel=lambda index: index[1],
        out_channel=lambda index: index[0],
    )


LAYERS = [convolution, transposed, gemm, matmul, matmul_from_the_left, vector_times_matrix]


@dataclass(frozen=True, slots=True)
class Exact:
    """A number and what bounds the error of computing it in float64."""

    value: Fraction
    magnitude: Fraction = field(default_factory=Fraction)

    @classmethod
    def of(cls, number: object) -> "Exact":
        return cls(fraction(number), abs(fraction(number)))

    def __add__(self, other: "Exact") -> "Exact":
        return Exact(self.value + other.value, self.magnitude + other.magnitude)

    def __mul__(self, other: "Exact") -> "Exact":
        return Exact(self.value * other.value, self.magnitude * other.magnitude)


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """The stored parameters of a BN layer."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float

    def affine(self) -> Affine:
        return Affine.from_batch_norm(self.gamma, self.beta, self.mean, self.variance, self.epsilon, rank=1, axis=0)

    def apply(self, x: np.ndarray, axis: int) -> np.ndarray:
        """The definition, written with mean and variance."""
        shape = (-1,) + (1,) * (-axis - 1)
        gamma, beta, mean, variance = (
            array.astype(np.float64).reshape(shape) for array in (self.gamma, self.beta, self.mean, self.variance)
        )
        return (x - mean) / np.sqrt(variance + self.epsilon) * gamma + beta

    def scale(self, channel: int) -> Exact:
        exact = fraction(self.gamma[channel]) / root(fraction(self.variance[channel]) + Fraction(self.epsilon))
        return Exact(exact, abs(exact))

    def shift(self, channel: int) -> Exact:
        return Exact.of(self.beta[channel]) + self.scale(channel) * Exact.of(-self.mean[channel])


def draw_batch_norm(data: st.DataObject, rng: np.random.Generator, channels: int, *, shift: bool = True) -> BatchNorm:
    dtypes = [data.draw(st.sampled_from([FLOAT32, FLOAT32, FLOAT16, BFLOAT16, FLOAT64])) for _ in range(4)]
    gamma, beta, mean = (draw_array(rng, (channels,), dtype) for dtype in dtypes[:3])
    gamma[rng.random(channels) < 0.15] = 0
    if not shift:
        beta, mean = np.zeros_like(beta), np.zeros_like(mean)
    variance = rng.uniform(0.05, 4, channels).astype(np.float32).astype(dtypes[3])
    epsilon = data.draw(st.sampled_from([float(np.float32(1e-5)), 1e-3, 0.0]))
    return BatchNorm(gamma, beta, mean, variance, epsilon)


@dataclass(frozen=True, slots=True)
class Problem:
    """A layer between the BN layers it is to absorb, in the order in which data flows."""

    layer: Layer
    inner: list[BatchNorm]
    outer: list[BatchNorm]

    def folding(self) -> Folding:
        """Absorbs the nearest first, from both sides in turn."""
        folding = Folding(self.layer.linear)
        inner, outer = [*reversed(self.inner)], [*self.outer]
        while inner or outer:
            if inner:
                folding = folding.absorb_input(inner.pop(0).affine())
            if outer:
                folding = folding.absorb_output(outer.pop(0).affine())
        return folding

    @property
    def count(self) -> int:
        return len(self.inner) + len(self.outer)


@st.composite
def problems(draw: st.DrawFn, dtypes: list[np.dtype]) -> Problem:
    data = draw(st.data())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layer = draw(st.sampled_from(LAYERS))(data, rng, draw(st.sampled_from(dtypes)))
    linear = layer.linear
    inner_count, outer_count = draw(st.sampled_from([(0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2), (3, 0), (0, 3)]))
    whole = not linear.partial_kernel
    inner = [draw_batch_norm(data, rng, linear.in_channels, shift=whole) for _ in range(inner_count)]
    outer = [draw_batch_norm(data, rng, linear.out_channels) for _ in range(outer_count)]
    return Problem(layer, inner, outer)


def check_function(problem: Problem, seed: int) -> None:
    """The layer with its new weights computes what the layer between its BN layers computes."""
    linear = problem.layer.linear
    x = np.random.default_rng(seed).normal(size=problem.layer.in_shape)
    expected = x
    for norm in problem.inner:
        expected = norm.apply(expected, linear.input_axis)
    expected = problem.layer.before(expected)
    largest = np.abs(expected).max(initial=1.0)
    for norm in problem.outer:
        expected = norm.apply(expected, linear.output_axis)
        largest = max(largest, np.abs(expected).max(initial=0.0)) * 10
    got = problem.layer.after(x, problem.folding())
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * largest)


@QUICK
@given(problem=problems([FLOAT64]), seed=st.integers(0, 100))
def test_a_folded_map_computes_what_the_definition_computes(problem: Problem, seed: int) -> None:
    check_function(problem, seed)


@pytest.mark.slow
@settings(max_examples=800, deadline=None, derandomize=True)
@given(problem=problems([FLOAT64]), seed=st.integers(0, 100))
def test_a_folded_map_computes_what_the_definition_computes_at_length(problem: Problem, seed: int) -> None:
    check_function(problem, seed)


def check_number(stored: object, exact: Exact, roundings: Fraction, dtype: np.dtype) -> None:
    """A stored number is the correctly rounded exact one, as far as float64 can tell.

    Args:
        stored: The scalar under test.
        exact: The exact number.
        roundings: The float64 error, in units u of the magnitude of `exact`.
        dtype: The storage dtype.
    """
    number = float(stored)  # type: ignore[arg-type]
    slack = roundings * UNIT * exact.magnitude * Fraction(101, 100)
    correct = nearest(exact.value, dtype)
    if number == correct:
        return
    assert isfinite(number), f"{number}, not {correct}"
    error = abs(Fraction(number) - exact.value)
    assert error <= distance_to_float(exact.value, dtype) + slack, f"{number}, not {correct}"
    assert distance_to_tie(exact.value, dtype) <= slack, f"{number}, not {correct}"


def check_weight(problem: Problem) -> None:
    layer = problem.layer
    old = layer.linear.weight.read()
    new = problem.folding().weight()
    assert new.shape == old.shape
    assert new.dtype == old.dtype
    one = Exact.of(1.0)
    into = [one] * layer.linear.in_channels
    out = [one] * layer.linear.out_channels
    for norm in problem.inner:
        into = [into[channel] * norm.scale(channel) for channel in range(len(into))]
    for norm in problem.outer:
        out = [out[channel] * norm.scale(channel) for channel in range(len(out))]
    roundings = Fraction(7, 2) * problem.count
    for index in np.ndindex(*old.shape):
        exact = Exact.of(old[index]) * into[layer.in_channel(index)] * out[layer.out_channel(index)]
        if old.dtype == FLOAT64:
            # Its own roundings are the only ones: there is no second format to round to.
            assert abs(Fraction(float(new[index])) - exact.value) <= roundings * UNIT * exact.magnitude
        else:
            check_number(new[index], exact, roundings, old.dtype)


def check_bias(problem: Problem) -> None:
    layer, linear = problem.layer, problem.layer.linear
    weight = linear.weight.read()
    bias = None if linear.bias is None else linear.bias.read()
    new = problem.folding().bias()
    into = [Exact(Fraction())] * linear.in_channels
    for norm in problem.inner:
        into = [norm.scale(c) * into[c] + norm.shift(c) for c in range(len(into))]
    sums = [Exact(Fraction())] * linear.out_channels
    for index in np.ndindex(*weight.shape):
        channel = layer.out_channel(index)
        sums[channel] += Exact.of(weight[index]) * into[layer.in_channel(index)]
    axis = linear.output_axis if len(linear.weight.shape) == 2 else -1
    vector = (-1,) + (1,) * (-axis - 1)
    channels = np.arange(linear.out_channels).reshape(vector)
    shape = np.broadcast_shapes(channels.shape, () if bias is None else bias.shape)
    channel_of = np.broadcast_to(channels, shape)
    old = np.zeros(shape) if bias is None else np.broadcast_to(bias, shape)
    terms = weight.size // max(1, linear.out_channels)
    # A sum of n terms: n roundings at most. Each BN: 2.5 in its scale, 3 in its shift and 2 to apply it.
    roundings = Fraction(terms + 5 + 8 * problem.count)
    dtype = linear.weight.dtype if bias is None else bias.dtype
    if new is None:
        assert bias is None
    else:
        assert new.dtype == dtype
        assert new.shape == shape
    for index in np.ndindex(*shape):
        channel = int(channel_of[index])
        exact = Exact.of(linear.beta) * Exact.of(old[index]) + Exact.of(linear.alpha) * sums[channel]
        for norm in problem.outer:
            exact = norm.scale(channel) * exact + norm.shift(channel)
        check_number(0.0 if new is None else new[index], exact, roundings, dtype)


@QUICK
@given(problem=problems(DTYPES))
def test_every_weight_is_the_correctly_rounded_one(problem: Problem) -> None:
    check_weight(problem)


@QUICK
@given(problem=problems(DTYPES))
def test_every_bias_is_the_correctly_rounded_one_but_for_cancellation(problem: Problem) -> None:
    check_bias(problem)


@pytest.mark.slow
@settings(max_examples=800, deadline=None, derandomize=True)
@given(problem=problems(DTYPES))
def test_every_stored_number_is_the_correctly_rounded_one_at_length(problem: Problem) -> None:
    check_weight(problem)
    check_bias(problem)


def normal_problem(dtype: np.dtype, norms: int = 1, channels: int = 32, seed: int = 7) -> Problem:
    """A 3×3 convolution with the statistics of a trained network, large enough for a percentage."""
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(channels, 8, 3, 3)) * 0.1).astype(dtype)

    def norm() -> BatchNorm:
        return BatchNorm(
            gamma=rng.uniform(0.2, 1.5, channels).astype(np.float32),
            beta=rng.normal(size=channels).astype(np.float32),
            mean=rng.normal(size=channels).astype(np.float32),
            variance=rng.uniform(0.01, 2, channels).astype(np.float32),
            epsilon=float(np.float32(1e-5)),
        )

    layer = Layer(
        LinearMap(weight=ArrayTensor(weight), output_axis=-3, input_axis=-3),
        torch_run(torch.nn.functional.conv2d),
        (1, 8, 6, 6),
        in_channel=lambda index: index[1],
        out_channel=lambda index: index[0],
    )
    return Problem(layer, [], [norm() for _ in range(norms)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_weight_of_a_whole_layer_is_off_by_a_unit_in_the_last_place(dtype: np.dtype) -> None:
    """0 units for the three narrow dtypes, without any precondition: these numbers are near no tie. 4 in float64."""
    problem = normal_problem(dtype)
    old, new = problem.layer.linear.weight.read(), problem.folding().weight()
    [norm] = problem.outer
    for channel, row in enumerate(old):
        scale = norm.scale(channel)
        for before, after in zip(row.reshape(-1), new[channel].reshape(-1), strict=True):
            correct = (Exact.of(before) * scale).value
            if dtype == FLOAT64:
                assert abs(Fraction(float(after)) - correct) <= 4 * 2 * distance_to_float(correct, FLOAT64)
            else:
                assert float(after) == nearest(correct, dtype)


@pytest.mark.parametrize(("norms", "least"), [(1, 0.15), (2, 0.30)])
def test_a_fold_in_float32_would_be_off_in_many_weights(norms: int, least: float) -> None:
    """The usual fold, in the dtype of the weights: what 0 units above is to be compared with."""
    problem = normal_problem(FLOAT32, norms)
    naive = problem.layer.linear.weight.read()
    for norm in problem.outer:
        scale = norm.gamma / np.sqrt(norm.variance + np.float32(norm.epsilon))
        assert scale.dtype == FLOAT32
        naive = naive * scale.reshape(-1, 1, 1, 1)
    assert naive.dtype == FLOAT32
    off = (naive != problem.folding().weight()).mean()
    assert least < off < 0.9


def test_bfloat16_weights_are_not_rounded_twice() -> None:
    """The plain conversion of the same float64 products differs, on a weight whose product is just above a tie."""
    weight = np.full((1, 1, 1), 1.0, BFLOAT16)
    scale = 1 + 2**-8 + 2**-40
    folding = Folding(LinearMap(weight=ArrayTensor(weight), output_axis=-2, input_axis=-2)).absorb_output(
        Affine(np.array([scale]), np.array([0.0]))
    )
    assert float(folding.weight()[0, 0, 0]) == 1 + 2**-7
    assert float(np.array(scale).astype(ml_dtypes.bfloat16)) == 1.0


def test_a_tie_that_float64_cannot_see_goes_to_a_neighbour() -> None:
    """7 / 3 is no float64. 201 · 7 / 3 = 469 is a tie of bfloat16: 468 and 470 are equally near, 468 is even."""
    norm = BatchNorm(
        np.array([7.0], np.float32),
        np.zeros(1, np.float32),
        np.zeros(1, np.float32),
        np.array([9.0], np.float32),
        0.0,
    )
    assert norm.scale(0).value == Fraction(7, 3)
    assert nearest(Fraction(469), BFLOAT16) == 468
    weight = np.full((1, 1), 201, BFLOAT16)
    new = Folding(LinearMap(weight=ArrayTensor(weight))).absorb_output(norm.affine()).weight()
    assert float(new[0, 0]) in (468, 470)


def test_cancellation_in_a_bias_costs_what_the_terms_are_worth_and_no_more() -> None:
    """beta − scale · mean of nearly equal terms: float64 leaves 29 bits to spare over float32, not all of them here."""
    mean = np.array([3.0e6], np.float32)
    gamma = np.array([1 / 3], np.float32)
    exact_scale = fraction(gamma[0]) / root(Fraction(2))
    beta = np.array([nearest(exact_scale * fraction(mean[0]), FLOAT32)], np.float32)
    norm = BatchNorm(gamma, beta, mean, np.array([2.0], np.float32), 0.0)
    exact = norm.shift(0)
    assert exact.magnitude > 2**20 * abs(exact.value), "the terms cancel"
    weight = np.ones((1, 1, 1), np.float32)
    linear = LinearMap(weight=ArrayTensor(weight), output_axis=-2, input_axis=-2)
    bias = Folding(linear).absorb_output(norm.affine()).bias()
    assert bias is not None
    check_number(bias[0], exact, Fraction(6), FLOAT32)
    in_float32 = beta[0] - gamma[0] / np.sqrt(np.float32(2)) * mean[0]
    assert abs(fraction(in_float32) - exact.value) > 1000 * abs(fraction(bias[0]) - exact.value)


def vectors(scale: list[float], shift: list[float] | None = None) -> Affine:
    return Affine(np.array(scale, np.float64), np.array(shift or [0.0] * len(scale), np.float64))


def test_a_shift_goes_through_the_kernel_sum() -> None:
    """By hand: two groups, two taps."""
    weight = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)  # (out 2, in/groups 2, taps 2)
    linear = LinearMap(weight=ArrayTensor(weight), groups=2, output_axis=-2, input_axis=-2)
    assert (linear.in_channels, linear.out_channels) == (4, 2)
    folding = Folding(linear).absorb_input(vectors([1, 1, 1, 1], [1, 10, 100, 1000]))
    np.testing.assert_array_equal(folding.bias(), [1 * 3 + 10 * 7, 100 * 11 + 1000 * 15])
    np.testing.assert_array_equal(folding.weight(), weight)


def test_a_shift_goes_through_the_kernel_sum_of_a_transposed_convolution() -> None:
    """By hand: Cin = Cout = 4 in two groups, so that a swapped layout fits and is wrong."""
    weight = np.arange(8, dtype=np.float32).reshape(4, 2, 1)  # (in 4, out/groups 2, taps 1)
    linear = LinearMap(weight=ArrayTensor(weight), groups=2, out_first=False, output_axis=-2, input_axis=-2)
    assert (linear.in_channels, linear.out_channels) == (4, 4)
    shifted = Folding(linear).absorb_input(vectors([1, 1, 1, 1], [1, 10, 100, 1000]))
    np.testing.assert_array_equal(
        shifted.bias(), [0 * 1 + 2 * 10, 1 * 1 + 3 * 10, 4 * 100 + 6 * 1000, 5 * 100 + 7 * 1000]
    )
    scaled = Folding(linear).absorb_input(vectors([1, 10, 100, 1000]))
    np.testing.assert_array_equal(scaled.weight()[:, :, 0], [[0, 1], [20, 30], [400, 500], [6000, 7000]])
    scaled = Folding(linear).absorb_output(vectors([1, 10, 100, 1000]))
    np.testing.assert_array_equal(scaled.weight()[:, :, 0], [[0, 10], [2, 30], [400, 5000], [600, 7000]])


def test_a_layer_larger_than_a_block_is_computed_whole() -> None:
    """More rows than fit the cache at a time, and rows larger than a block each."""
    rng = np.random.default_rng(3)
    for shape, out_first, groups in [
        ((700, 300), True, 1),
        ((3, 70_000), True, 1),
        ((700, 300), False, 1),
        ((640, 4, 9, 9), True, 160),
        ((640, 4, 9, 9), False, 160),
    ]:
        weight = rng.normal(size=shape)
        linear = LinearMap(weight=ArrayTensor(weight), out_first=out_first, groups=groups)
        outer = Affine(rng.normal(size=linear.out_channels), rng.normal(size=linear.out_channels))
        inner = Affine(rng.normal(size=linear.in_channels), rng.normal(size=linear.in_channels))
        folding = Folding(linear).absorb_output(outer).absorb_input(inner)
        # As one dense matrix (out, in, taps), block diagonal where there are groups.
        blocks = weight.reshape(groups, shape[0] // groups, shape[1], -1)
        blocks = blocks if out_first else blocks.swapaxes(1, 2)
        new = folding.weight().reshape(groups, shape[0] // groups, shape[1], -1)
        new = new if out_first else new.swapaxes(1, 2)
        by_out, by_in = outer.scale.reshape(groups, -1, 1, 1), inner.scale.reshape(groups, 1, -1, 1)
        np.testing.assert_allclose(new, blocks * by_out * by_in, rtol=1e-14)
        sums = np.einsum("goit,gi->go", blocks, inner.shift.reshape(groups, -1)).reshape(-1)
        np.testing.assert_allclose(folding.bias(), outer.scale * sums + outer.shift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, -0.0, 1e-300])
def test_a_shift_before_a_partial_kernel_is_lost(shift: float) -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((2, 2, 3), np.float32)), partial_kernel="pads with zeros")
    folding = Folding(linear).absorb_input(vectors([2, 3], [0, shift]))
    assert folding.shift_is_lost() is (shift != 0)
    assert not Folding(linear).shift_is_lost()
    assert not Folding(linear).absorb_output(vectors([1, 1], [5, 5])).shift_is_lost()


def test_why_a_shift_before_zero_padding_is_not_absorbed() -> None:
    """The fold that `shift_is_lost` forbids is right inside and wrong at the border; without a shift it is exact."""
    rng = np.random.default_rng(5)
    weight, x = rng.normal(size=(2, 2, 3)), rng.normal(size=(1, 2, 5))
    linear = LinearMap(weight=ArrayTensor(weight), output_axis=-2, input_axis=-2, partial_kernel="pads with zeros")

    def padded(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return torch.nn.functional.conv1d(torch.from_numpy(values), torch.from_numpy(kernel), padding=1).numpy()

    scale = rng.normal(size=2)
    for shift, same_at_border in ((rng.normal(size=2), False), (np.zeros(2), True)):
        folding = Folding(linear).absorb_input(Affine(scale, shift))
        assert folding.shift_is_lost() is not same_at_border
        expected = padded(x * scale[:, None] + shift[:, None], weight)
        bias = folding.bias()
        got = padded(x, folding.weight()) + (0 if bias is None else bias[:, None])
        np.testing.assert_allclose(got[..., 1:-1], expected[..., 1:-1], rtol=1e-12)
        assert np.allclose(got, expected, rtol=1e-9) is same_at_border


def test_nothing_absorbed_is_nothing_changed() -> None:
    weight, bias = np.array([[0.1, -0.0]], np.float32), np.array([0.3], np.float32)
    folding = Folding(LinearMap(weight=ArrayTensor(weight), bias=ArrayTensor(bias)))
    np.testing.assert_array_equal(folding.weight().view(np.uint32), weight.view(np.uint32))
    np.testing.assert_array_equal(folding.bias(), bias)
    assert Folding(LinearMap(weight=ArrayTensor(weight))).bias() is None


def test_a_bias_that_becomes_zero_stays_a_bias() -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((2, 2), np.float32)), bias=ArrayTensor(np.ones(2, np.float32)))
    np.testing.assert_array_equal(Folding(linear).absorb_output(vectors([0, 0])).bias(), [0.0, 0.0])


def test_a_map_without_bias_gets_none_for_a_scale_alone() -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((2, 2), np.float16)))
    assert Folding(linear).absorb_output(vectors([2, 3])).absorb_input(vectors([4, 5])).bias() is None
    bias = Folding(linear).absorb_output(vectors([2, 3], [0, 1])).bias()
    assert bias is not None
    assert bias.dtype == np.float16
    np.testing.assert_array_equal(bias, [0, 1])


def test_the_dtype_of_a_bias_is_its_own() -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((1, 1), np.float16)), bias=ArrayTensor(np.array([0.1], np.float32)))
    bias = Folding(linear).absorb_output(vectors([1 / 3], [1])).bias()
    assert bias is not None
    assert bias.dtype == np.float32
    assert bias[0] == np.float32(np.float64(np.float32(0.1)) / 3 + 1)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3, 1)])
def test_a_scalar_and_a_column_bias_of_a_product_from_the_left(shape: tuple[int, ...]) -> None:
    weight = np.ones((3, 2), np.float64)
    for bias in (np.array(2.0), np.full(shape, 2.0)):
        linear = LinearMap(weight=ArrayTensor(weight), bias=ArrayTensor(bias), output_axis=-2, input_axis=-2)
        new = Folding(linear).absorb_output(vectors([1, 2, 3], [0, 10, 100])).bias()
        assert new is not None
        assert new.shape == (shape if bias.ndim else (3, 1))
        np.testing.assert_array_equal(new.reshape(-1), [2, 14, 106])


def test_zero_gamma_leaves_the_shift_alone() -> None:
    weight, bias = np.full((2, 3), 1e30, np.float32), np.full(2, 1e30, np.float32)
    linear = LinearMap(weight=ArrayTensor(weight), bias=ArrayTensor(bias))
    folding = Folding(linear).absorb_output(vectors([0, -0.0], [0.5, 0.25]))
    assert folding.defect() is None
    np.testing.assert_array_equal(folding.weight(), np.zeros((2, 3)))
    np.testing.assert_array_equal(folding.bias(), [0.5, 0.25])


def array_with(shape: tuple[int, ...], dtype: np.dtype, at: tuple[int, ...], value: float) -> np.ndarray:
    array = np.ones(shape, dtype)
    array[at] = value
    return array


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [1.0, 0.0, -1.0])
def test_a_weight_that_is_not_finite_is_found(dtype: np.dtype, value: float, scale: float) -> None:
    for at in [(2, 0, 0), (2, 1, 0), (2, 1, 1)]:
        linear = LinearMap(weight=ArrayTensor(array_with((4, 2, 2), dtype, at, value)))
        folding = Folding(linear).absorb_output(vectors([1, 1, scale, 1]))
        assert folding.defect() == "the weight holds values that are not finite (output channel 2)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bias_that_is_not_finite_is_found(value: float) -> None:
    linear = LinearMap(
        weight=ArrayTensor(np.ones((3, 2), np.float32)),
        bias=ArrayTensor(np.array([1, value, 1], np.float32)),
    )
    folding = Folding(linear).absorb_output(vectors([1, 1, 1]))
    assert folding.defect() == "the bias holds values that are not finite (output channel 1)"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_channel_of_an_overflow_is_named_in_every_layout(dtype: np.dtype) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    cases = [
        ((4, 2, 3), True, 2, (2, 0, 1), 2),
        ((6, 2), True, 1, (5, 1), 5),
        ((6, 2), False, 1, (5, 1), 1),
        # (in 4, out/groups 3) in two groups: row 3 belongs to the second group, whose first output channel is 3.
        ((4, 3, 2), False, 2, (3, 2, 1), 5),
        ((4, 3, 2), False, 2, (1, 0, 0), 0),
    ]
    for shape, out_first, groups, at, channel in cases:
        weight = array_with(shape, dtype, at, largest)
        linear = LinearMap(weight=ArrayTensor(weight), out_first=out_first, groups=groups)
        double = vectors([2.0] * linear.out_channels)
        expected = f"the new weight overflows {dtype} in output channel {channel}"
        assert Folding(linear).absorb_output(double).defect() == expected
        double = vectors([2.0] * linear.in_channels)
        assert Folding(linear).absorb_input(double).defect() == expected
        assert Folding(linear).absorb_input(vectors([0.5] * linear.in_channels)).defect() is None


@pytest.mark.parametrize(
    ("shape", "output_axis", "at", "channel"),
    [
        ((3,), -1, (1,), 1),
        ((1, 3), -1, (0, 1), 1),
        ((4, 3), -1, (2, 1), 1),
        ((3, 1), -2, (1, 0), 1),
        ((3, 4), -2, (1, 2), 1),
        ((1, 3, 1), -2, (0, 1, 0), 1),
        ((1, 1, 3), -1, (0, 0, 1), 1),
    ],
)
def test_the_channel_of_an_overflowing_bias_is_named(
    shape: tuple[int, ...], output_axis: int, at: tuple[int, ...], channel: int
) -> None:
    linear = LinearMap(
        weight=ArrayTensor(np.ones((3, 2), np.float16)),
        bias=ArrayTensor(array_with(shape, FLOAT16, at, 60000)),
        output_axis=output_axis,
        input_axis=output_axis,
    )
    folding = Folding(linear).absorb_output(vectors([2, 2, 2]))
    assert folding.defect() == f"the new bias overflows float16 in output channel {channel}"


@pytest.mark.parametrize(
    ("dtype", "weight", "scale", "lost"),
    [
        ("float16", [[0.01, 0.002], [0.005, 0.0]], [1e-3, 1e-3], True),
        ("float16", [[0.01, 0.002], [0.005, 0.0]], [1e-3, 1e-1], False),
        ("float16", [[0.01, 0.002], [0.005, 0.0]], [0.0, 0.0], False),
        ("float16", [[1e-5, 2e-5], [3e-5, 0.0]], [1.0, -1.0], False),
        ("bfloat16", [[0.01, 0.002], [0.005, 0.0]], [1e-3, 1e-3], False),
        ("float32", [[0.01, 0.002], [0.005, 0.0]], [1e-30, 1e-30], False),
    ],
)
def test_a_weight_that_is_all_below_the_normal_numbers_of_float16_is_found(
    dtype: str, weight: list[list[float]], scale: list[float], *, lost: bool
) -> None:
    """Rounded there, 1e-5 is off by 0.2 %, and 1e-8 is gone."""
    stored = np.array(weight).astype(dtype)
    for out_first in (True, False):
        linear = LinearMap(weight=ArrayTensor(stored if out_first else stored.T), out_first=out_first)
        defect = Folding(linear).absorb_output(vectors(scale)).defect()
        said = "the new weight is too small for the digits of float16, whose smallest normal number is larger"
        assert defect == (said if lost else None)


def test_a_shift_that_overflows_a_missing_bias_is_found() -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((2, 1, 1), np.float16)), output_axis=-2, input_axis=-2)
    folding = Folding(linear).absorb_output(vectors([1, 1], [0, 65520]))
    assert folding.defect() == "the new bias overflows float16 in output channel 1"
    assert Folding(linear).absorb_output(vectors([1, 1], [0, 65519])).defect() is None


@QUICK
@given(problem=problems([FLOAT16, BFLOAT16, FLOAT32]), exponent=st.integers(-3, 3))
def test_a_defect_is_found_exactly_where_something_overflows(problem: Problem, exponent: int) -> None:
    """The cheap bound may only ever spare work: scales near the edge of the range, checked against the arrays."""
    linear = problem.layer.linear
    largest = float(ml_dtypes.finfo(linear.weight.dtype).max)
    scale = np.full(linear.out_channels, 1.0)
    scale[-1] = largest * 2.0**exponent
    folding = problem.folding().absorb_output(Affine(scale, np.zeros_like(scale)))
    arrays = [array for array in (folding.weight(), folding.bias()) if array is not None]
    finite = all(bool(np.isfinite(array.astype(np.float64)).all()) for array in arrays)
    assert (folding.defect() is None) is finite


@pytest.mark.parametrize(
    ("weight", "inner", "outer"),
    [
        (1e300, [1.0, 1.0], [1.0, 1e10]),
        (1e300, [1.0, 1e10], [1.0, 1.0]),
        (1.0, [1.0, 1.0], [1.0, np.inf]),
        (0.0, [1.0, 1.0], [1.0, np.inf]),
        (1.0, [1.0, 1.0], [1.0, np.nan]),
        (1.0, [np.inf, 1.0], [1.0, 0.0]),
    ],
)
def test_float64_overflows_are_found_without_a_warning(weight: float, inner: list[float], outer: list[float]) -> None:
    linear = LinearMap(weight=ArrayTensor(np.full((2, 2), weight)))
    defect = Folding(linear).absorb_input(vectors(inner)).absorb_output(vectors(outer)).defect()
    assert defect is not None
    assert "overflows float64 in output channel" in defect


@pytest.mark.parametrize("out_first", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (0, 0, 1), (0, 3), (3, 0), (2, 3, 0)], ids=str)
def test_empty_weights(shape: tuple[int, ...], *, with_bias: bool, out_first: bool) -> None:
    weight = np.ones(shape, np.float32)
    linear = LinearMap(weight=ArrayTensor(weight), out_first=out_first)
    rows, columns = shape[:2]
    assert (linear.out_channels, linear.in_channels) == ((rows, columns) if out_first else (columns, rows))
    if with_bias:
        linear = LinearMap(
            weight=linear.weight,
            bias=ArrayTensor(np.ones(linear.out_channels, np.float32)),
            out_first=out_first,
        )
    outer = Affine(np.full(linear.out_channels, 2.0), np.full(linear.out_channels, 3.0))
    inner = Affine(np.full(linear.in_channels, 2.0), np.full(linear.in_channels, 3.0))
    folding = Folding(linear).absorb_output(outer).absorb_input(inner)
    assert folding.weight().shape == shape
    assert folding.defect() is None
    bias = folding.bias()
    assert (0 if bias is None else bias.size) == linear.out_channels
    if bias is not None:
        np.testing.assert_array_equal(bias, 5.0 if with_bias else 3.0)


def test_a_weight_in_any_memory_order_and_read_only() -> None:
    rng = np.random.default_rng(9)
    plain = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    outer = Affine(rng.normal(size=4), rng.normal(size=4))
    expected = Folding(LinearMap(weight=ArrayTensor(plain))).absorb_output(outer).weight()
    padded = np.zeros((8, 3, 2, 2), np.float32)
    padded[::2] = plain
    frozen = plain.copy()
    frozen.flags.writeable = False
    for weight in (np.asfortranarray(plain), padded[::2], frozen):
        before = weight.copy()
        got = Folding(LinearMap(weight=ArrayTensor(weight))).absorb_output(outer).weight()
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(weight, before)


def test_folding_changes_neither_itself_nor_its_affines() -> None:
    linear = LinearMap(weight=ArrayTensor(np.ones((2, 2), np.float32)))
    first = Folding(linear).absorb_output(vectors([2, 3]))
    second = first.absorb_output(vectors([5, 7])).absorb_input(vectors([11, 13]))
    np.testing.assert_array_equal(first.weight(), [[2, 2], [3, 3]])
    np.testing.assert_array_equal(second.weight(), [[110, 130], [231, 273]])
    np.testing.assert_array_equal(first.weight(), [[2, 2], [3, 3]])
    assert first.inner is None
