"""Shapes that runtimes compute and onnx's own inference does not find, or finds others in their place."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_fold import batch_norm, parse, pure_scale, random

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import Shape, value_types

Arrays = Mapping[str, np.ndarray]


def network(body: str, *, opset: int = 18, ir_version: int = 8, **constants: np.ndarray) -> onnx.ModelProto:
    given = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in constants.items()
    }
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1, "own" : 1]>\n'
    return parse(header + body, **given)


def shapes(model: onnx.ModelProto) -> dict[str, Shape | None]:
    return {name: shape for name, (shape, _) in value_types(with_inferred_shapes(from_proto(model)).graph).items()}


def run(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, dict(feeds))]


def folded_the_same(
    model: onnx.ModelProto, *feeds: Arrays, leftover: str = "conv"
) -> bnfold.FoldResult[onnx.ModelProto]:
    result = bnfold.fold(model, leftover=leftover)
    for given in feeds:
        for found, wanted in zip(run(result.model, given), run(model, given), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return result.plan


def numbers(*sizes: int) -> np.ndarray:
    return random(*sizes).astype(np.float32)


@pytest.mark.parametrize("leftover", ["conv", "mul-add"])
@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ("u = Unsqueeze <axes = [-3]> (x)  m = MatMul (u, w)", (4, 4)),
        ("m0 = MatMul (x, w)  m = Unsqueeze <axes = [-3]> (m0)", (4, 4)),
        ("m0 = MatMul (x, w)  u = Unsqueeze <axes = [3]> (m0)  m = Squeeze <axes = [-1]> (u)", (4, 4, 4)),
    ],
)
def test_negative_axes_before_opset_11_are_those_that_runtimes_take(
    nodes: str, size: tuple[int, ...], leftover: str
) -> None:
    body = (
        f"agraph (float[{','.join(map(str, size))}] x) => (float[] y)"
        f" {{ {nodes}  y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v) }}"
    )
    model = network(body, opset=9, w=random(4, 4), **batch_norm(4))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    folded_the_same(model, {"x": numbers(*size)}, leftover=leftover)


SQUEEZED = """
agraph (float[1,4,4] x) => (float y)
{
  s = Squeeze (x, axes)
  m = MatMul (s, w)
  y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
}
"""


def test_a_squeeze_of_an_empty_list_takes_every_axis_of_size_one() -> None:
    model = network(SQUEEZED, w=random(4, 4), axes=np.array([], np.int64), **batch_norm(4))
    plan = folded_the_same(model, {"x": numbers(1, 4, 4)})
    assert plan.batch_norms_folded == 1


def test_the_same_list_as_an_attribute() -> None:
    model = network(SQUEEZED.replace("(x, axes)", "(x)"), opset=11, w=random(4, 4), **batch_norm(4))
    empty = onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS)
    model.graph.node[0].attribute.append(empty)
    assert folded_the_same(model, {"x": numbers(1, 4, 4)}).batch_norms_folded == 1


DECLARED: list[dict[str, tuple[int | str, ...]]] = [
    {"s": ("N", 4, 4), "m": ("N", 4, 4)},
    {"s": (3, 4, 4)},
    {"m": (4, 4)},
    {"y": ("N", 4, 4)},
]


@pytest.mark.parametrize("declared", DECLARED)
def test_a_rank_that_depends_on_the_batch_is_not_believed(declared: Mapping[str, tuple[int | str, ...]]) -> None:
    model = network(SQUEEZED.replace("(x, axes)", "(x)").replace("[1,4,4]", "[N,4,4]"), w=random(4, 4), **batch_norm(4))
    for name, size in declared.items():
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        if name == "y":
            model.graph.output[0].CopyFrom(value)
        else:
            model.graph.value_info.append(value)
    folded_the_same(model, {"x": numbers(1, 4, 4)}, {"x": numbers(3, 4, 4)})


@pytest.mark.parametrize("rank", [2, 3])
def test_branches_of_two_ranks_have_none_whatever_is_declared(rank: int) -> None:
    body = """
    agraph (float[1,4,4] x, bool b) => (float y)
    {
      r = If (b) <
        then_branch = one () => (float[4,4] p) { p = Reshape (x, two) },
        else_branch = other () => (float[1,4,4] q) { q = Identity (x) }
      >
      m = MatMul (r, w)
      y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, w=random(4, 4), two=np.array([4, 4]), **batch_norm(4))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    declared = helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, (1, 4, 4)[-rank:])
    model.graph.value_info.append(declared)
    x = numbers(1, 4, 4)
    folded_the_same(model, {"x": x, "b": np.array(True)}, {"x": x, "b": np.array(False)})


