"""The oracle itself: conversion to float64, its operators against other implementations, recorded outputs."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import oracle
import oracle_ops
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def element_types(model: onnx.ModelProto) -> set[int]:
    """Every element type that the graph declares or that shape inference finds."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.type.tensor_type.elem_type for value in values} | {t.data_type for t in graph.initializer}


EVERY_SOURCE_OF_FLOATS = """
<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
agraph (float[2, 3] x, float16[3] half_input) => (float[2, 3] y, float[2, 3] z)
<float[3] weight = {1, 2, 3}, int64[2] shape = {2, 3}, bool flag = {1}>
{
    constant = Constant <value = float[3] {4, 5, 6}> ()
    one = Constant <value_float = 0.1> ()
    several = Constant <value_floats = [0.1, 0.2, 0.3]> ()
    zeros = ConstantOfShape (shape)
    ones = ConstantOfShape <value = float[1] {1}> (shape)
    eye = EyeLike (ones)
    wide = Cast <to = 1> (half)
    wide_input = Cast <to = 1> (half_input)
    wide_brain = CastLike (brain, x)
    rounded = Cast <to = 10> (x)
    again = Cast <to = 1> (rounded)
    sum_1 = Add (again, weight)
    sum_2 = Add (sum_1, constant)
    sum_3 = Add (sum_2, one)
    sum_4 = Add (sum_3, several)
    sum_5 = Add (sum_4, zeros)
    sum_6 = Add (sum_5, eye)
    sum_7 = Sum (sum_6, wide, wide_brain, wide_input)
    y = local.twice (sum_7)
    z = If (flag) <
        then_branch = then_graph () => (float[2, 3] a) {
            inner = Constant <value = float {0.5}> ()
            a = Mul (x, inner)
        },
        else_branch = else_graph () => (float[2, 3] b) { b = Identity (x) }
    >
}
<domain: "local", opset_import: ["" : 18]>
twice (value) => (result) { two = Constant <value = float {2}> () result = Mul (value, two) }
"""


def every_source_of_floats() -> onnx.ModelProto:
    model = model_of(EVERY_SOURCE_OF_FLOATS)
    # The text form has no numbers of these types.
    for name, dtype in (("half", np.float16), ("brain", ml_dtypes.bfloat16)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], dtype), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def test_to_double_converts_every_source_of_floats() -> None:
    model = every_source_of_floats()
    double = oracle.to_double(model)
    onnx.checker.check_model(double, full_check=True)
    assert element_types(double) & {FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16} == set()
    x = np.random.default_rng(0).standard_normal((2, 3))
    values = oracle.evaluate(double, {"x": x, "half_input": np.ones(3)}, intermediate=True)
    assert not any(array.dtype in (np.float16, np.float32) for array in values.values() if array is not None)
    # float32 constants keep their value, and x is no longer rounded to float16.
    tenth, several = np.float64(np.float32(0.1)), np.float32([0.1, 0.2, 0.3]).astype(np.float64)
    constants = np.array([1 + 4 + 1 + 1 + 1, 2 + 5 + 2 + 2 + 1, 3 + 6 + 3 + 3 + 1])
    expected = 2 * (x + constants + tenth + several + np.eye(2, 3))
    np.testing.assert_allclose(values["y"], expected, rtol=1e-14)
    np.testing.assert_array_equal(values["z"], x / 2)


def test_to_double_leaves_its_argument_alone() -> None:
    model = every_source_of_floats()
    before = model.SerializeToString(deterministic=True)
    oracle.to_double(model)
    assert model.SerializeToString(deterministic=True) == before


def test_epsilon_stays_the_float32_of_the_file() -> None:
    model = model_of("""
        <ir_version: 10, opset_import: ["" : 18]>
        agraph (float[1, 1] x) => (float[1, 1] y) <float[1] one = {1}, float[1] zero = {0}>
        { y = BatchNormalization <epsilon = 0.1> (x, one, zero, zero, zero) }
    """)
    y = oracle.evaluate(oracle.to_double(model), {"x": np.ones((1, 1))})["y"]
    assert y.item() == pytest.approx(float(np.float32(0.1)) ** -0.5, rel=1e-15)


QUANTISED = """
<ir_version: 10, opset_import: ["" : 19]>
agraph (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y)
<float[4] scales = {1, 1, 2, 2}, float step = {0.5}, uint8 zero = {128}>
{
    big = Resize <mode = "nearest"> (x, , scales)
    q = QuantizeLinear (big, step, zero)
    y = DequantizeLinear (q, step, zero)
}
"""


def test_operators_without_float64_get_casts() -> None:
    double = oracle.to_double(model_of(QUANTISED))
    onnx.checker.check_model(double, full_check=True)
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    y = oracle.evaluate(double, {"x": x})["y"]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x.repeat(2, axis=2).repeat(2, axis=3))


