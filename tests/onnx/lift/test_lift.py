"""Convolutions and the BatchNorms behind them: what folds, what stays, and with which reason."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx_fold import (
    add_initializers,
    batch_norm,
    constant,
    fold,
    parse,
    pure_scale,
    random,
    run_unoptimised,
    scale_and_shift,
)

import bnfold

NEWEST_OPSET = onnx.defs.onnx_opset_version()

CONV_BN = """
agraph (double[N,3,8,8] x) => (double[N,4,H,W] y)
{
  [conv] c = Conv ATTRIBUTES (x, w BIAS)
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""

BN_CONV = """
agraph (double[N,3,8,8] x) => (double[N,4,H,W] y)
{
  [bn] b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
  [conv] y = Conv ATTRIBUTES (b, w)
}
"""


def conv_bn(attributes: str = "", bias: str = "", **options: object) -> onnx.ModelProto:
    constants = {"w": random(4, 3, 3, 3), **batch_norm(4)}
    if bias == ", bias":
        constants["bias"] = random(4, seed=2)
    text = CONV_BN.replace("ATTRIBUTES", attributes).replace("BIAS", bias)
    return parse(text, **{**constants, **options})


@pytest.mark.parametrize("bias", ["", ", bias"])
@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<pads=[1,1,1,1], strides=[2,1]>",
        '<auto_pad="SAME_UPPER">',
        '<auto_pad="SAME_LOWER", strides=[2,2]>',
        '<auto_pad="VALID", dilations=[2,2]>',
    ],
)
def test_conv_takes_its_bn_whatever_its_padding(attributes: str, bias: str) -> None:
    folded = fold(conv_bn(attributes, bias))
    assert (folded.count("BatchNormalization"), folded.codes) == (0, [])
    scale, shift = scale_and_shift(batch_norm(4))
    old_bias = random(4, seed=2) if bias else np.zeros(4)
    np.testing.assert_allclose(folded.constant("conv", 1), random(4, 3, 3, 3) * scale.reshape(-1, 1, 1, 1), rtol=1e-15)
    np.testing.assert_allclose(folded.constant("conv", 2), old_bias * scale + shift, rtol=1e-14)


def test_an_empty_name_is_no_bias() -> None:
    model = conv_bn()
    model.graph.node[0].input.append("")
    folded = fold(model)
    assert len(folded.node("conv").input) == 3
    assert folded.codes == []


