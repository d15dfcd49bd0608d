"""Rank and sizes from both sides: what weights prove of values that nothing else tells about."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_fold import batch_norm, parse, random

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import Shape, value_types

HEADER = '<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1, "ai.onnx.ml" : 2]>\n'


def network(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    given = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in constants.items()
    }
    return parse(HEADER + body, **given)


def shapes(model: onnx.ModelProto) -> dict[str, Shape | None]:
    return {name: shape for name, (shape, _) in value_types(with_inferred_shapes(from_proto(model)).graph).items()}


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def folded_the_same(model: onnx.ModelProto, **feeds: np.ndarray) -> bnfold.FoldResult[onnx.ModelProto]:
    result = bnfold.fold(model)
    np.testing.assert_allclose(run(result.model, **feeds), run(model, **feeds), rtol=1e-4, atol=1e-5)
    return result


IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


def test_the_weight_of_a_reader_proves_the_rank_behind_an_unknown_operator() -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float y)
    {
      q = com.microsoft.Unknown (x)
      n = BatchNormalization (q, bn_g, bn_b, bn_m, bn_v)
      y = Conv (n, w)
    }
    """
    model = network(body, w=random(5, 4, 3, 3), **batch_norm(4))
    assert shapes(model)["q"] == (None, 4, None, None)
    assert bnfold.inspect(model).batch_norms_folded == 1


def test_a_weight_proves_the_shape_of_an_input_without_one() -> None:
    body = """
    agraph (float x) => (float y)
    {
      r = Relu (x)
      n = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
      p = MaxPool <kernel_shape = [2, 2]> (n)
      y = Conv (p, w)
    }
    """
    model = network(body, w=random(5, 3, 3, 3), **batch_norm(3, seed=2))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert shapes(model)["x"] == (None, 3, None, None)


def test_the_scaler_of_a_classical_pipeline_passes_its_rank_on() -> None:
    body = """
    agraph (float[N,6] x) => (float[N,4] y)
    {
      s = ai.onnx.ml.Scaler <offset = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1], scale = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]> (x)
      g = Gemm (s, w)
      y = BatchNormalization (g, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, w=random(6, 4), **batch_norm(4))
    result = folded_the_same(model, x=random(3, 6, dtype=np.float32))
    assert result.plan.batch_norms_folded == 1


def test_a_bn_of_known_rank_is_at_least_written_in_its_leftover_form() -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float[1,3,8,8] y)
    {
      q = com.microsoft.QuickGelu <alpha = 1.7> (x)
      n = BatchNormalization (q, bn_g, bn_b, bn_m, bn_v)
      y = com.microsoft.QuickGelu <alpha = 1.7> (n)
    }
    """
    result = folded_the_same(network(body, **batch_norm(3)), x=IMAGE)
    assert [node.op_type for node in result.model.graph.node] == ["QuickGelu", "Conv", "QuickGelu"]


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_sizes_of_a_reshape_are_followed_one_by_one(opset: int) -> None:
    """Reshape by Concat(n, 3, 2, -1): three of four sizes are known, and the channels stay in the right groups."""
    body = """
    agraph (float[n,3,h,w] x) => (float[n,3,k,2] y)
    {
      c = Conv (x, weight)
      s = Shape (c)
      b = Gather <axis = 0> (s, zero)
      target = Concat <axis = 0> (b, rest)
      r = Reshape (c, target)
      t = Transpose <perm = [0, 1, 3, 2]> (r)
      y = BatchNormalization (t, bn_g, bn_b, bn_m, bn_v)
    }
    """
    constants = {"weight": random(6, 3, 1, 1), **batch_norm(3)}
    given = {name: array.astype(np.float32) for name, array in constants.items()}
    model = parse(body, opset=opset, ir_version=6, zero=np.array([0]), rest=np.array([3, 2, -1]), **given)
    result = folded_the_same(model, x=random(2, 3, 5, 7, dtype=np.float32))
    assert result.plan.batch_norms_folded == 1
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}


@pytest.mark.parametrize(("end", "proved"), [("two", (None, 4, 2)), ("unknown", (None, None, None))])
def test_a_part_of_a_shape_is_followed(end: str, proved: tuple[int | None, ...]) -> None:
    """TensorFlow repeats rows so: Reshape by Concat(shape[:2], …), if it is known where the part ends."""
    body = f"""
    agraph (float[n,4,6] x, int64[1] k) => (float[a,b,c] y)
    {{
      s = Shape (x)
      unknown = Add (k, one)
      front = Slice (s, zero, {end})
      target = Concat <axis = 0> (front, rest)
      y = Reshape (x, target)
    }}
    """
    numbers = {"zero": [0], "one": [1], "two": [2], "rest": [2]}
    found = shapes(parse(body, opset=13, ir_version=6, **{name: np.array(value) for name, value in numbers.items()}))
    assert tuple(size if isinstance(size, int) else None for size in found["y"] or ()) == proved


