"""The smallest possible change of a parameter, and which parameters are changed."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from bnfold.onnx.file.load import from_proto
from bnfold.report import Verdict
from bnfold.verification import verify
from bnfold.verification.judging.noise import moved_by_one_ulp
from bnfold.verification.onnx.outputs.parameters import open_model
from bnfold.verification.onnx.outputs.randomness import find_random_node
from bnfold.verification.onnx.outputs.reaching import reached_outputs

FLOATS = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_every_element_stays_or_becomes_a_neighbour(dtype):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(300_000) * 10.0 ** rng.integers(-3, 4, 300_000)).astype(dtype)
    values = values[values != 0]
    before = values.copy()
    moved = moved_by_one_ulp(values, np.random.default_rng(1))
    np.testing.assert_array_equal(values, before)
    up = np.nextafter(values, np.array(np.inf, dtype))
    down = np.nextafter(values, np.array(-np.inf, dtype))
    shares = [np.mean(moved == neighbour) for neighbour in (down, values, up)]
    assert sum(shares) == 1
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.005)


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_what_has_no_smallest_change_stays(dtype):
    largest = ml_dtypes.finfo(dtype).max
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, largest, -largest] * 500, dtype).reshape(50, 70)
    moved = moved_by_one_ulp(special, np.random.default_rng(0))
    assert moved.shape == special.shape
    assert moved.tobytes() == special.tobytes()


def test_a_variance_never_becomes_negative():
    smallest = np.full(1000, np.finfo(np.float32).smallest_subnormal)
    assert (moved_by_one_ulp(smallest, np.random.default_rng(0)) >= 0).all()


def test_draws_are_those_of_the_seed():
    values = np.ones((3, 5, 7), np.float32)
    first, second, other = (moved_by_one_ulp(values, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == values.shape
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def opened(text, opset=17, **arrays):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return open_model(from_proto(model))


def movable(model):
    return {tensor.name for tensor in model.tensors if tensor.movable}


def floats(*shape):
    return np.full(shape, 2.0, np.float32)


@pytest.mark.parametrize(
    ("body", "arrays", "expected"),
    [
        ("y = Mul(x, w)", {"w": floats(4)}, {"w"}),
        ("y = Mul(x, w)", {"w": floats()}, set()),
        ("y = Pow(x, w)", {"w": floats(1)}, set()),
        ("y = Resize(x, , s)", {"s": floats(4)}, set()),
        ("i = Identity(s) j = Concat<axis = 0>(i, t) y = Resize(x, , j)", {"s": floats(2), "t": floats(2)}, set()),
        ("p = Greater(x, w) y = Where(p, x, v)", {"w": floats(4), "v": floats(4)}, {"v"}),
        (
            "s = Shape(x) f = Cast<to = 1>(s) h = Mul(f, half) i = Cast<to = 7>(h) z = Resize(x, , , i) y = Mul(z, w)",
            {"half": floats(4), "w": floats(4)},
            {"w"},
        ),
        ("s = Shape(w) o = Expand(b, s) y = Mul(x, o)", {"w": floats(4), "b": floats(1)}, {"b", "w"}),
        ("y = Gather(w, i)", {"w": floats(9, 4), "i": np.arange(3)}, {"w"}),
        ("c = Constant<value = float[2] {1.0, 2.0}>() y = Mul(x, c)", {}, {"c"}),
        ("c = Constant<value_floats = [1.0, 2.0]>() y = Mul(x, c)", {}, {"c"}),
        ("c = Constant<value = float {1.0}>() y = Mul(x, c)", {}, set()),
        ("c = ConstantOfShape<value = float[1] {2.5}>(n) y = Mul(x, c)", {"n": np.array([4])}, {"c"}),
        ("c = ConstantOfShape(n) y = Mul(x, c)", {"n": np.array([4])}, set()),
        ("y = Mul(x, w)", {"w": floats(4), "unused": floats(600)}, {"w"}),
    ],
)
def test_which_tensors_are_parameters(body, arrays, expected):
    model = opened(f"g (float[1,3,4,4] x) => (float[a,b,c,d] y) {{ {body} }}", **arrays)
    assert movable(model) == expected
    assert (model.reached == {"y"}) is bool(expected)


def test_a_path_through_a_shape_carries_no_value():
    model = opened("g (float[1,4] x) => (float[1,4] y, int64[2] n) { y = Mul(x, w) n = Shape(y) }", w=floats(4))
    assert model.reached == {"y"}


LOOP = """g (int64 t, float[2] x, float[2] v) => (float[2] a, float[2] b, float[n, 2] c) {{
    a, b, c = Loop <
        body = body (int64 i, bool go, float[2] p, float[2] q) => (bool on, float[2] pn, float[2] qn, float[2] s)
        {{ on = Identity(go) {} }}
    >(t, , x, {})
}}"""


@pytest.mark.parametrize(
    ("body", "start", "reached"),
    [
        ("pn = Neg(p) qn = Neg(q) s = Mul(q, w)", "v", {"c"}),
        ("pn = Neg(p) qn = Mul(q, w) s = Neg(p)", "w", {"b"}),
        ("pn = Neg(q) qn = Neg(p) s = Mul(p, w)", "v", {"c"}),
        ("pn = Neg(q) qn = Mul(q, w) s = Neg(p)", "v", {"a", "b", "c"}),
    ],
)
def test_the_results_of_a_loop_depend_on_parameters_one_by_one(body, start, reached):
    assert opened(LOOP.format(body, start), w=floats(2)).reached == reached


def test_a_branch_of_its_own_and_functions_that_call_the_next_twice():
    text = "g (bool p, float[2] x) => (float[2] y, float[2] z) { y, z = If (p) <%s = %s, %s = %s> }"
    branch = "t () => (float[2] %s, float[2] %s) { %s = Mul(x, w) %s = Neg(x) }"
    branches = [branch % (a, b, a, b) for a, b in ("ab", "cd")]
    assert opened(text % ("then_branch", branches[0], "else_branch", branches[1]), w=floats(2)).reached == {"y"}
    header = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y, float[2] z)'
    calls = "".join(
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]> F{at} (a) => (c, d) '
        f"{{ e, f = own.F{at + 1}(a) c, g = own.F{at + 1}(e) d = Neg(a) }}"
        for at in range(40)
    )
    last = '<domain: "own", opset_import: ["" : 17]> F40 (a) => (c, d) '
    last += "{ k = Constant<value_floats = [1.0, 2.0]>() c = Mul(a, k) d = Neg(a) }"
    model = parser.parse_model(f"{header} {{ y, z = own.F0(x) }} {calls} {last}")
    assert reached_outputs(model, ["k"]) == {"y"}


def test_a_large_integer_table_is_given_back_as_it_is():
    """It is held by reference, and must reach the perturbed copies unmoved."""
    text = "g (int64[1,4] x) => (float[1,4] y) { i = Gather(t, x) f = Cast<to = 1>(i) y = Mul(f, w) }"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.arange(5000) % 7 + 1, "t"), numpy_helper.from_array(floats(4), "w")]
    )
    report = verify(model, model, device="cpu", value_ranges={"x": (0, 4999)})
    assert report.verdict is Verdict.PASS
    assert 0 < report.outputs[0].noise_rel_l2 < 1e-6


def test_random_nodes_in_functions_are_found():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]> '
        "g (float[1,4] x) => (float[1,4] y) { y = local.noisy(x) } "
        '<domain: "local", opset_import: ["": 17]> noisy (t) => (u) { u = RandomNormalLike(t) }'
    )
    assert "RandomNormalLike" in find_random_node(model)


def test_dropout_whose_mode_is_an_input_may_train():
    text = (
        "g (float[1,4] x, bool t) => (float[1,4] y) {{ k = Constant<value = float {{0.5}}>() y = Dropout(x, k, {}) }}"
    )
    header = '<ir_version: 8, opset_import: ["": 17]> '
    assert "training mode" in find_random_node(parser.parse_model(header + text.format("t")))
    off = parser.parse_model(header + text.format("off"))
    off.graph.initializer.append(numpy_helper.from_array(np.array(False), "off"))
    assert find_random_node(off) is None