def test_a_zero_shift_adds_no_bias() -> None:
    folded = fold(parse(CONV_BN.replace("ATTRIBUTES", "").replace("BIAS", ""), w=random(4, 3, 3, 3), **pure_scale(4)))
    assert len(folded.node("conv").input) == 2


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_conv_of_any_rank_and_groups(spatial: int, groups: int) -> None:
    sizes = ",".join("5" * spatial)
    text = f"""
    agraph (double[N,4,{sizes}] x) => (double[N,8,{",".join("ABC"[:spatial])}] y)
    {{
      [conv] c = Conv <group={groups}> (x, w)
      [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    folded = fold(parse(text, w=random(8, 4 // groups, *(3,) * spatial), **batch_norm(8)))
    assert folded.count("BatchNormalization") == 0


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("", 3),
        ("<strides=[2,2], output_padding=[1,1]>", 3),
        ("<strides=[3,3]>", 2),
        ("<group=2, pads=[1,0,1,0]>", 3),
        ('<auto_pad="SAME_UPPER", strides=[2,2]>', 3),
        ("<output_shape=[10,10]>", 3),
        ("", 1),
    ],
)
def test_conv_transpose_takes_the_bn_behind_it(attributes: str, kernel: int) -> None:
    groups = 2 if "group=2" in attributes else 1
    text = f"""
    agraph (double[N,4,8,8] x) => (double[N,6,H,W] y)
    {{
      [conv] c = ConvTranspose {attributes} (x, w)
      [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    # onnx's reference evaluator does not follow the specification of output_shape and auto_pad here.
    compare = "output_shape" not in attributes and "auto_pad" not in attributes
    folded = fold(parse(text, w=random(4, 6 // groups, kernel, kernel), **batch_norm(6)), compare=compare)
    assert folded.count("BatchNormalization") == 0


@pytest.mark.parametrize(
    ("attributes", "kernel", "folds"),
    [
        ("", 1, True),
        ("<group=2>", 1, True),
        ("", 3, False),
        ("<strides=[2,2]>", 1, False),
        ("<pads=[1,1,1,1]>", 1, True),
        ("<pads=[2,2,2,2]>", 3, True),
        ("<pads=[2,2,2,1]>", 3, False),
        ("<pads=[4,4,5,4], dilations=[2,2]>", 3, True),
        ("<pads=[2,2,2,2], dilations=[2,2]>", 3, False),
        ("<pads=[2,2,2,2], strides=[1,2]>", 3, False),
        ("<strides=[2,2], output_padding=[1,1]>", 1, False),
        ("<output_shape=[8,8]>", 1, False),
    ],
)
def test_conv_transpose_takes_a_shift_before_it_only_where_every_output_sums_the_kernel(
    attributes: str, kernel: int, folds: bool
) -> None:
    groups = 2 if "group=2" in attributes else 1
    text = f"""
    agraph (double[N,4,8,8] x) => (double[N,6,H,W] y)
    {{
      [bn] b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      [conv] y = ConvTranspose {attributes} (b, w)
    }}
    """
    compare = "output_shape" not in attributes
    weight = random(4, 6 // groups, kernel, kernel)
    folded = fold(parse(text, w=weight, **batch_norm(4)), leftover="keep", compare=compare)
    assert folded.codes == ([] if folds else ["padded_shift"])
    folded = fold(parse(text, w=weight, **pure_scale(4)), compare=compare)
    assert folded.codes == []


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("", None),
        ('<auto_pad="VALID">', None),
        ('<auto_pad="VALID", pads=[1,1,1,1]>', None),
        ("<pads=[0,0,0,0]>", None),
        ("<pads=[0,0,0,1]>", "padded_shift"),
        ('<auto_pad="SAME_UPPER">', "padded_shift"),
        ('<auto_pad="SAME_LOWER", strides=[2,2]>', "padded_shift"),
    ],
)
def test_a_shift_passes_into_the_next_conv_only_without_zero_padding(attributes: str, code: str | None) -> None:
    text = BN_CONV.replace("ATTRIBUTES", attributes)
    # onnx's reference evaluator pads by stale pads under VALID, against the specification.
    stale = "VALID" in attributes and "pads" in attributes
    folded = fold(parse(text, w=random(4, 3, 3, 3), **batch_norm(3)), leftover="keep", compare=not stale)
    assert folded.codes == ([] if code is None else [code])
    folded = fold(parse(text, w=random(4, 3, 3, 3), **pure_scale(3)), compare=not stale)
    assert folded.codes == [], "a scale alone passes through zero padding"


@pytest.mark.parametrize(
    ("kernel", "attributes", "code"),
    [
        ((1, 1), '<auto_pad="SAME_UPPER">', None),
        ((1, 1), '<auto_pad="SAME_LOWER", strides=[2,3]>', None),
        ((1, 2), '<auto_pad="SAME_UPPER">', "padded_shift"),
        ((2, 1), '<auto_pad="SAME_LOWER", strides=[2,2]>', "padded_shift"),
    ],
)
@pytest.mark.parametrize("size", [7, 8, 9])
def test_padding_by_name_adds_nothing_to_a_kernel_of_one_tap(
    kernel: tuple[int, int], attributes: str, code: str | None, size: int
) -> None:
    text = BN_CONV.replace("ATTRIBUTES", attributes).replace("double", "float").replace("8,8", f"{size},{size}")
    constants = {"w": random(4, 3, *kernel), **batch_norm(3)}
    model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
    folded = fold(model, leftover="keep", compare=False)
    assert folded.codes == ([] if code is None else [code])
    x = {"x": random(2, 3, size, size, seed=5).astype(np.float32)}
    before, after = run_unoptimised(folded.original, x), run_unoptimised(folded.model, x)
    np.testing.assert_allclose(after, before, rtol=2e-6, atol=2e-6 * np.abs(before).max())


def test_several_convs_take_the_bn_before_them() -> None:
    text = """
    agraph (double[N,3,8,8] x) => (double[N,4,6,6] y, double[N,4,8,8] z)
    {
      [bn] b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      [one] y = Conv (b, w)
      [two] z = Conv (b, u, bias)
    }
    """
    constants = {"w": random(4, 3, 3, 3), "u": random(4, 3, 1, 1), "bias": random(4)}
    assert fold(parse(text, **constants, **batch_norm(3))).codes == []
    padded = fold(
        parse(
            text.replace("Conv (b, u", "Conv <pads=[1,1,1,1], strides=[2,2]> (b, u").replace("8,8] z", "5,5] z"),
            **constants,
            **batch_norm(3),
        ),
        leftover="keep",
    )
    assert padded.codes == ["padded_shift"]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 14, 15, 17, 22, NEWEST_OPSET])
def test_every_opset_from_7_on(opset: int) -> None:
    text = (
        CONV_BN.replace("ATTRIBUTES", "")
        .replace("BIAS", "")
        .replace("=> (double[N,4,H,W] y)", "=> (double[N,4,6,6] y)")
    )
    folded = fold(parse(text, opset=opset, w=random(4, 3, 3, 3), **batch_norm(4)))
    assert folded.count("BatchNormalization") == 0


OLD_CONV_BN = """agraph (float[N,3,8,8] x) => (float[N,4,6,6] y) {
    c = Conv <kernel_shape=[3,3]> (x, w, b)
    y = BatchNormalization <CONSUMED is_test=IS_TEST> (c, bn_g, bn_b, bn_m, bn_v)
}"""


def old_model(opset: int, *, is_test: int = 1, text: str = OLD_CONV_BN) -> onnx.ModelProto:
    consumed = "consumed_inputs=[0,0,0,1,1]," if opset == 1 else ""
    norm = batch_norm(4, dtype=np.float32)
    text = text.replace("CONSUMED", consumed).replace("IS_TEST", str(is_test))
    model = parse(text, opset=opset, ir_version=3, w=random(4, 3, 3, 3, dtype=np.float32), **norm)
    if "b)" in text:
        add_initializers(model.graph, {"b": random(4, dtype=np.float32)})
    names = [(tensor.name, tensor.dims) for tensor in model.graph.initializer]
    model.graph.input.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, d) for name, d in names)
    return model


@pytest.mark.parametrize("opset", [1, 6])
def test_before_opset_7_a_batch_norm_says_that_it_is_in_inference_mode(opset: int) -> None:
    model = old_model(opset)
    folded = fold(model, compare=False)
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]
    norm = batch_norm(4, dtype=np.float32)
    scale, shift = scale_and_shift(norm)
    weight, bias = (random(4, 3, 3, 3, dtype=np.float32), random(4, dtype=np.float32))
    conv = folded.model.graph.node[0]
    expected = (scale.reshape(4, 1, 1, 1) * weight).astype(np.float32)
    np.testing.assert_array_equal(constant(folded.model, conv.input[1]), expected)
    np.testing.assert_array_equal(constant(folded.model, conv.input[2]), (scale * bias + shift).astype(np.float32))