def test_shapes_declared_of_constants_hide_nothing() -> None:
    """A weight that is listed among the values too, without its sizes, still is what the initializer says."""
    body = """
    agraph (float[1,3,8,8] x) => (float[1,4,6,6] y)
    {
      c = Conv (x, w)
      y = Relu (c)
    }
    """
    model = network(body, w=random(4, 3, 3, 3))
    model.graph.value_info.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None))
    assert shapes(model)["c"] == (1, 4, 6, 6)


def test_outputs_that_are_inputs_or_constants_hide_nothing() -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float[1,4,6,6] y)
    {
      c = Conv (x, w)
      y = Add (c, k)
    }
    """
    model = network(body, w=random(4, 3, 3, 3), k=random(1, 4, 1, 1))
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "k"))
    assert (found := shapes(model))["c"] == (1, 4, 6, 6)
    assert (found["x"], found["k"]) == ((1, 3, 8, 8), (1, 4, 1, 1))


def test_what_is_declared_does_not_count_where_a_reader_disproves_it() -> None:
    """Channels last, as before a Transpose went: the Conv behind it is for four channels, in front."""
    body = """
    agraph (float[1,3,8,8] x) => (float[1,2,6,6] y)
    {
      c = Conv (x, w)
      q = com.microsoft.Unknown (c)
      y = Conv (q, v)
    }
    """
    model = network(body, w=random(4, 3, 3, 3), v=random(2, 4, 1, 1))
    model.graph.value_info.append(helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, [1, 6, 6, 4]))
    assert shapes(model)["q"] == (None, 4, None, None)


def test_what_is_declared_counts_only_if_nothing_contradicts_it() -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float[1,4,6,6] y)
    {
      c = Conv (x, w)
      q = com.microsoft.Unknown (c)
      n = BatchNormalization (q, bn_g, bn_b, bn_m, bn_v)
      y = com.microsoft.Unknown (n)
    }
    """
    model = network(body, w=random(4, 3, 3, 3), **batch_norm(4))
    model.graph.value_info.append(helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, [1, 4, 6, 6]))
    assert shapes(model)["q"] == (1, 4, 6, 6)
    stale = onnx.ModelProto.FromString(model.SerializeToString())
    stale.graph.value_info.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [2, 4, 6, 6]))
    assert shapes(stale)["q"] is None
    (left,) = bnfold.fold(stale).plan.left
    assert left.code == "unknown_rank"


def test_a_size_of_the_example_is_not_believed_where_the_input_is_open() -> None:
    body = """
    agraph (float[1,3,h,w] x) => (float[800,4] y)
    {
      c = Conv (x, weight)
      t = Transpose <perm = [2, 3, 0, 1]> (c)
      y = Reshape (t, shape)
    }
    """
    model = network(body, weight=random(4, 3, 3, 3), shape=np.array([-1, 4]))
    found = shapes(model)["y"]
    assert found is not None
    assert found[0] != 800


FUSED = """
agraph (float[1,3,8,8] x) => (float[1,5,6,6] y)
{
  n = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
  [fused] f = com.microsoft.FusedConv <activation = "Relu"> (n, w, b)
  y = BatchNormalization (f, bn2_g, bn2_b, bn2_m, bn2_v)
}
"""


def test_a_fused_conv_takes_the_bn_before_it() -> None:
    constants = {"w": random(5, 3, 3, 3), "b": random(5), **batch_norm(3), **batch_norm(5, "bn2")}
    result = folded_the_same(network(FUSED, **constants), x=IMAGE)
    assert (result.plan.batch_norms_folded, result.plan.batch_norms_left) == (1, 1)
    assert [node.op_type for node in result.model.graph.node] == ["FusedConv", "Conv"]