def test_a_list_that_is_the_default_of_an_input_says_nothing_of_the_rank() -> None:
    body = """
    agraph (float[4,4] x, int64[n] target) => (float y)
    {
      r = Reshape (x, target)
      m = MatMul (r, w)
      y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, w=random(4, 4), target=np.array([4, 4]), **batch_norm(4))
    x = numbers(4, 4)
    folded_the_same(model, {"x": x}, {"x": x, "target": np.array([1, 4, 4])})
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name != "target"
    )
    assert folded_the_same(model, {"x": x}).batch_norms_folded == 1  # there nobody overrides it


def test_pieces_of_a_sequence_whose_axis_may_be_gone_have_no_known_rank() -> None:
    body = """
    agraph (float[2,4,4] x) => (float y)
    {
      q = SplitToSequence <axis = 0, keepdims = 0> (x, one)
      s = SequenceAt (q, zero)
      m = MatMul (s, w)
      y = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, w=random(4, 4), one=np.array(1), zero=np.array(0), **batch_norm(4))
    folded_the_same(model, {"x": numbers(2, 4, 4)})


POOLS = [
    ("MaxPool <kernel_shape = [1], strides = [3], ceil_mode = 1>", (6,), 18),
    ("MaxPool <kernel_shape = [2, 2], strides = [3, 3], pads = [1, 0, 0, 1], ceil_mode = 1>", (7, 8), 18),
    ("AveragePool <kernel_shape = [1, 2], strides = [3, 3], pads = [0, 1, 0, 0], ceil_mode = 1>", (8, 3), 18),
    ('LpPool <kernel_shape = [2, 3], dilations = [1, 2], auto_pad = "SAME_UPPER", ceil_mode = 1>', (3, 6), 18),
    ('MaxPool <kernel_shape = [2, 3], dilations = [2, 1], auto_pad = "SAME_LOWER">', (6, 5), 11),
    ("MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>", (13, 12), 18),
]


@pytest.mark.parametrize(("pool", "size", "opset"), POOLS)
def test_pools_have_the_sizes_that_runtimes_compute(pool: str, size: tuple[int, ...], opset: int) -> None:
    sizes = ",".join(map(str, (1, 2, *size)))
    model = network(f"agraph (float[{sizes}] x) => (float y) {{ p = {pool} (x)  y = Relu (p) }}", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert shapes(model)["p"] == run(model, {"x": numbers(1, 2, *size)})[0].shape


def test_a_size_that_was_made_true_or_false_is_not_followed() -> None:
    body = """
    agraph (float[3,4] x) => (float y)
    {
      s = Shape (x)
      t = Cast <to = 9> (s)
      n = Cast <to = 7> (t)
      c = ConstantOfShape (n)
      y = Relu (c)
    }
    """
    assert shapes(network(body))["c"] != (3, 4)


FUNCTION = """
<domain: "own", opset_import: ["" : 18]>
layer (a) => (r)
{
  w = Constant <value_ints = [0]> ()
  m = MatMul (a, w)
  r = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
}
"""


def with_function(body: str, *, declared: tuple[int | str, ...]) -> onnx.ModelProto:
    """A model that calls own.layer, which declares a shape for what it multiplies."""
    model = network(body)
    function = onnx.parser.parse_function(FUNCTION)
    constants = {"w": random(4, 4), **batch_norm(4)}
    del function.node[0]
    for name, array in constants.items():
        tensor = numpy_helper.from_array(array.astype(np.float32), name)
        function.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
    function.value_info.append(helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, declared))
    model.functions.append(function)
    model.ir_version = 10
    return model