@pytest.mark.parametrize("opset", [1, 6])
def test_before_opset_7_a_batch_norm_is_in_training_mode_otherwise(opset: int) -> None:
    folded = fold(old_model(opset, is_test=0), compare=False)
    assert folded.codes == ["opset"]
    assert folded.model == folded.original


def test_before_opset_7_what_stays_is_written_as_it_was() -> None:
    """Mul and Add would need attributes there."""
    text = OLD_CONV_BN.replace("c = Conv <kernel_shape=[3,3]> (x, w, b)", "t = Conv (x, w) c = Tanh (t)")
    folded = fold(old_model(6, text=text), compare=False, leftover="mul-add")
    assert folded.plan.batch_norms_left == 1
    assert folded.model == folded.original
    text = text.replace("y = Batch", "z = Batch").replace(
        "}", "y = BatchNormalization <is_test=1> (z, bn_g, bn_b, bn_m, bn_v) }"
    )
    folded = fold(old_model(6, text=text), compare=False)
    assert folded.codes[-1] == "opset"
    assert folded.model == folded.original


def test_a_sign_is_an_affine() -> None:
    text = """agraph (double[N,3,8,8] x) => (double[N,4,6,6] y) {
        c = Conv (x, w) m = Neg (c) y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
    }"""
    folded = fold(parse(text, w=random(4, 3, 3, 3), **batch_norm(4)))
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]


