"""Each row of the rule table on small ONNX models: where it applies, and where its guard stops it.

Backward, a linear map, the operator, a BN; forward, a BN, the operator, a linear map. Sizes are equal on purpose. A
guard's wrong answer is what a tool computes that folds the BN into the map as if nothing were in between.
"""

import re
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_fold import add_initializers, check_values, fold, parse, random, random_feeds, scale_and_shift

from bnfold.planning.plan import Direction

BATCHES = ("2", "N")
INTEGERS = {
    "to_rows": [-1, 4],
    "to_groups": [-1, 2, 2, 4, 4],
    "to_channels": [-1, 4, 4, 4],
    "to_squares": [-1, 4, 2, 2],
    "to_image": [1, 4, 3, 3],
    "to_flat": [-1, 4, 16],
    "zero": [0],
    "one": [1],
    "minus_one": [-1],
    "two": [2],
    "three": [3],
    "far": [2**62],
    "far_below": [-(2**62)],
    "spatial": [2, 3],
    "twice": [1, 1, 2, 1],
    "halves": [2, 2],
    "turned": [3, 0, 2, 1],
    "repeated": [0, 0, 1, 2],
    "border": [0, 0, 1, 1, 0, 0, 1, 1],
    "channel_border": [0, 1, 0, 0, 0, 1, 0, 0],
    "none_and_one_off": [0, 0, 0, 0, 0, -1, 0, 0],
}
FLOATS = {"doubled": [1, 1, 2, 2], "stretched": [1, 1, 1, 1.2], "box": [0, 0, 0, 0, 1, 1, 1.5, 1.5]}


@dataclass(frozen=True)
class Case:
    """One operator between a map and a BN.

    Attributes:
        op: Nodes that compute `r` from `i`; they may read a second input `z` of the shape of `x`.
        x: The input's shape behind the batch.
        map: The linear map.
        out: Its output channels.
        inner: Its input channels.
        channels: Those of the BN.
        rank: That of the output.
        bn: Which signs gamma has, and whether there is a shift.
        code: Why the BN stays, if it does.
    """

    op: str
    x: str = "4,4,4"
    map: str = "Conv"
    out: int = 4
    inner: int = 4
    channels: int = 4
    rank: int = 4
    bn: str = "any"
    code: str = ""


def batch_norm_parameters(case: Case) -> dict[str, np.ndarray]:
    """Gammas of both signs and zero, unless the case asks for others."""
    draw = np.random.default_rng(case.channels)
    gamma, variance = draw.uniform(0.5, 2, case.channels), draw.uniform(0.25, 4, case.channels)
    if not case.bn.startswith("positive"):
        gamma *= np.where(np.arange(case.channels) % 3 == 1, -1, 1)
        gamma[-1] *= case.channels < 3
    if case.bn == "shift":
        gamma, variance = np.ones(case.channels), np.ones(case.channels)
    if case.bn == "tiled":
        gamma = np.tile(gamma[:1], case.channels) * 1.0
    shift = 0.0 if case.bn.endswith("scale") else 1.0
    beta, mean = (shift * draw.uniform(0.1, 1, case.channels) for _ in "bm")
    if case.bn == "tiled":
        beta, mean = (np.full(case.channels, array[0]) for array in (beta, mean))
        return {"bn_g": gamma, "bn_b": beta, "bn_m": mean, "bn_v": np.full(case.channels, 2.0)}
    return {"bn_g": gamma, "bn_b": beta, "bn_m": mean, "bn_v": variance}


