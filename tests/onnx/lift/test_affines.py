"""Affines spelled out as Mul, Add, Sub and Div: what goes into weights, and what stays as it is."""

import itertools

import numpy as np
import pytest
from onnx_fold import batch_norm, fold, parse, random, run_unoptimised

from bnfold.graph import Kind

IMAGE = "double[N,4,3,3]"
STEPS = {
    "Mul": "{y} = Mul ({x}, {c})",
    "Mul, constant first": "{y} = Mul ({c}, {x})",
    "Add": "{y} = Add ({x}, {c})",
    "Sub": "{y} = Sub ({x}, {c})",
    "Sub, constant first": "{y} = Sub ({c}, {x})",
    "Div": "{y} = Div ({x}, {c})",
}


def chain(steps: tuple[str, ...]) -> str:
    """Steps from v0 to vN, with constants c0, c1 …"""
    lines = [STEPS[step].format(x=f"v{at}", y=f"v{at + 1}", c=f"c{at}") for at, step in enumerate(steps)]
    return " ".join(lines)


@pytest.mark.parametrize("side", ["behind a conv", "before a conv", "between two"])
@pytest.mark.parametrize("steps", [*itertools.product(STEPS, STEPS)], ids="-".join)
def test_two_steps_in_any_order_and_side(steps: tuple[str, str], side: str) -> None:
    before = "v0 = Conv (x, w, b)" if side != "before a conv" else "v0 = Identity (x)"
    after = "y = Conv (v2, w, b)" if side != "behind a conv" else "y = Identity (v2)"
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ {before} {chain(steps)} {after} }}"
    constants = {f"c{at}": random(4, 1, 1, seed=at) for at in range(2)}
    folded = fold(parse(text, w=random(4, 4, 1, 1), b=random(4), **constants))
    assert not any(folded.count(op_type) for op_type in ("Mul", "Add", "Sub", "Div"))
    assert all(move.kind is Kind.AFFINE for move in folded.plan.folds)
    assert folded.plan.batch_norms == 0


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (1, 1, 1)])
@pytest.mark.parametrize("op_type", ["Mul", "Add", "Sub", "Div"])
def test_shapes_of_one_number_for_each_channel_or_for_all(shape: tuple[int, ...], op_type: str) -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ v = Conv (x, w, b) y = {op_type} (v, c) }}"
    folded = fold(parse(text, w=random(4, 4, 1, 1), b=random(4), c=random(*shape)))
    assert folded.count(op_type) == 0


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 1, 1, 3), (4, 3, 3), (4, 1, 3)])
@pytest.mark.parametrize("op_type", ["Mul", "Div"])
def test_a_constant_along_the_image_stays(shape: tuple[int, ...], op_type: str) -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ v = Conv (x, w, b) y = {op_type} (v, c) }}"
    assert fold(parse(text, w=random(4, 4, 1, 1), b=random(4), c=random(*shape))).count(op_type) == 1


def test_a_row_on_an_image_of_equal_sides_is_no_channel_constant() -> None:
    """(W,) on NCHW with W = C: the right-most axis, whatever its size."""
    text = "agraph (double[N,4,4,4] x) => (double[N,4,4,4] y) { v = Conv (x, w, b) y = Mul (v, c) }"
    folded = fold(parse(text, w=random(4, 4, 1, 1), b=random(4), c=random(4)))
    assert folded.count("Mul") == 1
    assert folded.codes == ["channel_axis"]


@pytest.mark.parametrize("symbol", ["N,C,3,3", "N,4,H,W"])
def test_a_constant_that_may_broadcast_the_value_is_no_affine(symbol: str) -> None:
    """An unknown size may be 1, and then the constant makes the result larger than its operand."""
    text = f"agraph (double[{symbol}] x) => (double[A,B,C,D] y) {{ v = Relu (x) y = Mul (v, c) }}"
    shape = (4, 1, 1) if "C" in symbol else (1, 3, 3)
    feeds = {"x": random(2, 4, 3, 3)}
    assert fold(parse(text, c=random(*shape)), feeds=feeds).count("Mul") == 1


def test_division_of_a_constant_is_not_linear() -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ v = Conv (x, w, b) y = Div (c, v) }}"
    assert fold(parse(text, w=random(4, 4, 1, 1), b=random(4) + 30, c=random(4, 1, 1))).count("Div") == 1


def test_division_by_zero_stays() -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ v = Conv (x, w, b) y = Div (v, c) }}"
    constant = np.array([1.0, 0, 1, 1]).reshape(4, 1, 1)
    assert fold(parse(text, w=random(4, 4, 1, 1), b=random(4), c=constant), compare=False).count("Div") == 1


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_numbers_that_are_not_finite_stay(value: float) -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ v = Conv (x, w, b) y = Add (v, c) }}"
    constant = np.array([1.0, value, 1, 1]).reshape(4, 1, 1)
    assert fold(parse(text, w=random(4, 4, 1, 1), b=random(4), c=constant), compare=False).count("Add") == 1


