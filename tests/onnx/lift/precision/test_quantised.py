"""Weights that are stored as integers: what a fold makes of them, number by number, and on onnxruntime unoptimised."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx_fold import Folded, batch_norm, fold, parse, random, run_unoptimised, scale_and_shift

import bnfold
from bnfold.algebra.quantised import QuantisedTensor

NORM = "BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"
RNG = np.random.default_rng(5)


def integers(*shape: int, dtype: object = np.int8, low: int = -100, high: int = 100) -> np.ndarray:
    return np.random.default_rng([7, *shape]).integers(low, high, shape).astype(dtype)


def steps(count: int) -> np.ndarray:
    return np.random.default_rng([9, count]).uniform(0.001, 0.01, count).astype(np.float32)


def single(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in parameters.items()}


def run(model: onnx.ModelProto) -> np.ndarray:
    draw = np.random.default_rng(3)
    shapes = {item.name: [dim.dim_value or 3 for dim in item.type.tensor_type.shape.dim] for item in model.graph.input}
    return run_unoptimised(model, {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def agree(folded: Folded) -> None:
    """Both say the same, to the rounding of float32."""
    before, after = run(folded.original), run(folded.model)
    np.testing.assert_allclose(after, before, rtol=2e-6, atol=2e-6 * np.abs(before).max())


def only(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    [node] = (node for node in model.graph.node if node.op_type == op_type)
    return node


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def folds(model: onnx.ModelProto, **options: str) -> Folded:
    folded = fold(model, compare=False, **options)
    assert folded.codes == []
    assert folded.count("BatchNormalization") == 0
    agree(folded)
    return folded


@dataclass(frozen=True)
class Weight:
    """A quantised weight: what is stored, and where the channels of the output are."""

    dequantise: str
    constants: dict[str, np.ndarray]
    reader: str = "Conv"
    output_axis: int = 0
    opset: int = 13
    source: str = "float[N,3,8,8]"
    channels: int = 4


CONV = integers(4, 3, 3, 3)
WEIGHTS = {
    "one scale": Weight("DequantizeLinear (q, s)", {"q": CONV, "s": np.float32(0.01)}),
    "one scale, opset 21": Weight("DequantizeLinear (q, s)", {"q": CONV, "s": np.float32(0.01)}, opset=21),
    "a scale for each channel": Weight(
        "DequantizeLinear <axis=0> (q, s, z)", {"q": CONV, "s": steps(4), "z": np.zeros(4, np.int8)}
    ),
    "a negative axis": Weight("DequantizeLinear <axis=-4> (q, s)", {"q": CONV, "s": steps(4)}),
    "a zero point": Weight("DequantizeLinear (q, s, z)", {"q": CONV // 4, "s": np.float32(0.01), "z": np.int8(11)}),
    "unsigned": Weight(
        "DequantizeLinear (q, s, z)",
        {"q": integers(4, 3, 3, 3, dtype=np.uint8, low=1, high=256), "s": np.float32(0.01), "z": np.uint8(128)},
    ),
    "16 bits": Weight("DequantizeLinear (q, s)", {"q": CONV.astype(np.int16) * 99, "s": np.float32(1e-4)}, opset=21),
    "4 bits": Weight(
        "DequantizeLinear (q, s)",
        {"q": integers(4, 3, 3, 3, low=-7, high=8).astype(ml_dtypes.int4), "s": np.float32(0.1)},
        opset=21,
    ),
    "depthwise": Weight(
        "DequantizeLinear <axis=0> (q, s)",
        {"q": integers(4, 1, 3, 3), "s": steps(4)},
        "Conv <group=4>",
        source="float[N,4,8,8]",
    ),
    "transposed": Weight("DequantizeLinear (q, s)", {"q": integers(3, 4, 3, 3), "s": steps(1)}, "ConvTranspose", 1),
    "transposed, by channel": Weight(
        "DequantizeLinear <axis=1> (q, s)", {"q": integers(3, 4, 3, 3), "s": steps(4)}, "ConvTranspose", 1
    ),
    "transposed, depthwise": Weight(
        "DequantizeLinear (q, s)",
        {"q": integers(4, 1, 3, 3), "s": np.float32(0.01)},
        "ConvTranspose <group=4>",
        source="float[N,4,8,8]",
    ),
    "Gemm": Weight(
        "DequantizeLinear <axis=1> (q, s)", {"q": integers(3, 4), "s": steps(4)}, "Gemm", 1, 13, "float[N,3]"
    ),
    "Gemm, turned": Weight(
        "DequantizeLinear <axis=0> (q, s)", {"q": integers(4, 3), "s": steps(4)}, "Gemm <transB=1>", 0, 13, "float[N,3]"
    ),
    "MatMul": Weight("DequantizeLinear (q, s)", {"q": integers(3, 4), "s": steps(1)}, "MatMul", 1, 13, "float[N,3]"),
    "MatMul, in blocks": Weight(
        "DequantizeLinear <axis=0, block_size=2> (q, s, z)",
        {"q": integers(6, 4, low=-50, high=50), "s": RNG.uniform(0.1, 1, (3, 4)).astype("f"), "z": integers(3, 4) // 9},
        *("MatMul", 1, 21, "float[N,6]"),
    ),
}


def written(weight: Weight, **others: np.ndarray) -> onnx.ModelProto:
    text = (
        f"agraph ({weight.source} x) => (float[N,{weight.channels},h,w] y)"
        f" {{ w = {weight.dequantise} c = {weight.reader} (x, w) y = {NORM} }}"
    )
    if weight.source.count(",") == 1:
        text = text.replace(",h,w]", "]")
    norm = single(batch_norm(weight.channels))
    return parse(text, opset=weight.opset, **{**weight.constants, **norm, **others})


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_scale_goes_into_the_dequantisation_scale(name: str) -> None:
    """Each new weight is the old one times the scale of its channel, but for one rounding of the new scale."""
    weight = WEIGHTS[name]
    model = written(weight)
    folded = folds(model)
    scale, shift = scale_and_shift(single(batch_norm(weight.channels)))
    old, new = only(model, "DequantizeLinear"), only(folded.model, "DequantizeLinear")
    kept, changed = (stored(part, node.input[0]) for part, node in ((model, old), (folded.model, new)))
    assert changed.dtype == kept.dtype
    shape = [1] * kept.ndim
    at = 0 if "depthwise" in name else weight.output_axis
    shape[at] = -1
    exact = scale.reshape(shape) * dequantised(model, old, kept.shape)
    # One rounding of the product that stands in the file, one of the scale: 2**-24 each.
    np.testing.assert_allclose(dequantised(folded.model, new, kept.shape), exact, rtol=2**-24)
    map_node = only(folded.model, weight.reader.split(" ")[0])
    bias = map_node if map_node.op_type != "MatMul" else only(folded.model, "Add")
    np.testing.assert_array_equal(stored(folded.model, bias.input[-1]).reshape(-1), shift.astype(np.float32))


def dequantised(model: onnx.ModelProto, node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    """What the definition of DequantizeLinear gives, in float64."""
    q, s, *z = (stored(model, name).astype(np.float64) for name in node.input)
    given = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = given.get("axis", 1), given.get("block_size", 0)
    zero = z[0] if z else np.zeros_like(s)
    if block:
        s, zero = (np.repeat(array, block, axis=axis)[: shape[0]] for array in (s, zero))
    elif s.size > 1:
        along = [1] * len(shape)
        along[axis] = -1
        s, zero = s.reshape(along), zero.reshape(along)
    return s * (q - zero)


def test_a_channel_that_is_nothing_keeps_its_scale() -> None:
    """gamma = 0: the integers become the zero point, and no scale becomes zero."""
    weight = WEIGHTS["a zero point"]
    gamma = single(batch_norm(4))["bn_g"]
    gamma[2] = 0
    folded = folds(written(weight, bn_g=gamma))
    node = only(folded.model, "DequantizeLinear")
    assert (stored(folded.model, node.input[0])[2] == 11).all()
    assert stored(folded.model, node.input[1])[2] == np.float32(0.01)


@pytest.mark.parametrize("made_of", ["q", "f"])
def test_channels_that_are_as_good_as_gone(made_of: str) -> None:
    """Weight decay makes gammas of 1e-40: float32 holds what comes of them with fewer digits, or not at all."""
    norm, scales = single(batch_norm(4)), steps(4)
    norm["bn_g"] = np.array([1.5, 3e-40, -1e-43, 0.7], np.float32)
    simulated = "q = QuantizeLinear <axis=0> (f, s, z)" if made_of == "f" else ""
    text = f"""agraph (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
        {simulated} w = DequantizeLinear <axis=0> (q, s, z) c = Conv (x, w) y = {NORM}
    }}"""
    weight = {"q": CONV, "f": CONV * scales.reshape(-1, 1, 1, 1)}[made_of]
    folded = folds(parse(text, opset=13, s=scales, z=np.zeros(4, np.int8), **{made_of: weight}, **norm))
    assert np.isfinite(run(folded.model)).all()


REFUSED = {
    "-128 turned round": (
        WEIGHTS["one scale"],
        {"q": np.full((4, 3, 3, 3), -128, np.int8)},
        "out of the range of int8",
    ),
    "unsigned without a zero point": (
        WEIGHTS["one scale"],
        {"q": np.full((4, 3, 3, 3), 3, np.uint8)},
        "out of the range of uint8",
    ),
    "by the channels of the input": (
        Weight("DequantizeLinear <axis=1> (q, s)", {"q": CONV, "s": steps(3)}),
        {},
        "along another",
    ),
    "one scale in an opset without an axis": (
        Weight("DequantizeLinear (q, s)", {"q": CONV, "s": np.float32(0.01)}, opset=12),
        {},
        "opset has none",
    ),
    "transposed, in groups": (
        Weight(
            "DequantizeLinear (q, s)",
            {"q": integers(4, 2, 3, 3), "s": np.float32(0.01)},
            "ConvTranspose <group=2>",
            source="float[N,4,8,8]",
        ),
        {},
        "along another",
    ),
    "too large a scale": (WEIGHTS["one scale"], {"s": np.float32(3e38), "bn_v": np.full(4, 1e-3, "f")}, "leaves"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_integers_cannot_hold_stays(name: str) -> None:
    weight, others, words = REFUSED[name]
    folded = fold(written(weight, **others), compare=False, leftover="keep")
    assert folded.codes == ["quantized_weight"]
    assert words in folded.plan.left[0].reason
    assert folded.model == folded.original


PROVED = {
    **{name: (weight, {}) for name, weight in WEIGHTS.items()},
    **{name: (weight, others) for name, (weight, others, _) in REFUSED.items() if name != "too large a scale"},
    "floats of 8 bits": (
        WEIGHTS["one scale, opset 21"],
        {"q": random(4, 3, 3, 3).astype(ml_dtypes.float8_e4m3fn), "s": np.float32(0.1)},
    ),
    "unsigned, one too far from its zero point": (
        WEIGHTS["unsigned"],
        {"q": integers(4, 3, 3, 3, dtype=np.uint8, low=0, high=140), "z": np.uint8(69)},
    ),
    "large enough to be read when it is needed, 4 bits": (
        Weight("DequantizeLinear (q, s)", {}, source="float[N,64,8,8]", channels=64, opset=21),
        {"q": integers(64, 64, 3, 3, low=-7, high=8).astype(ml_dtypes.int4), "s": np.float32(0.1)},
    ),
}


@pytest.mark.parametrize("name", PROVED)
def test_the_exact_gate_proves_it_with_integers_that_can_be_scaled_by_the_same(name: str) -> None:
    weight, others = PROVED[name]
    result = bnfold.fold(written(weight, **others))
    assert result.changed
    found = result.check()
    assert (found.verdict, found.regions) == ("pass", 1), found.reason


@pytest.mark.parametrize("name", ["a scale for each channel", "Gemm", "MatMul, in blocks"])
def test_the_exact_gate_sees_a_scale_that_is_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuantisedTensor, "scaled", lambda self, *_: self)
    assert bnfold.fold(written(WEIGHTS[name])).check().verdict == "fail"


def test_one_scale_takes_one_number() -> None:
    model = parse(
        "agraph (float[N,3] x) => (float[N,4] y) { w = DequantizeLinear (q, s)  c = MatMul (x, w)  y = Mul (c, two) }",
        opset=21,
        q=integers(3, 4),
        s=np.float32(0.01),
        two=np.float32(2.5),
    )
    folded = fold(model, compare=False)
    assert [node.op_type for node in folded.model.graph.node] == ["DequantizeLinear", "MatMul"]
    agree(folded)


def test_positive_scales_turn_nothing() -> None:
    weight = WEIGHTS["one scale"]
    others = {"q": np.full((4, 3, 3, 3), -128, np.int8), "bn_g": np.full(4, 0.7, np.float32)}
    folded = folds(written(weight, **others))
    node = only(folded.model, "DequantizeLinear")
    assert (stored(folded.model, node.input[0]) == -128).all()
    assert stored(folded.model, node.input[1]).shape == (4,)


@pytest.mark.parametrize("reader", ["MatMul", "Conv"])
def test_a_transpose_between_the_integers_and_their_reader(reader: str) -> None:
    perm, shape = ("[1,0]", (4, 3)) if reader == "MatMul" else ("[1,0,2,3]", (3, 4, 3, 3))
    axis = 0 if reader == "MatMul" else 1
    source = "float[N,3]" if reader == "MatMul" else "float[N,3,8,8]"
    weight = Weight(
        f"DequantizeLinear <axis={axis}> (q, s) t = Transpose <perm={perm}> (w)",
        {"q": integers(*shape), "s": steps(4)},
        source=source,
    )
    model = written(weight)
    conv = only(model, "Conv")
    conv.input[1], conv.op_type = "t", reader
    folded = folds(model)
    assert folded.count("Transpose") == 1
    assert stored(folded.model, only(folded.model, "DequantizeLinear").input[0]).shape == shape


BETWEEN = {
    "Unsqueeze": (
        "d = DequantizeLinear <axis=0> (q, s) w = Unsqueeze (d, a)",
        {"q": integers(4, 3, 3), "s": steps(4), "a": np.array([3])},
        "float[N,3,8,1]",
    ),
    "Reshape": (
        "d = DequantizeLinear <axis=0> (q, s) w = Reshape (d, a)",
        {"q": integers(4, 27), "s": np.float32(0.01), "a": np.array([4, 3, 3, -1])},
        "float[N,3,8,8]",
    ),
    "Transpose and Reshape": (
        "d = DequantizeLinear <axis=1> (q, s) e = Transpose <perm=[1,0]> (d) w = Reshape (e, a)",
        {"q": integers(27, 4), "s": np.float32(0.01), "a": np.array([4, 3, 3, 3])},
        "float[N,3,8,8]",
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_moves_numbers_about_between_the_integers_and_their_reader(name: str) -> None:
    dequantise, constants, source = BETWEEN[name]
    text = f"agraph ({source} x) => (float[N,4,h,w] y) {{ {dequantise} c = Conv (x, w) y = {NORM} }}"
    folded = folds(parse(text, opset=13, **constants, **single(batch_norm(4))))
    node = only(folded.model, "DequantizeLinear")
    new, old = stored(folded.model, node.input[0]), constants["q"]
    assert stored(folded.model, node.input[1]).shape == (4,)
    signs = np.sign(single(batch_norm(4))["bn_g"])
    axis = 1 if "Transpose" in name else 0
    np.testing.assert_array_equal(np.moveaxis(new, axis, -1), np.moveaxis(old, axis, -1) * signs)


def test_a_cast_to_a_narrower_type_behind_the_integers() -> None:
    """As in QDQ files that were made float16: each weight is rounded to it once, before as after."""
    text = f"""agraph (float16[N,3,8,8] x) => (float16[N,4,6,6] y) {{
        d = DequantizeLinear <axis=0> (q, s) w = Cast <to=10> (d) c = Conv (x, w) y = {NORM}
    }}"""
    norm = batch_norm(4, dtype=np.float16)
    folded = fold(parse(text, opset=13, q=CONV, s=steps(4), **norm), compare=False)
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["DequantizeLinear", "Cast", "Conv"]
    scale, shift = scale_and_shift(norm)
    assert stored(folded.model, only(folded.model, "DequantizeLinear").input[1]).dtype == np.float32
    np.testing.assert_array_equal(
        stored(folded.model, only(folded.model, "DequantizeLinear").input[1]), (np.abs(scale) * steps(4)).astype("f")
    )
    np.testing.assert_array_equal(stored(folded.model, only(folded.model, "Conv").input[2]), shift.astype(np.float16))
    x = random(2, 3, 8, 8, dtype=np.float16)
    before, after = (run_unoptimised(model, {"x": x}).astype(float) for model in (folded.original, folded.model))
    assert np.abs(after - before).max() <= 8 * 2**-11 * np.abs(before).max()


CASTS = {
    "to a wider type": ("float", "<to=1>", np.float16(0.01), np.float32, "rounded to float16 before it is made"),
    "beyond the range of the narrower": ("float16", "<to=10>", np.float32(600), np.float16, "overflows float16"),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_that_the_scale_does_not_pass(name: str) -> None:
    kind, to, step, dtype, words = CASTS[name]
    text = f"""agraph ({kind}[N,3,8,8] x) => ({kind}[N,4,6,6] y) {{
        d = DequantizeLinear (q, s) w = Cast {to} (d) c = Conv (x, w) y = {NORM}
    }}"""
    model = parse(text, opset=19, q=CONV, s=step, **batch_norm(4, dtype=dtype))
    folded = fold(model, compare=False, leftover="keep")
    assert folded.codes == ["quantized_weight"]
    assert words in folded.plan.left[0].reason
    assert folded.model == folded.original


def test_what_changes_the_weight_on_its_way_is_named() -> None:
    weight = Weight("DequantizeLinear (q, s) v = Add (w, w)", {"q": CONV, "s": np.float32(0.01)})
    model = written(weight)
    only(model, "Conv").input[1] = "v"
    folded = fold(model, compare=False, leftover="keep")
    assert folded.codes == ["quantized_weight"]
    assert "Add changes it" in folded.plan.left[0].reason


@pytest.mark.parametrize("per_channel", [True, False])
def test_floats_that_are_quantised_when_the_model_runs_stay_floats(per_channel: bool) -> None:
    """Quantised with the new scale they give the integers that the old ones gave, exactly, with the sign turned."""
    scale = steps(4) if per_channel else steps(1)[0]
    axis = "<axis=0> " if per_channel else ""
    text = f"""agraph (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
        q = QuantizeLinear {axis}(f, s, z) w = DequantizeLinear {axis}(q, s, z) c = Conv (x, w) y = {NORM}
    }}"""
    zero = np.zeros(scale.shape, np.int8)
    floats = random(4, 3, 3, 3, dtype=np.float32) / 4
    model = parse(text, opset=13, f=floats, s=scale, z=zero, **single(batch_norm(4)))
    folded = folds(model)
    node = only(folded.model, "QuantizeLinear")
    values, step = stored(folded.model, node.input[0]), stored(folded.model, node.input[1])
    assert values.dtype == np.float32
    signs = np.sign(single(batch_norm(4))["bn_g"]).reshape(4, 1, 1, 1)
    before = np.rint(floats / scale.reshape(-1, 1, 1, 1)).clip(-128, 127)
    np.testing.assert_array_equal(np.rint(values / step.reshape(4, 1, 1, 1)), signs * before)


def test_forward_into_a_quantised_map() -> None:
    """The scale of an input channel goes where it is the scale of an output channel, the shift into the bias."""
    text = """agraph (float[N,4,8,8] x) => (float[N,4,6,6] y) {
        c = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v) w = DequantizeLinear (q, s) y = Conv GROUP (c, w)
    }"""
    norm = single(batch_norm(4))
    depthwise = parse(text.replace("GROUP", "<group=4>"), q=integers(4, 1, 3, 3), s=steps(1)[0], **norm)
    folds(depthwise)
    dense = parse(text.replace("GROUP", ""), q=integers(4, 4, 3, 3), s=steps(1)[0], **norm)
    folds(dense)  # one scale for each channel of the input
    both = parse(text.replace("GROUP", ""), q=integers(4, 4, 3, 3), s=steps(1)[0], **norm)
    both.graph.node.extend([onnx.helper.make_node("BatchNormalization", ["y", *norm], ["z"])])
    both.graph.output[0].name = "z"
    folded = fold(both, compare=False, leftover="keep")
    assert len(folded.plan.folds) == 1, "the scales of inputs and outputs are two, and there is one axis"
    agree(folded)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_blocks_take_a_negative_scale_whatever_their_integers_are(dtype: type) -> None:
    """Where an integer has no negative, a block is turned within its range, and its zero point with it."""
    weight = Weight(
        "DequantizeLinear <axis=0, block_size=2> (q, s)",
        {"q": integers(6, 4, dtype=dtype, low=0, high=100), "s": RNG.uniform(0.1, 1, (3, 4)).astype("f")},
        *("MatMul", 1, 21, "float[N,6]"),
    )
    weight.constants["q"][0] = np.iinfo(dtype).min
    folded = folds(written(weight))
    node = only(folded.model, "DequantizeLinear")
    turned = single(batch_norm(4))["bn_g"] < 0
    ends = int(np.iinfo(dtype).min) + int(np.iinfo(dtype).max)
    np.testing.assert_array_equal(stored(folded.model, node.input[2]), np.where(turned, ends, np.zeros((3, 1), dtype)))


def test_a_scale_along_blocks_stays_before_them() -> None:
    text = f"""agraph (float[N,6] x) => (float[N,4] y) {{
        c = Relu (x) n = {NORM} w = DequantizeLinear <axis=0, block_size=2> (q, s) y = MatMul (n, w)
    }}"""
    constants = {"q": integers(6, 4), "s": RNG.uniform(0.1, 1, (3, 4)).astype("f")}
    folded = fold(parse(text, opset=21, **constants, **single(batch_norm(6))), compare=False, leftover="keep")
    assert folded.codes == ["quantized_weight"]
    assert "in blocks" in folded.plan.left[0].reason
    agree(folded)


def test_quantised_branches_are_not_merged() -> None:
    text = """agraph (float[N,4,8,8] x) => (float[N,4,8,8] y) {
        w = DequantizeLinear (q, s) c = Conv (x, w) d = Conv (x, v) y = Add (c, d)
    }"""
    model = parse(text, q=integers(4, 4, 1, 1), s=steps(1)[0], v=random(4, 4, 1, 1, dtype=np.float32))
    folded = fold(model, compare=False, merge=True)
    assert folded.model == folded.original


def test_through_a_quantised_output_every_bit_is_the_same() -> None:
    text = f"""agraph (float[2,3,16,16] x) => (float[2,4,16,16] y) <float sx = {{0.05}}, int8 zx = {{0}},
        float sy = {{0.03}}, int8 zy = {{-128}}> {{
        qx = QuantizeLinear (x, sx, zx) dx = DequantizeLinear (qx, sx, zx) w = DequantizeLinear <axis=0> (q, s)
        c = Conv <pads=[1,1,1,1]> (dx, w, b) n = {NORM} r = Relu (n)
        qy = QuantizeLinear (r, sy, zy) y = DequantizeLinear (qy, sy, zy)
    }}"""
    bias = random(4, dtype=np.float32)
    folded = folds(parse(text, opset=13, q=CONV, s=steps(4), b=bias, **single(batch_norm(4))))
    np.testing.assert_array_equal(run(folded.model), run(folded.original))


def test_powers_of_two_leave_every_bit_before_it_is_rounded() -> None:
    """Any other scale rounds a sum of products in other places."""
    norm = {"bn_g": np.array([1, -2, 0.5, 4], np.float32), "bn_b": random(4, dtype=np.float32)}
    norm |= {"bn_m": np.zeros(4, np.float32), "bn_v": np.ones(4, np.float32)}
    text = f"""agraph (float[2,3,16,16] x) => (float[2,4,16,16] y) {{
        w = DequantizeLinear <axis=0> (q, s) c = Conv <pads=[1,1,1,1]> (x, w)
        y = {NORM.replace("n (", "n <epsilon=0.0> (")}
    }}"""
    folded = folds(parse(text, opset=13, q=CONV, s=steps(4), **norm))
    np.testing.assert_array_equal(run(folded.model), run(folded.original))


PARAMETERS = {
    "dequantised": "DequantizeLinear (iv, is)",
    "dequantised from int32": "DequantizeLinear (lv, is)",
    "quantised when the model runs": "QuantizeLinear (fv, is, iz) p = DequantizeLinear (p0, is, iz)",
    "tiled": "Tile (tv, four)",
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("which", ["beta", "bias"])
def test_parameters_and_biases_that_are_computed_from_constants(name: str, which: str) -> None:
    expression = PARAMETERS[name]
    first = f"p0 = {expression}" if "p0" in expression else f"p = {expression}"
    beta, bias = ("p", "b") if which == "beta" else ("bn_b", "p")
    text = f"""agraph (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
        {first} c = Conv (x, w, {bias}) y = BatchNormalization (c, bn_g, {beta}, bn_m, bn_v)
    }}"""
    constants = {
        "iv": np.array([3, -4, 5, 6], np.int8),
        "lv": np.array([300, -4, 5, 6], np.int32),
        "fv": np.array([0.3, -0.4, 0.5, 0.6], np.float32),
        "tv": np.array([0.3], np.float32),
        "four": np.array([4]),
        "is": np.float32(0.01),
        "iz": np.int8(0),
        "b": random(4, dtype=np.float32),
    }
    given = {key: array for key, array in constants.items() if key in text.replace(",", " ").replace(")", " ").split()}
    given |= {key: constants[key] for key in ("iv", "lv", "fv", "tv") if f"({key}," in text}
    norm = {key: array for key, array in single(batch_norm(4)).items() if key in text}
    folded = folds(parse(text, opset=13, w=random(4, 3, 3, 3, dtype=np.float32), **given, **norm))
    assert {node.op_type for node in folded.model.graph.node} == {"Conv"}


INTEGER_MAPS = {
    "DequantizeLinear": "q = QuantizeLinear (x, d) c = DequantizeLinear (q, d)",
    "ConvInteger": "q, d1, z = DynamicQuantizeLinear (x) i = ConvInteger (q, k, z) f = Cast <to=1> (i) c = Mul (f, d1)",
}


@pytest.mark.parametrize("name", INTEGER_MAPS)
def test_operators_that_compute_with_integers_have_their_reason(name: str) -> None:
    text = f"agraph (float[N,4,8,8] x) => (float[N,4,8,8] y) {{ {INTEGER_MAPS[name]} y = {NORM} }}"
    constants = {"d": np.float32(0.1)} if "(x, d)" in text else {"k": integers(4, 4, 1, 1)}
    folded = fold(parse(text, **constants, **single(batch_norm(4))), compare=False)
    assert folded.plan.batch_norms_left == 1
    agree(folded)
    assert folded.codes == ["quantized"]
    assert f"backward: {name} '" in folded.plan.left[0].reason
    if name == "DequantizeLinear":
        assert folded.count("BatchNormalization") == 1, "a Conv in its place would be quantised by runtimes"


def test_onnxruntime_rounds_a_float_bias_by_itself(tmp_path: Path) -> None:
    """So a folded layer is a QLinearConv where the original is none, and its outputs are the same integers."""
    scale = steps(4)
    text = f"""agraph (float[2,3,8,8] x) => (float[2,4,6,6] y) {{
      xq = QuantizeLinear (x, xs, xz) xd = DequantizeLinear (xq, xs, xz)
      w = DequantizeLinear <axis = 0> (q, s, z) b = DequantizeLinear <axis = 0> (bq, bs, bz)
      c = Conv (xd, w, b) n = {NORM} r = Relu (n) yq = QuantizeLinear (r, ys, yz) y = DequantizeLinear (yq, ys, yz)
    }}"""
    quantised = {
        "q": CONV,
        "s": scale,
        "z": np.zeros(4, np.int8),
        "bq": integers(4, dtype=np.int32, low=-999, high=999),
    }
    zeros = {"xz": np.uint8(128), "yz": np.uint8(0), "bz": np.zeros(4, np.int32)}
    scales = {"xs": np.float32(0.02), "ys": np.float32(0.05), "bs": scale * np.float32(0.02)}
    model = parse(text, opset=17, **quantised, **scales, **zeros, **single(batch_norm(4)))
    folded = bnfold.fold(model).model
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(folded.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "QLinearConv" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    images = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = run_unoptimised(model, {"x": images})
    np.testing.assert_allclose(session.run(None, {"x": images})[0], expected, atol=0.051)