def test_cast_needs_to_know_the_type() -> None:
    # An operator of an unknown domain hides the type of what it computes.
    model = model_of("""
        <ir_version: 10, opset_import: ["" : 17, "unknown" : 1]>
        agraph (float[1, 1, 2, 2] x) => (float[1, 1, N, M] y)
        { scales = unknown.Scales (x) y = Resize (x, , scales) }
    """)
    with pytest.raises(ValueError, match="the type of 'scales' is unknown"):
        oracle.to_double(model)


def array(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


OPERATORS = {
    "1d": ("Conv", {"pads": [1, 2], "strides": [2]}, [array(2, 4, 9), array(6, 4, 3), array(6)]),
    "2d": (
        "Conv",
        {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        [array(2, 3, 8, 9), array(4, 3, 3, 2), array(4)],
    ),
    "3d": ("Conv", {"pads": [1] * 6}, [array(1, 2, 4, 5, 3), array(3, 2, 3, 3, 2)]),
    "grouped": ("Conv", {"group": 2}, [array(2, 4, 6, 6), array(6, 2, 3, 3)]),
    "depthwise": ("Conv", {"group": 4, "kernel_shape": [3, 3]}, [array(2, 4, 6, 6), array(4, 1, 3, 3)]),
    "same upper": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [array(1, 2, 7, 8), array(2, 2, 4, 3)]),
    "same lower": ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, [array(1, 2, 7, 8), array(2, 2, 4, 3)]),
    "valid": ("Conv", {"auto_pad": "VALID"}, [array(1, 2, 7, 8), array(2, 2, 4, 3)]),
    "transposed 1d": ("ConvTranspose", {"strides": [2]}, [array(2, 4, 5), array(4, 3, 3), array(3)]),
    "transposed 2d": (
        "ConvTranspose",
        {"pads": [1, 0, 2, 1], "strides": [2, 3], "output_padding": [1, 2]},
        [array(2, 4, 5, 4), array(4, 3, 3, 4), array(3)],
    ),
    "transposed grouped": (
        "ConvTranspose",
        {"group": 2, "dilations": [2, 1], "pads": [1, 1, 1, 1]},
        [array(2, 4, 5, 4), array(4, 3, 3, 3)],
    ),
    "max": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, [array(2, 3, 8, 7)]),
    "max 1d dilated": ("MaxPool", {"kernel_shape": [3], "dilations": [2]}, [array(2, 3, 11)]),
    "max ceil": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [array(1, 2, 8, 7)]),
    "max same": (
        "MaxPool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        [array(1, 2, 8, 7)],
    ),
    "average": ("AveragePool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, [array(2, 3, 8, 7)]),
    "average counting pads": (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "count_include_pad": 1},
        [array(2, 3, 8, 7)],
    ),
    "average ceil": (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        [array(1, 2, 8, 7)],
    ),
    "average same": (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        [array(1, 2, 8, 7)],
    ),
    "group norm": (
        "GroupNormalization",
        {"num_groups": 2, "epsilon": 1e-3},
        [array(2, 4, 3, 5), array(4), array(4)],
    ),
    "batch norm": (
        "BatchNormalization",
        {"epsilon": 1e-3},
        [array(2, 4, 3, 5), array(4), array(4), array(4), abs(array(4))],
    ),
    "batch norm of a matrix": (
        "BatchNormalization",
        {},
        [array(5, 4), array(4), array(4), array(4), abs(array(4))],
    ),
    "mean": ("Mean", {}, [array(2, 3, 4), array(3, 1), array(2, 1, 4)]),
    "mean, the first broadcast": ("Mean", {}, [array(3, 1), array(3, 4), array(1, 4)]),
}


def one_node(op_type: str, attributes: dict, inputs: list[np.ndarray], opset: int, type_: int) -> onnx.ModelProto:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_)
    names = [f"i{k}" for k in range(len(inputs))]
    node = onnx.helper.make_node(op_type, names, ["y"], **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one_node",
        [onnx.helper.make_tensor_value_info("i0", type_, inputs[0].shape)],
        [onnx.helper.make_tensor_value_info("y", type_, [None] * inputs[0].ndim)],
        [numpy_helper.from_array(x.astype(dtype), name) for x, name in zip(inputs[1:], names[1:], strict=True)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)


# onnx's own GroupNormalization computes in float32, its grouped ConvTranspose fails, its Mean adds to the first in
# place; onnxruntime knows them all.
@pytest.mark.parametrize(
    "name", sorted(OPERATORS.keys() - {"group norm", "transposed grouped", "mean, the first broadcast"})
)
def test_operator_equals_onnx_reference(name: str) -> None:
    op_type, attributes, inputs = OPERATORS[name]
    model = one_node(op_type, attributes, inputs, 18, DOUBLE)
    (expected,) = ReferenceEvaluator(model).run(None, {"i0": inputs[0]})
    assert oracle.relative_error(oracle.evaluate(model, {"i0": inputs[0]})["y"], expected) < 1e-14


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_equals_onnxruntime(name: str) -> None:
    op_type, attributes, inputs = OPERATORS[name]
    opset = 21 if op_type == "GroupNormalization" else 18
    single = one_node(op_type, attributes, inputs, opset, FLOAT)
    (expected,) = onnxruntime_outputs(single, inputs[0])
    y = oracle.evaluate(oracle.to_double(single), {"i0": inputs[0].astype(np.float32)})["y"]
    assert oracle.relative_error(expected.astype(np.float64), y) < 1e-6


def onnxruntime_outputs(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"i0": x.astype(np.float32)})


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 22])
def test_batch_norm_in_every_opset(opset: int) -> None:
    # Before opset 14 onnx's own evaluator normalises by the batch's statistics.
    x, gamma, beta, mean, var = array(2, 3, 4), array(3), array(3, seed=2), array(3, seed=3), abs(array(3, seed=4))
    model = one_node("BatchNormalization", {"epsilon": 0.25}, [x, gamma, beta, mean, var], opset, DOUBLE)
    column = (1, 3, 1)
    expected = gamma.reshape(column) * (x - mean.reshape(column)) / np.sqrt(var.reshape(column) + 0.25)
    expected = expected + beta.reshape(column)
    assert oracle.relative_error(oracle.evaluate(model, {"i0": x})["y"], expected) < 1e-14