def test_spatial_zero_is_left() -> None:
    text = """
    agraph (double[N,3,1,1] x) => (double[N,4,1,1] y)
    {
      [conv] c = Conv (x, w)
      [bn] y = BatchNormalization <spatial=0> (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, opset=7, w=random(4, 3, 1, 1), **batch_norm(4))
    assert fold(model, compare=False).codes == ["spatial"]
    text = text.replace("spatial=0", "spatial=1")
    assert fold(parse(text, opset=7, w=random(4, 3, 1, 1), **batch_norm(4))).codes == []


def test_training_mode_is_left() -> None:
    text = CONV_BN.replace("ATTRIBUTES", "").replace("BIAS", "")
    text = text.replace("y = Batch", "y, mean, var = Batch").replace(
        "Normalization (", "Normalization <training_mode=1> ("
    )
    model = parse(text, opset=15, w=random(4, 3, 3, 3), **batch_norm(4))
    assert fold(model).codes == ["training_mode"]


def test_extra_outputs_mean_training_in_old_opsets() -> None:
    text = CONV_BN.replace("ATTRIBUTES", "").replace("BIAS", "").replace("y = Batch", "y, m1, v1, m2, v2 = Batch")
    model = parse(text, opset=9, w=random(4, 3, 3, 3), **batch_norm(4))
    assert fold(model, compare=False).codes == ["training_mode"]


def test_absent_extra_outputs_are_no_training() -> None:
    model = parse(CONV_BN.replace("ATTRIBUTES", "").replace("BIAS", ""), opset=9, w=random(4, 3, 3, 3), **batch_norm(4))
    model.graph.node[1].output.extend([""] * 4)
    assert fold(model).codes == []


@pytest.mark.parametrize("parameter", ["bn_g", "bn_b", "bn_m", "bn_v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_left(parameter: str, value: float) -> None:
    model = conv_bn(**{parameter: np.array([1.0, 1.0, value, 1.0])})
    folded = fold(model, leftover="conv")
    assert folded.codes == ["parameters_not_finite"]
    assert "channel 2" in folded.plan.left[0].reason
    assert folded.count("BatchNormalization") == 1


@pytest.mark.parametrize(("variance", "folds"), [(-1.0, False), (-(2.0**-20), False), (0.0, True)])
def test_the_variance_must_have_a_root(variance: float, folds: bool) -> None:
    model = conv_bn(bn_v=np.array([1.0, variance, 1.0, 1.0]))
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", 2.0**-20))
    with np.errstate(all="ignore"):
        assert fold(model).codes == ([] if folds else ["parameters_not_finite"])


def test_the_default_epsilon_is_the_float32_of_the_schema() -> None:
    """With a variance of zero, 1e-5 and its float32 differ in the eighth digit of the weight."""
    folded = fold(conv_bn(bn_v=np.zeros(4)))
    scale, _ = scale_and_shift({**batch_norm(4), "bn_v": np.zeros(4)})
    np.testing.assert_allclose(folded.constant("conv", 1), random(4, 3, 3, 3) * scale.reshape(-1, 1, 1, 1), rtol=1e-15)


def test_gamma_zero_is_legal() -> None:
    folded = fold(conv_bn(bn_g=np.array([1.0, 0.0, 2.0, -1.0])))
    assert folded.codes == []
    assert not folded.constant("conv", 1)[1].any()


FLOAT16_CONV = """
agraph (float16[N,3,4,4] x) => (float16[N,4,4,4] y)
{
  [conv] c = Conv (x, w)
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""


def test_float16_weights_are_rounded_once() -> None:
    parameters = batch_norm(4, dtype=np.float16)
    weight = random(4, 3, 1, 1, dtype=np.float16)
    folded = fold(parse(FLOAT16_CONV, w=weight, **parameters), compare=False)
    scale, shift = scale_and_shift(parameters)
    exact = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    assert folded.constant("conv", 1).tobytes() == exact.astype(np.float16).tobytes()
    assert folded.constant("conv", 2).tobytes() == shift.astype(np.float16).tobytes()


def test_float32_weights_are_rounded_once() -> None:
    parameters = batch_norm(4, dtype=np.float32)
    weight = random(4, 3, 1, 1, dtype=np.float32)
    folded = fold(parse(FLOAT16_CONV.replace("float16", "float"), w=weight, **parameters), compare=False)
    scale, shift = scale_and_shift(parameters)
    exact = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    assert folded.constant("conv", 1).tobytes() == exact.astype(np.float32).tobytes()
    assert folded.constant("conv", 2).tobytes() == shift.astype(np.float32).tobytes()


def test_bfloat16_weights_are_rounded_once() -> None:
    parameters = batch_norm(4, dtype=ml_dtypes.bfloat16)
    weight = random(4, 3, 1, 1, dtype=ml_dtypes.bfloat16)
    text = FLOAT16_CONV.replace("float16", "bfloat16")
    folded = fold(parse(text, opset=22, w=weight, **parameters), compare=False)
    assert folded.codes == []
    scale, _ = scale_and_shift(parameters)
    exact = weight.astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    stored = folded.constant("conv", 1)
    assert stored.dtype == ml_dtypes.bfloat16
    # The next values below and above are no nearer.
    bits = stored.view(np.uint16)
    error = np.abs(stored.astype(np.float64) - exact)
    for neighbour in (bits - 1, bits + 1):
        other = neighbour.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
        assert (error <= np.abs(other - exact)).all()


def test_float16_weights_with_float32_statistics() -> None:
    statistics = batch_norm(4, dtype=np.float32)
    parameters = {**statistics, **{name: statistics[name].astype(np.float16) for name in ("bn_g", "bn_b")}}
    folded = fold(parse(FLOAT16_CONV, w=random(4, 3, 1, 1, dtype=np.float16), **parameters), compare=False)
    assert folded.codes == []
    assert folded.constant("conv", 1).dtype == folded.constant("conv", 2).dtype == np.float16


@pytest.mark.parametrize("overflowing", ["bn_g", "bn_b"])
def test_a_result_that_overflows_float16_is_left(overflowing: str) -> None:
    parameters = batch_norm(4, dtype=np.float16)
    parameters["bn_v"] = np.full(4, 2.0**-12, np.float16)
    parameters[overflowing] = np.array([1, 1, 60000, 1], np.float16)
    parameters["bn_m"] = np.array([0, 0, -2000 if overflowing == "bn_b" else 0, 0], np.float16)
    model = parse(FLOAT16_CONV, w=random(4, 3, 1, 1, dtype=np.float16), **parameters)
    folded = fold(model, compare=False)
    assert folded.codes == ["overflow"]
    assert "channel 2" in folded.plan.left[0].reason
    assert folded.count("BatchNormalization") == 1, "the affine itself does not fit float16 either"


def test_a_weight_that_is_not_finite_already_stays() -> None:
    weight = random(4, 3, 3, 3)
    weight[1, 0, 0, 0] = np.inf
    assert fold(conv_bn(w=weight), leftover="keep", compare=False).codes == ["overflow"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("[bn] y = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)", "model_input"),
        ("r = Relu (x)\n [bn] y = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)", "nonlinear"),
        ("[bn] b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)\n y = Relu (b)", "model_input"),
        ("r = Conv (x, x)\n [bn] y = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)", "weight_not_constant"),
        ("[bn] y = BatchNormalization (x, g, bn_b, bn_m, bn_v)", "parameters_not_constant"),
    ],
)
def test_every_bn_that_stays_has_a_reason(body: str, code: str) -> None:
    text = f"agraph (double[4,4,1,1] x, double[4] g) => (double[4,4,1,1] y) {{ {body} }}"
    assert fold(parse(text, **batch_norm(4)), leftover="keep").codes == [code]