def test_only_a_scale_without_sign_passes_the_relu_of_a_fused_conv() -> None:
    positive = {name: np.abs(array) for name, array in batch_norm(5, "bn2").items()}
    positive |= {"bn2_b": np.zeros(5), "bn2_m": np.zeros(5)}
    constants = {"w": random(5, 3, 3, 3), "b": random(5), **batch_norm(3)}
    result = folded_the_same(network(FUSED, **constants, **positive), x=IMAGE)
    assert [node.op_type for node in result.model.graph.node] == ["FusedConv"]
    negative = positive | {"bn2_g": -positive["bn2_g"]}
    result = folded_the_same(network(FUSED, **constants, **negative), x=IMAGE)
    assert result.plan.batch_norms_left == 1


def test_what_a_fused_conv_adds_stops_an_affine() -> None:
    body = FUSED.replace("(n, w, b)", "(n, w, b, z)").replace("float[1,3,8,8] x", "float[1,3,8,8] x, float[1,5,6,6] z")
    positive = {name: np.abs(array) for name, array in batch_norm(5, "bn2").items()}
    positive |= {"bn2_b": np.zeros(5), "bn2_m": np.zeros(5)}
    constants = {"w": random(5, 3, 3, 3), "b": random(5), **batch_norm(3), **positive}
    z = random(1, 5, 6, 6, dtype=np.float32)
    result = folded_the_same(network(body, **constants), x=IMAGE, z=z)
    assert (result.plan.batch_norms_folded, result.plan.batch_norms_left) == (1, 1)


def test_a_padded_fused_conv_does_not_take_a_shift() -> None:
    body = FUSED.replace('activation = "Relu"', 'activation = "Relu", pads = [1, 1, 1, 1]').replace("5,6,6", "5,8,8")
    constants = {"w": random(5, 3, 3, 3), "b": random(5), **batch_norm(3), **batch_norm(5, "bn2")}
    result = folded_the_same(network(body, **constants), x=IMAGE)
    assert [left.code for left in result.plan.left][:1] == ["padded_shift"]


def test_a_fused_conv_keeps_its_kernel_and_activation_beside_a_conv_that_could_join_it() -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float[1,5,6,6] y)
    {
      c = Conv (x, u)
      y = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3, 3]> (c, w, b)
    }
    """
    result = folded_the_same(network(body, u=random(4, 3, 1, 1), w=random(5, 4, 3, 3), b=random(5)), x=IMAGE)
    assert not result.changed


@pytest.mark.parametrize("op_type", ["NhwcConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul"])
def test_other_maps_of_the_runtime_are_left_with_that_reason(op_type: str) -> None:
    body = """
    agraph (float[1,3,8,8] x) => (float[1,4,6,6] y)
    {
      [map] c = com.microsoft.Map (x, w)
      n = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      y = Relu (n)
    }
    """
    model = network(body.replace("Map", op_type), w=random(4, 3, 3, 3), **batch_norm(4))
    (left,) = bnfold.fold(model).plan.left
    assert f"{op_type} 'map' is a form of a map that onnxruntime writes for itself" in left.reason


@pytest.mark.parametrize("declared", ["", "float[2,4,4,3] t", "float[2,4,4,3] t, float[2,4,4,3] y"])
@pytest.mark.parametrize("attributes", ["", ", strides = [2, 1], dilations = [1, 2]", ', auto_pad = "SAME_UPPER"'])
def test_a_transposed_convolution_that_gives_less_than_it_reads(attributes: str, declared: str) -> None:
    """onnx's inference drops the axes of its result where `output_shape` is smaller than the input."""
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
    norm = batch_norm(4, dtype=np.float32)
    model = parse(
        f"agraph (float[2,4,5,5] x) => (float[2,4,4,3] z) <{declared}> {{"
        f" t = ConvTranspose <output_shape = [4, 3]{attributes}> (x, w)"
        " y = BatchNormalization (t, bn_g, bn_b, bn_m, bn_v)  z = Relu (y) }",
        w=weight,
        **norm,
    )
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 4, 5, 5)).astype(np.float32)}
    expected = run(model, **feeds)
    np.testing.assert_allclose(run(folded.model, **feeds), expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_open_are_no_matter_for_pads() -> None:
    model = parse(
        "agraph (float[2,4,H,5] x) => (float[2,4,4,3] y) { t = ConvTranspose <output_shape = [4, 3]> (x, w)"
        " y = BatchNormalization (t, bn_g, bn_b, bn_m, bn_v) }",
        w=np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32),
        **batch_norm(4, dtype=np.float32),
    )
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 4, 6, 5)).astype(np.float32)}
    expected = run(model, **feeds)
    np.testing.assert_allclose(run(folded.model, **feeds), expected, rtol=1e-5, atol=1e-5)