def test_frozen_batch_norm_with_its_arithmetic_in_the_file() -> None:
    """Buffers, Add of epsilon, Sqrt, Div, Reshape: all on constants."""
    text = f"""agraph ({IMAGE} x) => ({IMAGE} y) {{
        v = Conv (x, w) e = Add (bn_v, eps) s = Sqrt (e) g = Div (bn_g, s) gr = Reshape (g, shape)
        m = Mul (bn_m, g) t = Sub (bn_b, m) tr = Reshape (t, shape) p = Mul (v, gr) y = Add (p, tr)
    }}"""
    shape = np.array([1, 4, 1, 1])
    folded = fold(parse(text, w=random(4, 4, 1, 1), eps=np.array(1e-5), shape=shape, **batch_norm(4)))
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]


def test_batch_norm_unfused() -> None:
    """(x - mean) / sqrt(var + eps) * gamma + beta, as tf2onnx and Paddle write it."""
    text = f"""agraph ({IMAGE} x) => ({IMAGE} y) {{
        v = Conv (x, w) a = Sub (v, mean) e = Add (var, eps) s = Sqrt (e) n = Div (a, s) p = Mul (gamma, n)
        y = Add (beta, p)
    }}"""
    parameters = {"mean": random(4, 1, 1), "var": np.abs(random(4, 1, 1)), "gamma": random(4, 1, 1, seed=2)}
    folded = fold(parse(text, w=random(4, 4, 1, 1), eps=np.array(1e-5), beta=random(4, 1, 1, seed=3), **parameters))
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]


@pytest.mark.parametrize("bias", ["", "d = Add (c, bias)"])
def test_layer_scale_after_a_linear(bias: str) -> None:
    text = f"""agraph (double[N,L,4] x) => (double[N,L,4] y) {{
        c = MatMul (x, w) {bias} s = Mul ({"d" if bias else "c"}, gamma) y = Add (x, s)
    }}"""
    constants = {"bias": random(4)} if bias else {}
    folded = fold(parse(text, w=random(4, 4), gamma=random(4, seed=3), **constants))
    assert folded.count("Mul") == 0


def test_a_shift_behind_a_matmul_is_its_bias_already() -> None:
    """It is one map, not an affine of its own, so that a fold never trades one Add for another."""
    text = "agraph (double[N,L,4] x) => (double[N,L,4] y) { c = MatMul (x, w) y = Add (c, bias) }"
    model = parse(text, w=random(4, 4), bias=random(4))
    assert fold(model).model == model


def test_a_spelled_out_affine_that_stays_is_not_rewritten() -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ r = Relu (x) m = Mul (r, c) y = Sigmoid (m) }}"
    model = parse(text, c=random(4, 1, 1))
    assert fold(model).model == model


def test_a_constant_that_others_read_is_kept_for_them() -> None:
    text = f"""agraph ({IMAGE} x) => ({IMAGE} y, {IMAGE} z) {{
        v = Conv (x, w) a = Mul (v, c) y = Relu (a) r = Sigmoid (x) z = Mul (r, c)
    }}"""
    folded = fold(parse(text, w=random(4, 4, 1, 1), c=random(4, 1, 1)))
    assert folded.count("Mul") == 1
    assert any(tensor.name == "c" for tensor in folded.model.graph.initializer)


@pytest.mark.parametrize("leftover", ["conv", "mul-add", "keep"])
def test_a_chain_with_a_bn_in_it_becomes_one_when_it_stays(leftover: str) -> None:
    text = f"""agraph ({IMAGE} x) => ({IMAGE} y) {{
        r = Relu (x) m = Mul (r, c) b = BatchNormalization (m, bn_g, bn_b, bn_m, bn_v) y = Sigmoid (b)
    }}"""
    folded = fold(parse(text, c=random(4, 1, 1), **batch_norm(4)), leftover=leftover)
    assert folded.plan.batch_norms == folded.plan.batch_norms_left == 1


SCALER = """<ir_version: 10, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
agraph (KIND[3,4] x) => (float[3,2] y) {
    c = ai.onnx.ml.Scaler <offset=[OFFSET], scale=[SCALE]> (x) y = Gemm (c, w, b)
}"""


@pytest.mark.parametrize(("offset", "scale"), [("1.0, -2.0, 3.0, 0.5", "2.0, 0.5, 1.5, 3.0"), ("2.0", "0.25")])
def test_the_scaler_of_a_pipeline_goes_into_the_layer_behind_it(offset: str, scale: str) -> None:
    text = SCALER.replace("KIND", "float").replace("OFFSET", offset).replace("SCALE", scale)
    model = parse(text, w=random(4, 2, dtype=np.float32), b=random(2, dtype=np.float32))
    folded = fold(model, compare=False, exactly=True)
    assert [node.op_type for node in folded.model.graph.node] == ["Gemm"]
    x = random(3, 4, dtype=np.float32)
    less, factor = (np.array([float(number) for number in given.split(", ")]) for given in (offset, scale))
    exact = ((x - less) * factor) @ random(4, 2) + random(2)
    np.testing.assert_allclose(run_unoptimised(folded.model, {"x": x}), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["double", "int64"])
def test_a_scaler_that_makes_another_type_stays(kind: str) -> None:
    text = SCALER.replace("KIND", kind).replace("OFFSET", "1.0").replace("SCALE", "2.0")
    model = parse(text, w=random(4, 2, dtype=np.float32), b=random(2, dtype=np.float32))
    assert fold(model, compare=False).model == model