def test_a_non_constant_bias_is_left() -> None:
    text = """
    agraph (double[N,3,4,4] x, double[4] bias) => (double[N,4,4,4] y)
    {
      c = Conv (x, w, bias)
      [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    assert fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)), leftover="keep").codes == ["weight_not_constant"]


def test_a_contradiction_of_kernel_and_weight_is_an_error() -> None:
    model = conv_bn("<kernel_shape=[2,2]>")
    with pytest.raises(bnfold.ModelLoadError, match="kernel_shape"):
        bnfold.fold(model)


def test_parameters_of_different_length_are_an_error() -> None:
    with pytest.raises(bnfold.ModelLoadError, match="BatchNormalization"):
        bnfold.fold(conv_bn(bn_m=np.zeros(3)))


def test_no_channels_at_all() -> None:
    text = CONV_BN.replace("ATTRIBUTES", "").replace("BIAS", "").replace("N,4,H,W", "N,0,H,W")
    folded = fold(parse(text, w=random(0, 3, 3, 3), **batch_norm(0)), compare=False)
    assert folded.codes == []


def test_an_unknown_rank_is_left() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      u = my.Unknown (x)
      [bn] y = BatchNormalization (u, bn_g, bn_b, bn_m, bn_v)
    }
    """
    assert fold(parse(text, **batch_norm(4)), compare=False).codes in (["unknown_rank"], ["no_rule"])
    # A conv says its own rank, whatever feeds it.
    text = text.replace("[bn] y = BatchNormalization (u", "c = Conv (u, w)\n [bn] y = BatchNormalization (c")
    assert fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)), compare=False).codes == []