def build(case: Case, batch: str, *, forward: bool) -> onnx.ModelProto:
    shape = f"double[{batch},{case.x}]"
    second = f", {shape} z" if re.search(r"\bz\b", case.op) else ""
    result = f"double[{','.join('ABCDEF'[: case.rank])}]"
    norm = "{y} = BatchNormalization <epsilon=0.0> ({x}, bn_g, bn_b, bn_m, bn_v)"
    linear = {
        "Conv": "{y} = Conv ({x}, w, c)",
        "Padded": "{y} = Conv <pads=[1,1,1,1]> ({x}, w, c)",
        "MatMul": "p = MatMul ({x}, w) {y} = Add (p, c)",
        "Gemm": "{y} = Gemm ({x}, w, c)",
    }[case.map]
    first, last = (norm, linear) if forward else (linear, norm)
    body = f"{first.format(x='x', y='i')} {case.op} {last.format(x='r', y='y')}"
    model = parse(f"agraph ({shape} x{second}) => ({result} y) {{ {body} }}", opset=19)
    kernel = {"Conv": (1, 1), "Padded": (3, 3)}.get(case.map)
    weight = random(case.inner, case.out) if kernel is None else random(case.out, case.inner, *kernel)
    integers = {name: np.array(numbers, np.int64) for name, numbers in INTEGERS.items()}
    floats = {name: np.array(numbers, np.float32) for name, numbers in FLOATS.items()}
    others = {
        "slope": random(4, 1, 1),
        "half": np.array(1.5),
        "nothing": np.array(0.0),
        "zeros": np.zeros((1, 4, 4, 4)),
        "infinity": np.array(np.inf),
        "minus_infinity": np.array([-np.inf]),
        "largest": np.array(np.finfo(np.float64).max),
        "no_number": np.array(np.nan),
        "w2": random(4, 4, 1, 1, seed=5),
    }
    parameters = {"w": weight, "c": random(case.out, seed=3), **batch_norm_parameters(case)}
    read = {name for node in model.graph.node for name in node.input}
    everything = {**integers, **floats, **others, **parameters}
    add_initializers(model.graph, {name: array for name, array in everything.items() if name in read})
    return model