def test_what_a_function_declares_of_itself_is_not_believed() -> None:
    model = with_function("agraph (float[1,4,4] x) => (float[1,4,4] y) { y = own.layer (x) }", declared=(4, 4))
    folded_the_same(model, {"x": numbers(1, 4, 4)})


def test_a_function_that_is_called_with_two_ranks_has_none() -> None:
    body = (
        "agraph (float[4,4] x, float[1,4,4] z) => (float[4,4] y, float[1,4,4] v) {y = own.layer (x) v = own.layer (z)}"
    )
    plan = folded_the_same(with_function(body, declared=("n", 4)), {"x": numbers(4, 4), "z": numbers(1, 4, 4)})
    assert [str(left.code) for left in plan.left] == ["unknown_rank"]


def test_what_all_calls_of_a_function_have_in_common_is_known_inside() -> None:
    body = "agraph (float[3,4] x, float[5,4] z) => (float[3,4] y, float[5,4] v) {y = own.layer (x) v = own.layer (z)}"
    plan = folded_the_same(with_function(body, declared=(1, 2, 3)), {"x": numbers(3, 4), "z": numbers(5, 4)})
    assert plan.batch_norms_folded == 1


def test_a_function_that_a_function_calls_is_inferred_with_what_that_gives_it() -> None:
    model = with_function("a (float[4,4] x) => (float[1,4,4] y) { y = own.outer (x) }", declared=(4, 4))
    nodes = [
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["b", "first"], ["u"]),
        helper.make_node("layer", ["u"], ["v"], domain="own"),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "outer", ["b"], ["v"], nodes, imports))
    plan = folded_the_same(model, {"x": numbers(4, 4)})
    assert [str(left.code) for left in plan.left] == ["channel_axis"]  # the second of three


def test_what_the_body_of_a_loop_declares_of_a_value_that_changes_its_rank_is_not_believed() -> None:
    body = """
    agraph (float[4,4] x) => (float last, float y)
    {
      last, y = Loop (count, yes, x) <body = turn (int64 i, bool go, float[4,4] s) => (bool on, float t, float r)
      {
        on = Identity (go)
        t = Reshape (s, target)
        m = MatMul (s, w)
        n = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v)
        r = ReduceMean <keepdims = 0> (n)
      }>
    }
    """
    given = {"count": np.array(2), "yes": np.array(True), "target": np.array([1, 4, 4]), "w": random(4, 4)}
    model = network(body, **given, **batch_norm(4))
    inner = model.graph.node[0].attribute[0].g
    for value in (*model.graph.output, *inner.output[1:]):
        value.type.tensor_type.ClearField("shape")
    folded_the_same(model, {"x": numbers(4, 4)})


def test_a_constant_that_a_fused_convolution_adds_is_not_scaled() -> None:
    body = """
    agraph (float[1,4,3,3] x) => (float[1,4,3,3] y)
    {
      r = com.microsoft.FusedConv <activation = "Relu"> (x, w, b, z)
      y = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
    }
    """
    scale = {name: np.abs(array) for name, array in pure_scale(4).items()}
    model = network(body, w=random(4, 4, 1, 1), b=random(4), z=random(1, 4, 3, 3), **scale)
    folded_the_same(model, {"x": numbers(1, 4, 3, 3)})


def test_nothing_moves_into_the_ratio_of_a_dropout_of_a_constant() -> None:
    body = """
    agraph (float[1,4,3,3] x) => (float[1,4,2,2] y)
    {
      c = Conv (x, w)
      r = ReduceMean <keepdims = 0> (c)
      d = Dropout (k, r)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, w=random(4, 4, 1, 1), k=random(1, 4, 2, 2), **batch_norm(4))
    folded_the_same(model, {"x": numbers(1, 4, 3, 3)})


def test_elements_of_an_empty_axis_are_at_no_position() -> None:
    body = """
    agraph (float[1,4,3,3] x) => (float[1,4,3,1] y)
    {
      e = Slice (x, zero, zero, three)
      d = Gather <axis = 3> (e, zero)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = network(body, zero=np.array([0]), three=np.array([3]), **batch_norm(4))
    assert bnfold.inspect(model).batch_norms_folded == 0