def test_two_bns_behind_one_conv() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      [conv] c = Conv (x, w)
      d = BatchNormalization (c, one_g, one_b, one_m, one_v)
      e = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
      y = Relu (e)
    }
    """
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(4), **batch_norm(4, "one"))
    folded = fold(model)
    assert folded.codes == []
    assert folded.node("conv").output == ["e"]


def test_two_bns_before_one_conv() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,2,2] y)
    {
      d = BatchNormalization (x, one_g, one_b, one_m, one_v)
      e = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
      [conv] y = Conv (e, w)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 3, 3), **batch_norm(3), **batch_norm(3, "one")))
    assert folded.codes == []
    assert folded.node("conv").input[0] == "x"


def test_bns_on_both_sides_are_rounded_once() -> None:
    text = """
    agraph (float[N,3,4,4] x) => (float[N,4,4,4] y)
    {
      d = BatchNormalization (x, one_g, one_b, one_m, one_v)
      [conv] c = Conv (d, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    before, behind = batch_norm(3, "one", dtype=np.float32), batch_norm(4, dtype=np.float32)
    weight = random(4, 3, 1, 1, dtype=np.float32)
    folded = fold(parse(text, w=weight, **before, **behind), compare=False)
    inner, inner_shift = scale_and_shift(before, "one")
    outer, outer_shift = scale_and_shift(behind)
    wide = weight.astype(np.float64)
    exact = wide * inner.reshape(1, -1, 1, 1) * outer.reshape(-1, 1, 1, 1)
    assert folded.constant("conv", 1).tobytes() == exact.astype(np.float32).tobytes()
    bias = (wide[:, :, 0, 0] @ inner_shift) * outer + outer_shift
    np.testing.assert_array_max_ulp(folded.constant("conv", 2), bias.astype(np.float32), maxulp=1)


def test_a_chain_of_bns_is_composed_into_the_last_one_that_stays() -> None:
    text = """
    agraph (double[N,4,4,4] x) => (double[N,4,4,4] y)
    {
      [one] d = BatchNormalization (x, one_g, one_b, one_m, one_v)
      [two] e = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
      y = Relu (e)
    }
    """
    model = parse(text, **batch_norm(4), **batch_norm(4, "one"))
    folded = fold(model)
    assert [left.nodes for left in folded.plan.left] == [("one", "two")]
    assert (folded.plan.batch_norms, folded.plan.batch_norms_left) == (2, 2)
    kept = fold(model, leftover="keep")
    assert kept.count("BatchNormalization") == 2, "what keeps its own parameters cannot take others'"


def test_the_plan_can_be_printed() -> None:
    """A user's first `print(result.plan)` must not write out the whole graph, once for each path through it."""
    blocks = "\n".join(
        f"c{k} = Conv (r{k}, w)\n b{k} = BatchNormalization (c{k}, bn_g, bn_b, bn_m, bn_v)\n"
        f" r{k + 1} = Add (r{k}, b{k})"
        for k in range(5)
    )
    text = f"agraph (double[N,4,2,2] r0) => (double[N,4,2,2] y) {{ {blocks}\n y = Relu (r5) }}"
    result = bnfold.fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)))
    assert len(repr(result.plan)) < 20_000
    assert len(repr(result)) < 20_000


def test_constant_helper_finds_what_it_is_asked_for() -> None:
    model = conv_bn()
    np.testing.assert_array_equal(constant(model, "w"), random(4, 3, 3, 3))


def test_an_element_type_that_does_not_exist() -> None:
    """A file may say anything; a type of which nothing is known is an unknown type, or an error with a sentence."""
    text = """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[N] z)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      z = my.Strange (x)
    }
    """
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(4))
    model.graph.output[1].type.tensor_type.elem_type = 77
    try:
        folds = bnfold.fold(model).plan.batch_norms_folded
    except bnfold.ModelLoadError:
        return
    assert folds == 1


def test_cast_like_to_the_type_it_has_is_no_obstacle() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      c = Conv (x, w)
      d = CastLike (c, x)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    assert fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4))).codes == []


def test_what_the_parameters_of_a_bn_are_computed_of_keeps_its_value() -> None:
    text = """agraph (double[2] v, double[3,4,2] x) => (double[4] y, double[3,4,2] z) {
      g = MatMul (v, w)  y = Mul (g, s)  z = BatchNormalization (x, g, bn_b, bn_m, bn_v)
    }"""
    norm = {name: array for name, array in batch_norm(4).items() if name != "bn_g"}
    folded = fold(parse(text, w=random(2, 4), s=random(4), **norm), leftover="keep")
    assert [entry.code for entry in folded.plan.left if entry.batch_norms] == ["parameters_not_constant"]
    assert folded.count("Mul") == 1