def naive(model: onnx.ModelProto, *, forward: bool) -> onnx.ModelProto:
    """The BN in the weights of the map, whatever is between them."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in wrong.graph.initializer}
    scale, shift = scale_and_shift(tensors, epsilon=0.0)
    weight = tensors["w"]
    along = 0 if (weight.ndim == 4) != forward else 1
    scale, shift = (np.resize(array, weight.shape[along]) for array in (scale, shift))
    vector = [1] * weight.ndim
    vector[along] = -1
    bias = tensors["c"]
    if forward:
        axes = tuple(axis for axis in range(weight.ndim) if axis != 1 - along)
        bias = bias + (weight * shift.reshape(vector)).sum(axis=axes)
    else:
        bias = scale * bias + shift
    index, norm = next((i, n) for i, n in enumerate(wrong.graph.node) if n.op_type == "BatchNormalization")
    wrong.graph.node[index].CopyFrom(onnx.helper.make_node("Identity", norm.input[:1], norm.output))
    for tensor in wrong.graph.initializer:
        if tensor.name in "wc":
            changed = weight * scale.reshape(vector) if tensor.name == "w" else bias
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return wrong


SHUFFLE = "a = Reshape (i, to_groups) b = Transpose <perm=[0,2,1,3,4]> (a) r = Reshape (b, to_channels)"
CROP = "r = Slice (i, one, far, three, one)"
TWO_WAYS = "o = Sigmoid (i) r = Mul (o, i)"

BACKWARD = {
    "Identity": Case("r = Identity (i)"),
    "Dropout": Case("r = Dropout (i)"),
    "Cast to the same type": Case("r = Cast <to=11> (i)"),
    "Transpose": Case("r = Transpose <perm=[0,3,1,2]> (i)", map="MatMul"),
    "Reshape merges batch and tokens (LeViT)": Case("r = Reshape (i, to_rows)", "4,4", "MatMul", rank=2),
    "Reshape splits channels": Case("r = Reshape (i, to_groups)", channels=2, rank=5),
    "Reshape merges the image": Case("r = Reshape (i, to_flat)", rank=3),
    "channel shuffle": Case(SHUFFLE),
    "Flatten": Case("g = GlobalAveragePool (i) r = Flatten (g)", rank=2),
    "Squeeze": Case("g = GlobalMaxPool (i) r = Squeeze (g, spatial)", rank=2, bn="positive"),
    "Unsqueeze": Case("r = Unsqueeze (i, spatial)", "4", "Gemm"),
    "Concat": Case("j = Conv (x, w2) r = Concat <axis=1> (i, j)", out=2, channels=6),
    "Concat along the image": Case("j = Conv (x, w2) r = Concat <axis=-1> (i, j)"),
    "Split": Case("r, o = Split <axis=1> (i, halves)", channels=2),
    "Split, its parts joined in another order": Case("q, o = Split <axis=1> (i, halves) r = Concat <axis=1> (o, q)"),
    "Split, the other part is read": Case(
        "q, o = Split <axis=1> (i, halves) t = Tanh (o) r = Identity (q)", channels=2
    ),
    "Slice of channels": Case("r = Slice (i, one, three, one)", channels=2),
    "Slice of channels, from the end": Case("r = Slice (i, minus_one, far_below, one, minus_one)"),
    "Slice of the image": Case(CROP),
    "Gather turns channels": Case("r = Gather <axis=1> (i, turned)"),
    "Gather of one row": Case("k = Constant <value_int=1> () r = Gather <axis=2> (i, k)", rank=3),
    "Gather repeats along the image": Case("r = Gather <axis=3> (i, repeated)"),
    "Expand": Case("g = GlobalAveragePool (i) r = Expand (g, to_image)"),
    "Tile": Case("r = Tile (i, twice)"),
    "Add": Case("j = Conv (x, w2) r = Add (i, j)"),
    "Sub": Case("j = Conv (x, w2) r = Sub (j, i)"),
    "Sum": Case("j = Conv (x, w2) k = Conv (z, w2) r = Sum (j, i, k)"),
    "Mean": Case("j = Conv (x, w2) k = Conv (z, w2) r = Mean (j, i, k)"),
    "Mul": Case("g = Sigmoid (z) r = Mul (g, i)", bn="any scale"),
    "Div": Case("g = Exp (z) r = Div (i, g)", bn="any scale"),
    "AveragePool": Case("r = AveragePool <kernel_shape=[2,2]> (i)"),
    "AveragePool, pads not counted": Case("r = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1]> (i)"),
    "AveragePool, pads counted": Case(
        "r = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (i)", bn="any scale"
    ),
    "AveragePool, no pads to count": Case("r = AveragePool <kernel_shape=[2,2], count_include_pad=1> (i)"),
    "GlobalAveragePool": Case("r = GlobalAveragePool (i)"),
    "ReduceMean": Case("r = ReduceMean (i, spatial)"),
    "ReduceMean drops the axes": Case("r = ReduceMean <keepdims=0> (i, spatial)", rank=2),
    "ReduceSum": Case("r = ReduceSum (i, spatial)", bn="any scale"),
    "MaxPool": Case("r = MaxPool <kernel_shape=[2,2], pads=[1,1,1,1]> (i)", bn="positive"),
    "GlobalMaxPool": Case("r = GlobalMaxPool (i)", bn="positive"),
    "ReduceMax": Case("r = ReduceMax <keepdims=0> (i, three)", bn="positive", rank=3),
    "Relu": Case("r = Relu (i)", bn="positive scale"),
    "LeakyRelu": Case("r = LeakyRelu <alpha=-0.5> (i)", bn="positive scale"),
    "Clip at zero": Case("r = Clip (i, nothing)", bn="positive scale"),
    "Clip at zero from above": Case("r = Clip (i, , nothing)", bn="positive scale"),
    "Clip from zero to infinity": Case("r = Clip (i, nothing, infinity)", bn="positive scale"),
    "Clip from zero to the largest number": Case("r = Clip (i, nothing, largest)", bn="positive scale"),
    "Clip without bounds": Case("r = Clip (i)"),
    "Clip at infinities": Case("r = Clip (i, minus_infinity, infinity)"),
    "Max with zero": Case("r = Max (i, nothing)", bn="positive scale"),
    "Max of zero": Case("r = Max (nothing, i)", bn="positive scale"),
    "Min with zero": Case("r = Min (i, nothing)", bn="positive scale"),
    "Max of one": Case("r = Max (i)"),
    "Min of one": Case("r = Min (i)"),
    "Sum of one": Case("r = Sum (i)"),
    "Mean of one": Case("r = Mean (i)"),
    "Einsum of one": Case('e = Einsum <equation="abcd->acdb"> (i) r = Transpose <perm=[0,3,1,2]> (e)'),
    "PRelu": Case("r = PRelu (i, slope)", bn="positive scale"),
    "Resize, nearest": Case('r = Resize <mode="nearest"> (i, , doubled)'),
    "Resize, linear": Case('r = Resize <mode="linear"> (i, , doubled)'),
    "Resize, cubic": Case('r = Resize <mode="cubic"> (i, , doubled)'),
    "Pad, reflect": Case('r = Pad <mode="reflect"> (i, border)'),
    "Pad, edge": Case('r = Pad <mode="edge"> (i, border)'),
    "Pad, wrap": Case('r = Pad <mode="wrap"> (i, border)'),
    "Pad, zeros": Case("r = Pad (i, border)", bn="any scale"),
    "DepthToSpace, DCR": Case("r = DepthToSpace <blocksize=2> (i)", out=8, channels=2),
    "DepthToSpace, CRD": Case('r = DepthToSpace <blocksize=2, mode="CRD"> (i)', out=8, channels=2),
    "SpaceToDepth": Case("r = SpaceToDepth <blocksize=2> (i)", out=1, channels=4, bn="tiled"),
}

FORWARD = {
    "Identity": Case("r = Identity (i)"),
    "Transpose": Case("r = Transpose <perm=[0,2,3,1]> (i)", map="MatMul"),
    "Reshape": Case("a = Transpose <perm=[0,2,3,1]> (i) r = Reshape (a, to_rows)", map="Gemm", rank=2),
    "channel shuffle": Case(SHUFFLE),
    "Flatten": Case("r = Flatten (i)", map="Gemm", inner=64, rank=2),
    "Squeeze": Case("g = GlobalAveragePool (i) r = Squeeze (g, spatial)", map="Gemm", rank=2),
    "Unsqueeze": Case("r = Unsqueeze (i, spatial)", "4"),
    "Concat, the other input is free": Case("r = Concat <axis=1> (z, i)", inner=8),
    "Split": Case("r, o = Split <axis=1> (i, halves)", inner=2),
    "Slice": Case("r = Slice (i, one, three, one)", inner=2),
    "Gather repeats channels": Case("r = Gather <axis=1> (i, repeated)"),
    "Expand": Case("g = GlobalAveragePool (i) r = Expand (g, to_image)"),
    "Tile": Case("r = Tile (i, twice)"),
    "Add": Case("r = Add (z, i)", bn="shift"),
    "Sub": Case("r = Sub (z, i)", bn="shift"),
    "Add to itself": Case("r = Add (i, i)"),
    "Mean": Case("r = Mean (z, i, z)", bn="shift"),
    "Mean of itself": Case("r = Mean (i, i)"),
    "Mul": Case("g = Sigmoid (z) r = Mul (i, g)", bn="any scale"),
    "Mul with itself": Case("r = Mul (i, i)", bn="any scale"),
    "Div": Case("g = Exp (z) r = Div (i, g)", bn="any scale"),
    "AveragePool": Case("r = AveragePool <kernel_shape=[2,2]> (i)"),
    "GlobalAveragePool": Case("r = GlobalAveragePool (i)"),
    "ReduceMean drops the axes": Case("r = ReduceMean <keepdims=0> (i, spatial)", map="Gemm", rank=2),
    "ReduceSum": Case("r = ReduceSum (i, spatial)", bn="any scale"),
    "MaxPool": Case("r = MaxPool <kernel_shape=[2,2]> (i)", bn="positive"),
    "Relu": Case("r = Relu (i)", bn="positive scale"),
    "PRelu": Case("r = PRelu (i, slope)", bn="positive scale"),
    "Resize": Case('r = Resize <mode="linear"> (i, , doubled)'),
    "Pad, reflect": Case('r = Pad <mode="reflect"> (i, border)'),
    "Pad, zeros": Case("r = Pad (i, border)", bn="any scale"),
    "DepthToSpace": Case("r = DepthToSpace <blocksize=2> (i)", "8,4,4", inner=2, channels=8, bn="tiled"),
    "SpaceToDepth": Case("r = SpaceToDepth <blocksize=2> (i)", inner=16),
    "zeros padded, no shift": Case("r = Identity (i)", map="Padded", bn="any scale"),
}

BACKWARD_STOPS = {
    "Transpose puts another axis there": Case("r = Transpose <perm=[0,2,1,3]> (i)", code="channel_axis"),
    "Reshape leaves the map's axis elsewhere": Case(
        "r = Reshape (i, to_squares)", "4,4", "MatMul", code="channel_axis"
    ),
    "Reshape mixes": Case("t = Transpose <perm=[0,2,3,1]> (i) r = Reshape (t, to_channels)", code="channel_axis"),
    "Concat with an input": Case("r = Concat <axis=2> (i, z)", code="model_input"),
    "Concat with itself": Case("r = Concat <axis=2> (i, i)", code="other_consumers"),
    "Gather repeats": Case("r = Gather <axis=1> (i, repeated)", code="varies"),
    "Expand": Case("r = Expand (i, to_channels_of_two)", "4,1,1", out=1, code="varies"),
    "Add of an input": Case("r = Add (i, z)", code="model_input"),
    "Add to itself": Case("r = Add (i, i)", code="other_consumers"),
    "Add broadcasts": Case("g = ReduceMean (z, one) k = Tanh (g) r = Add (i, k)", code="broadcast"),
    "Mul, a shift": Case("g = Sigmoid (z) r = Mul (g, i)", code="shift"),
    "Mul with itself": Case("r = Mul (i, i)", bn="any scale", code="other_consumers"),
    "Div, a shift": Case("g = Exp (z) r = Div (i, g)", code="shift"),
    "Div, the denominator": Case("r = Div (z, i)", bn="any scale", code="model_input"),
    "AveragePool, pads counted": Case(
        "r = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (i)", code="shift"
    ),
    "AveragePool, pads by ceil_mode counted": Case(
        "r = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1> (i)", code="shift"
    ),
    "ReduceSum, a shift": Case("r = ReduceSum (i, spatial)", code="shift"),
    "MaxPool, a negative scale": Case("r = MaxPool <kernel_shape=[2,2]> (i)", code="negative_scale"),
    "ReduceMax, a negative scale": Case("r = ReduceMax (i, spatial)", code="negative_scale"),
    "Relu, a negative scale": Case("r = Relu (i)", bn="any scale", code="negative_scale"),
    "Relu, a shift": Case("r = Relu (i)", bn="positive", code="nonlinear"),
    "LeakyRelu, a negative scale": Case("r = LeakyRelu (i)", bn="any scale", code="negative_scale"),
    "PRelu, a shift": Case("r = PRelu (i, slope)", bn="positive", code="nonlinear"),
    "Sigmoid": Case("r = Sigmoid (i)", bn="positive scale", code="nonlinear"),
    "HardSwish": Case("r = HardSwish (i)", bn="positive scale", code="nonlinear"),
    "Clip": Case("r = Clip (i, nothing, half)", bn="positive scale", code="nonlinear"),
    "Clip at zero and one half": Case("r = Clip (i, nothing, half)", bn="positive scale", code="nonlinear"),
    "Clip at the wrong infinity": Case("r = Clip (i, infinity, nothing)", bn="positive scale", code="nonlinear"),
    "Clip at no number": Case("r = Clip (i, nothing, no_number)", bn="positive scale", code="nonlinear"),
    "Max with a number": Case("r = Max (i, half)", bn="positive scale", code="no_rule"),
    "Max with zero, a shift": Case("r = Max (i, nothing)", bn="positive", code="nonlinear"),
    "Max with zeros that may be more": Case("r = Max (i, zeros)", bn="positive scale", code="no_rule"),
    "Einsum of a diagonal": Case('r = Einsum <equation="abcc->abc"> (i)', rank=3, code="no_rule"),
    "Einsum of a sum": Case('r = Einsum <equation="abcd->abc"> (i)', rank=3, code="no_rule"),
    "Pad, zeros and a shift": Case("r = Pad (i, border)", code="shift"),
    "Pad, another number": Case("r = Pad (i, border, half)", bn="any scale", code="no_rule"),
    "Resize, tf_crop_and_resize": Case(
        'r = Resize <coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0> (i, box, doubled)',
        code="no_rule",
    ),
    "SpaceToDepth": Case("r = SpaceToDepth <blocksize=2> (i)", out=1, channels=4, code="varies"),
    "read twice": Case("o = Sigmoid (i) r = Add (i, o)", bn="shift", code="other_consumers"),
}

FORWARD_STOPS = {
    "Transpose puts another axis there": Case("r = Transpose <perm=[0,2,1,3]> (i)", code="channel_axis"),
    "Reshape leaves the map's axis elsewhere": Case(
        "r = Reshape (i, to_channels)", "4,2,2,4", map="MatMul", rank=4, code="channel_axis"
    ),
    "Expand makes many of one": Case("r = Add (i, z)", code="varies"),
    "Mul, a shift": Case("g = Sigmoid (z) r = Mul (i, g)", code="shift"),
    "Div by it": Case("r = Div (z, i)", bn="positive scale", code="shift"),
    "Div by itself": Case("r = Div (i, i)", bn="positive scale", code="shift"),
    "AveragePool, pads counted": Case(
        "r = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (i)", code="shift"
    ),
    "ReduceMean over channels": Case("r = ReduceMean (i, one)", inner=1, code="varies"),
    "ReduceSum, a shift": Case("r = ReduceSum (i, spatial)", code="shift"),
    "MaxPool, a negative scale": Case("r = MaxPool <kernel_shape=[2,2]> (i)", code="negative_scale"),
    "Relu, a shift": Case("r = Relu (i)", bn="positive", code="model_input"),
    "Relu, a negative scale": Case("r = Relu (i)", bn="any scale", code="negative_scale"),
    "Resize of channels": Case('r = Resize <mode="nearest"> (i, , widened)', inner=8, code="varies"),
    "Pad of channels": Case('r = Pad <mode="edge"> (i, channel_border)', inner=6, code="varies"),
    "Pad, zeros and a shift": Case("r = Pad (i, border)", code="shift"),
    "DepthToSpace": Case("r = DepthToSpace <blocksize=2> (i)", inner=1, code="varies"),
    "zeros padded, a shift": Case("r = Identity (i)", map="Padded", code="padded_shift"),
}

INTEGERS["to_channels_of_two"] = [1, 4, 1, 1]
FLOATS["widened"] = [1, 2, 1, 1]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", BACKWARD)
def test_an_affine_moves_backward(name: str, batch: str) -> None:
    case = BACKWARD[name]
    folded = fold(build(case, batch, forward=False))
    assert folded.codes == []
    (move,) = folded.plan.folds
    assert move.direction is Direction.BACKWARD
    assert len(move.path) >= 1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FORWARD)
def test_an_affine_moves_forward(name: str, batch: str) -> None:
    case = FORWARD[name]
    folded = fold(build(case, batch, forward=True))
    assert folded.codes == []
    (move,) = folded.plan.folds
    assert move.direction is Direction.FORWARD


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", BACKWARD_STOPS)
def test_a_guard_stops_it_backward(name: str, batch: str) -> None:
    model = build(BACKWARD_STOPS[name], batch, forward=False)
    assert fold(model).codes == [BACKWARD_STOPS[name].code]
    with np.errstate(divide="ignore"), pytest.raises(AssertionError, match="off by"):
        check_values(model, naive(model, forward=False), random_feeds(model), tolerance=1e-3)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FORWARD_STOPS)
def test_a_guard_stops_it_forward(name: str, batch: str) -> None:
    model = build(FORWARD_STOPS[name], batch, forward=True)
    assert fold(model).codes == [FORWARD_STOPS[name].code]
    with np.errstate(divide="ignore"), pytest.raises(AssertionError, match="off by"):
        check_values(model, naive(model, forward=True), random_feeds(model), tolerance=1e-3)