def test_batch_norm_per_element_before_opset_9() -> None:
    x = array(2, 3, 4)
    gamma, beta, mean, var = array(3, 4), array(3, 4, seed=2), array(3, 4, seed=3), abs(array(3, 4, seed=4))
    model = one_node("BatchNormalization", {"spatial": 0, "epsilon": 0.25}, [x, gamma, beta, mean, var], 8, DOUBLE)
    expected = gamma * (x - mean) / np.sqrt(var + 0.25) + beta
    assert oracle.relative_error(oracle.evaluate(model, {"i0": x})["y"], expected) < 1e-14


def test_batch_norm_in_training_mode_uses_the_batch() -> None:
    x, gamma, beta, mean, var = array(2, 3, 4), array(3), array(3, seed=2), array(3, seed=3), abs(array(3, seed=4))
    parameters = [x, gamma, beta, mean, var]
    model = one_node("BatchNormalization", {"training_mode": 1, "momentum": 0.5}, parameters, 15, DOUBLE)
    model.graph.node[0].output.extend(["running_mean", "running_var"])
    for name in ("running_mean", "running_var"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, DOUBLE, [3]))
    expected = ReferenceEvaluator(model).run(None, {"i0": x})
    for actual, wanted in zip(oracle.evaluate(model, {"i0": x}).values(), expected, strict=True):
        assert oracle.relative_error(actual, wanted) < 1e-14


def test_activations_are_float64_inside_functions() -> None:
    # Gelu is a function of Erf, and onnx's own Erf gives float32.
    x = np.linspace(-5, 5, 101)
    model = one_node("Gelu", {}, [x], 20, DOUBLE)
    from scipy.special import ndtr

    assert oracle.relative_error(oracle.evaluate(model, {"i0": x})["y"], x * ndtr(x)) < 1e-14
    (onnx_own,) = ReferenceEvaluator(model).run(None, {"i0": x})
    assert oracle.relative_error(onnx_own, x * ndtr(x)) > 1e-10


@pytest.mark.parametrize(
    "node",
    [
        ("ConvTranspose", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [array(1, 2, 4, 4), array(2, 2, 3, 3)]),
        ("ConvTranspose", {"output_shape": [9, 9], "strides": [2, 2]}, [array(1, 2, 4, 4), array(2, 2, 3, 3)]),
    ],
)
def test_unknown_forms_are_refused(node: tuple) -> None:
    op_type, attributes, inputs = node
    with pytest.raises(NotImplementedError, match="ConvTranspose with output_shape or auto_pad"):
        oracle.evaluate(one_node(op_type, attributes, inputs, 18, DOUBLE), {"i0": inputs[0]})


def test_relative_error_sees_every_difference() -> None:
    ones, nan = np.ones(3), np.array([1.0, np.nan, 1.0])
    assert oracle.relative_error(ones, ones) == 0
    assert oracle.relative_error(ones * (1 + 1e-6), ones) == pytest.approx(1e-6)
    assert oracle.relative_error(ones.reshape(3, 1), ones) == np.inf
    assert oracle.relative_error(nan, ones) == np.inf
    assert oracle.relative_error(ones, nan) == np.inf
    assert oracle.relative_error(nan, nan) == 0
    assert oracle.relative_error(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert oracle.relative_error(np.ones(3, int), ones) == np.inf
    assert oracle.relative_error(np.full(3, 1e-100), np.zeros(3)) > 1


def test_every_operator_of_the_oracle_is_tested() -> None:
    tested = {op_type for op_type, _, _ in OPERATORS.values()} | {"Erf"}
    assert {operator.__name__ for operator in oracle_ops.OPERATORS} == tested
