"""The sites gate: a wrong layer is named, whatever the rest of the network does with it."""

import math
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from small_networks import changed, folded, original, random_layers

from bnfold.onnx.file.load import from_proto
from bnfold.report import Site, Verdict
from bnfold.verification import verify
from bnfold.verification.judging.sites import SITE_LIMIT, Probe, judge_site
from bnfold.verification.onnx.sites import bounds, measure
from bnfold.verification.onnx.sites.measure import measure_sites
from bnfold.verification.onnx.sites.model import build_sites_model
from bnfold.verification.runtime.devices import cpu_device


def graph(text, opset=17, **arrays):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    return model


def gate(first, second, feed=None):
    if feed is None:
        feed = {}
        for index, value in enumerate(first.graph.input):
            shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feed[value.name] = np.random.default_rng(index).standard_normal(shape).astype(dtype)
    return measure_sites(from_proto(first), from_proto(second), cpu_device(), feed)


def verdicts(outcome):
    return {site.name: site.verdict for site in outcome.sites}


# --- chains of convolutions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_correct_fold_has_a_passing_site_for_each_layer(dtype):
    layers = random_layers(5, 16, dtype=dtype)
    outcome = gate(original(layers, dtype=dtype), folded(layers, dtype=dtype))
    assert verdicts(outcome) == {f"bn{index}": Verdict.PASS for index in range(5)}
    assert outcome.note == ""
    assert all(0 < site.ratio < SITE_LIMIT / 3 and site.max_abs > 0 and site.rel_l2 < 1e-2 for site in outcome.sites)


def test_the_wrong_layer_and_channel_are_named_and_the_layers_behind_it_are_not():
    layers = random_layers(5, 16)
    beta = layers[2].beta.copy()
    beta[7] += 0.01
    outcome = gate(original(layers), folded(changed(layers, 2, beta=beta)))
    worst, *others = outcome.sites
    assert (worst.name, worst.channel, worst.verdict) == ("bn2", 7, Verdict.FAIL)
    assert worst.nodes == ("Conv(bn2)",)
    assert worst.reason.startswith("'Conv(bn2)' (value 'bn2') differs by")
    assert worst.reason.endswith("times its rounding bound in channel 7")
    assert {site.verdict for site in others} == {Verdict.PASS}
    assert worst.max_abs == pytest.approx(0.01, rel=1e-3)


def test_a_fault_that_the_outputs_cannot_show_fails():
    """One shift of a wide layer off by 0.03 % is below the noise at the outputs."""
    layers = random_layers(20, 32, gain=1.5)
    beta = layers[3].beta.copy()
    beta[5] *= 1.0003
    report = verify(original(layers), folded(changed(layers, 3, beta=beta)), device="cpu", samples=1)
    assert report.outputs[0].verdict is Verdict.PASS
    assert report.verdict is Verdict.FAIL
    assert report.reason.startswith("'Conv(bn3)' (value 'bn3') differs by")
    assert report.sites[0].channel == 5


def test_the_references_are_the_original_s_outputs():
    layers = random_layers(2)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    outcome = gate(original(layers), folded(layers), {"x": x})
    report = verify(original(layers), original(layers), device="cpu", inputs={"x": x})
    assert report.verdict is Verdict.PASS
    assert set(outcome.references) == {"y"}
    assert outcome.references["y"].shape == (1, 8, 16, 16)


def test_equal_models_have_no_sites():
    layers = random_layers(2)
    outcome = gate(original(layers), original(layers))
    assert (outcome.sites, outcome.note) == ((), "")


def test_tolerances_of_the_caller_take_the_place_of_the_gate():
    layers = random_layers(2)
    report = verify(original(layers), folded(layers, epsilon=1e-4), device="cpu", rtol=0.01, atol=0.01)
    assert report.verdict is Verdict.PASS
    assert report.sites[0].verdict is Verdict.FAIL


# --- names -----------------------------------------------------------------------------------------------------

CONV_BN_RELU = (
    "g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n) }"
)
RNG = np.random.default_rng(3)
BN = {
    "s": RNG.uniform(0.5, 2, 4),
    "b": RNG.standard_normal(4),
    "m": RNG.standard_normal(4),
    "v": RNG.uniform(0.5, 2, 4),
}
BN = {name: array.astype(np.float32).astype(np.float64) for name, array in BN.items()}
SCALE = BN["s"] / np.sqrt(BN["v"] + np.float64(np.float32(1e-5)))
SHIFT = BN["b"] - SCALE * BN["m"]
W = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32).astype(np.float64)
FOLDED = {"w": W * SCALE[:, None, None, None], "b": SHIFT}


def test_a_tool_that_keeps_the_name_of_the_convolution_s_output_is_understood():
    """As onnxoptimizer does: the Relu that did not change says that `c` is now what `n` was."""
    first = graph(CONV_BN_RELU, w=W, **BN)
    second = graph("g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w, b) y = Relu(c) }", **FOLDED)
    assert verdicts(gate(first, second)) == {"n": Verdict.PASS}
    wrong = {**FOLDED, "b": SHIFT * 1.001}
    second = graph("g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w, b) y = Relu(c) }", **wrong)
    assert verdicts(gate(first, second)) == {"n": Verdict.FAIL}


TWO = "g (float[1,3,6,6] x) => (float[1,4,6,6] y) {{ {} y = Relu({}) }}"
TWO_FIRST = TWO.format(
    "c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) d = Conv(n, u) o = BatchNormalization(d, s, b, m, v)", "o"
)
TWO_SECOND = TWO.format("c = Conv(x, w, b) d = Conv(c, u2, b2)", "d")
U = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32).astype(np.float64)


def test_a_name_that_only_changed_nodes_read_is_no_proof():
    """Conv → BN → Conv → BN, folded by a tool that keeps `c`: nothing speaks for `c` but its name."""
    first = graph(TWO_FIRST, w=W, u=U, **BN)
    arrays = {**FOLDED, "u2": U * SCALE[:, None, None, None], "b2": SHIFT}
    outcome = gate(first, graph(TWO_SECOND, **arrays))
    assert verdicts(outcome) == {"o": Verdict.PASS}
    assert outcome.sites[0].nodes == ("Conv(c)", "Conv(d)")
    assert "'c' in the folded model only share a name" in outcome.note
    wrong = gate(first, graph(TWO_SECOND, **{**arrays, "b": SHIFT * 1.01}))
    assert Verdict.FAIL in verdicts(wrong).values()


def test_who_reads_a_shape_alone_says_nothing_of_a_value():
    """The Shape of what a BN gave, which went forward, is that of what the BN read: `c` is no more than that."""
    text = "g (float[1,3,6,6] x) => (float[?,?,?,?] y) {{ {} y = Reshape(d, k) }}"
    first = graph(
        text.format("e = Mul(x, t) c = Conv(e, w) n = BatchNormalization(c, s, b, m, v) d = Conv(n, u) k = Shape(n)"),
        **{"w": W, "u": U, "t": np.reshape([2, 0.5, 4], (3, 1, 1)), **BN},
    )
    text = text.format("c = Conv(x, w) d = Conv(c, u, b) k = Shape(c)")
    arrays = {"w": W * np.reshape([2, 0.5, 4], (3, 1, 1)), "u": U * SCALE[:, None, None], "b": U[..., 0, 0] @ SHIFT}
    assert verdicts(gate(first, graph(text, **arrays))) == {"c": Verdict.PASS, "d": Verdict.PASS, "k": Verdict.PASS}
    wrong = graph(text, **{**arrays, "w": 1.001 * arrays["w"]})
    assert verdicts(gate(first, wrong)) == {"c": Verdict.FAIL, "d": Verdict.PASS, "k": Verdict.PASS}


def test_a_large_fault_is_not_explained_away_by_a_longer_region():
    first = graph(TWO_FIRST, w=W, u=U, **BN)
    right = TWO.format("n = Conv(x, w, b) o = Conv(n, u2, b2)", "o")
    arrays = {**FOLDED, "u2": U * SCALE[:, None, None, None], "b2": SHIFT}
    assert verdicts(gate(first, graph(right, **arrays))) == {"n": Verdict.PASS, "o": Verdict.PASS}
    wrong = gate(first, graph(right, **{**arrays, "w": 2 * FOLDED["w"]}))
    assert verdicts(wrong) == {"n": Verdict.FAIL, "o": Verdict.PASS}


ONE_SIGN = {
    "Conv": ("[1, 512, 4, 4]", "Conv(x, w)", (16, 512, 3, 3), 1),
    "grouped Conv": ("[1, 1024, 4, 4]", "Conv<group = 2>(x, w)", (16, 512, 3, 3), 1),
    "ConvTranspose": ("[1, 2048, 4, 4]", "ConvTranspose<strides = [2, 2]>(x, w)", (2048, 16, 3, 3), 1),
    "Gemm": ("[64, 4096]", "Gemm<transB = 1>(x, w)", (16, 4096), 1),
    "MatMul": ("[64, 4096]", "MatMul(x, w)", (4096, 16), 1),
    "Einsum": ("[64, 4096]", 'Einsum<equation = "nc,cd->nd">(x, w)', (4096, 16), 1),
    "MatMul from the left": ("[4096, 64]", "MatMul(w, x)", (16, 4096), 0),
}


@pytest.mark.parametrize(("shape", "operation", "weight", "axis"), ONE_SIGN.values(), ids=ONE_SIGN)
def test_sums_of_terms_with_one_sign_keep_their_margin(monkeypatch, shape, operation, weight, axis):
    """Trained layers have channels whose terms all have one sign; their rounding grows with the number of terms."""
    rng = np.random.default_rng(0)
    sizes = [int(size) for size in shape.strip("[]").split(",")]
    feed = {"x": rng.random(sizes).astype(np.float32)}
    channels = 16
    scale = rng.uniform(0.5, 2, channels)
    along = np.ones(len(sizes), int)
    along[axis] = channels
    there = list(weight).index(channels)
    stored = rng.random(weight)
    folded_weight = stored * scale.reshape([-1 if index == there else 1 for index in range(len(weight))])
    rank = ", ".join("?" for _ in sizes)
    first = graph(
        f"g (float{shape} x) => (float[{rank}] y) {{ h = {operation} y = Mul(h, s) }}", w=stored, s=scale.reshape(along)
    )
    second = graph(f"g (float{shape} x) => (float[{rank}] y) {{ y = {operation} }}", w=folded_weight)
    (site,) = gate(first, second, feed).sites
    assert site.verdict is Verdict.PASS
    assert site.ratio < SITE_LIMIT / 3
    wrong = graph(f"g (float{shape} x) => (float[{rank}] y) {{ y = {operation} }}", w=folded_weight * 1.001)
    (failing,) = gate(first, wrong, feed).sites
    assert failing.ratio > 2 * SITE_LIMIT
    monkeypatch.setattr(bounds, "drift", lambda terms: 0.0)
    (without,) = gate(first, second, feed).sites
    assert without.ratio > 4 * site.ratio


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_sums_in_their_own_type_drift(monkeypatch, dtype):
    layers = random_layers(2, 16, dtype=dtype)
    models = original(layers, dtype=dtype), folded(layers, dtype=dtype)
    ratios = [site.ratio for site in gate(*models).sites]
    monkeypatch.setattr(bounds, "drift", lambda terms: float(bool(terms)))
    assert (ratios == [site.ratio for site in gate(*models).sites]) is (dtype == "float16")


@pytest.mark.parametrize("rest", ["y = Neg(x)", "h = Softmax(c) y = Neg(h)"], ids=["nobody", "what has no bound"])
def test_a_fault_is_not_explained_away_where_no_longer_region_measures_it(rest):
    """Nothing but its name speaks for `c`, and nothing measured reads it."""
    text = "g (float[1,4] x) => (float[1,4] y) {{ c = Mul(x, {}) {} }}"
    if "Softmax" in rest:
        changed_rest = rest.replace("Softmax(c)", "Softmax<axis = 0>(c)")
        first, second = graph(text.format("w", rest), w=[1, 2, 3, 4]), graph(text.format("v", changed_rest), v=[2] * 4)
    else:
        first, second = graph(text.format("w", rest), w=[1, 2, 3, 4]), graph(text.format("v", rest), v=[2] * 4)
    assert verdicts(gate(first, second))["c"] is Verdict.FAIL


def test_a_weight_changed_under_its_name_is_found():
    first = graph("g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w) y = Relu(c) }", w=W)
    second = graph("g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w) y = Relu(c) }", w=W * (1 + 1e-4))
    assert verdicts(gate(first, second)) == {"c": Verdict.FAIL}


def test_an_attribute_that_changed_is_found():
    text = "g (float[1,3,6,6] x) => (float[1,3,6,6] y) {{ c = LeakyRelu<alpha = {}>(x) y = Relu(c) }}"
    assert gate(graph(text.format(0.1)), graph(text.format(0.1))).sites == ()
    assert verdicts(gate(graph(text.format(0.1)), graph(text.format(0.11)))) == {"c": Verdict.FAIL}


# --- longer regions --------------------------------------------------------------------------------------------

SHORT = "g (float[1,3,6,6] x) => (float[1,4,6,6] y) {{ {} }}"
THROUGH = {
    "Relu and MaxPool": "r = Relu(c) n = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)",
    "Add": "n = Add(c, c)",
    "AveragePool": "n = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
    "Transpose there and back": "r = Transpose<perm = [0, 2, 3, 1]>(c) n = Transpose<perm = [0, 3, 1, 2]>(r)",
    "Sigmoid": "n = Sigmoid(c)",
    "Mul": "n = Mul(c, k)",
    "Div": "n = Div(c, k)",
    "PRelu": "n = PRelu(c, k)",
    "Resize": 'r = Resize<mode = "linear">(c, , up) n = Resize<mode = "nearest">(r, , down)',
    "Resize, cubic": 'r = Resize<mode = "cubic">(c, , up) n = Resize<mode = "nearest">(r, , down)',
    "Concat and Slice": "r = Concat<axis = 1>(c, c) n = Slice(r, starts, ends, axes)",
    "Pad and Slice": "r = Pad(c, pads) n = Slice(r, starts, ends, axes)",
    "LeakyRelu and Clip": "r = LeakyRelu<alpha = 0.2>(c) n = Clip(r)",
    "GlobalAveragePool": "p = GlobalAveragePool(c) n = Add(c, p)",
    "ConvTranspose": "n = ConvTranspose(c, u)",
    "Einsum of one": 'r = Einsum<equation = "nchw->nhwc">(c) n = Einsum<equation = "nhwc->nchw">(r)',
    "Einsum of three": 'n = Einsum<equation = "nchw,cij,cij->nchw">(c, k, k)',
}


def longer(middle, first_half, arrays):
    extra = {
        "k": np.reshape([0.5, 0.8, 1.3, 2.0], (4, 1, 1)),
        "up": [1, 1, 2, 2],
        "down": [1, 1, 0.5, 0.5],
        "u": U,
    }
    model = graph(SHORT.format(f"{first_half} {middle} y = Identity(n)"), **arrays, **extra)
    ints = {"starts": [0], "ends": [4], "axes": [1], "pads": [0, 0, 0, 0, 0, 1, 0, 0]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in ints.items())
    return model


@pytest.mark.parametrize("middle", THROUGH.values(), ids=THROUGH)
def test_a_region_may_lead_through_other_operations(middle):
    """The folded model calls everything between the map and `n` differently, so that only `n` can be compared."""
    first = longer(middle, "d = Conv(x, w) c = BatchNormalization(d, s, b, m, v)", {"w": W, **BN})
    renamed = re.sub(r"\b([crp])\b", r"\g<1>2", middle)
    outcome = gate(first, longer(renamed, "c2 = Conv(x, w, b)", FOLDED))
    assert verdicts(outcome) == {"n": Verdict.PASS}, (outcome.note, outcome.sites)
    wrong = longer(renamed, "c2 = Conv(x, w, b)", {**FOLDED, "b": SHIFT + 0.01})
    assert verdicts(gate(first, wrong)) == {"n": Verdict.FAIL}


def test_branches_that_cancel_each_other_are_one_region():
    """RepVGG's sum of branches; the bound knows the terms, not only the small sum."""
    first = graph(
        SHORT.format("p = Conv(x, w) q = Conv(x, v) a = BatchNormalization(p, s, b, m, v2) n = Add(a, q) y = Relu(n)"),
        w=W,
        v=-W * SCALE[:, None, None, None] + 1e-5,
        s=BN["s"],
        b=BN["b"],
        m=BN["m"],
        v2=BN["v"],
    )
    v = (-W * SCALE[:, None, None, None] + 1e-5).astype(np.float32).astype(np.float64)
    merged = {"w": W * SCALE[:, None, None, None] + v, "b": SHIFT}
    outcome = gate(first, graph(SHORT.format("n = Conv(x, w, b) y = Relu(n)"), **merged))
    assert verdicts(outcome) == {"n": Verdict.PASS}
    wrong = gate(first, graph(SHORT.format("n = Conv(x, w, b) y = Relu(n)"), **{**merged, "b": SHIFT * 1.01}))
    assert verdicts(wrong) == {"n": Verdict.FAIL}


def test_files_that_onnxruntime_has_optimised(tmp_path):
    """It folds BatchNorms and fuses activations into operators of its own."""
    layers = random_layers(4)
    onnx.save(original(layers), tmp_path / "a.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "b.onnx")
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(tmp_path / "a.onnx", options, providers=["CPUExecutionProvider"])
    ops = {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}
    assert "FusedConv" in ops
    report = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", device="cpu", samples=1)
    assert report.verdict is Verdict.PASS
    assert set(verdicts(report).values()) == {Verdict.PASS}
    wrong = verify(original(changed(layers, 1, beta=layers[1].beta * 1.01)), tmp_path / "b.onnx", device="cpu")
    assert wrong.sites[0].verdict is Verdict.FAIL
    assert wrong.sites[0].name == "relu_bn1"


def test_weights_from_constant_expressions():
    first = graph(CONV_BN_RELU, w=W, **BN)
    text = SHORT.format("t = Neg(w) k = Identity(t) n = Conv(x, k, b) y = Relu(n)")
    assert verdicts(gate(first, graph(text, **{**FOLDED, "w": -FOLDED["w"]}))) == {"n": Verdict.PASS}
    wrong = {**FOLDED, "w": -FOLDED["w"] * 1.001}
    assert verdicts(gate(first, graph(text, **wrong))) == {"n": Verdict.FAIL}


def test_an_operation_without_a_bound_is_said():
    first = graph("g (float[1,4] x) => (float[1,4] y) { a = Mul(x, w) b = Softmax(a) y = Neg(b) }", w=[1, 2, 3, 4])
    second = graph("g (float[1,4] x) => (float[1,4] y) { c = Mul(x, w) b = Softmax(c) y = Neg(b) }", w=[1, 2, 3, 4])
    report = verify(first, second, device="cpu")
    assert report.verdict is Verdict.PASS
    assert verdicts(report) == {"b": Verdict.SKIPPED}
    assert "no rounding bound is known for Softmax" in report.sites_note


# --- what is not plain -----------------------------------------------------------------------------------------


def test_a_subgraph_is_said_to_be_out_of_reach():
    text = (
        "g (float[1,4] x, bool k) => (float[1,4] y) {{ y = If(k) <then_branch = a () => (float[1,4] p) "
        "{{ p = Mul(x, {}) }}, else_branch = b () => (float[1,4] q) {{ q = Neg(x) }}> }}"
    )
    arrays = {"w": [1, 2, 3, 4], "v": [1, 2, 3, 5]}
    feed = {"x": np.ones((1, 4), np.float32), "k": np.array(True)}
    outcome = gate(graph(text.format("w"), **arrays), graph(text.format("v"), **arrays), feed)
    assert verdicts(outcome) == {"y": Verdict.SKIPPED}
    assert "inside a subgraph of If" in outcome.note


def test_functions_are_looked_into():
    def with_function(body, **arrays):
        model = parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[1,4] x) => (float[1,4] y) '
            f'{{ h = local.f(x, w) y = Neg(h) }} <domain: "local", opset_import: ["": 17]> f (t, s) => (u) {{ {body} }}'
        )
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
        )
        return model

    first = with_function("a = Mul(t, s) u = Relu(a)", w=[1, 2, 3, 4])
    assert gate(first, first).sites == ()
    wrong = gate(first, with_function("a = Mul(t, s) u = Relu(a)", w=[1, 2, 3, 4.01]))
    assert [site.verdict for site in wrong.sites] == [Verdict.FAIL]


def test_other_opsets_leave_it_to_the_outputs():
    text = "g (float[1,4] x) => (float[1,4] y) { y = Mul(x, w) }"
    report = verify(graph(text, w=[1, 2, 3, 4]), graph(text, opset=18, w=[1, 2, 3, 4]), device="cpu")
    assert report.verdict is Verdict.PASS
    assert report.sites == ()
    assert report.sites_note == "sites were not measured: the opsets differ (17 and 18)"


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 21])
def test_every_opset_has_its_form_of_the_reductions(opset):
    text = "g (float[1,3,6,6] x) => (float[1,4,6,6] y) {{ {} y = Relu(n) }}"
    first = graph(text.format("c = Conv(x, w) n = BatchNormalization(c, s, b, m, v)"), opset, w=W, **BN)
    assert verdicts(gate(first, graph(text.format("n = Conv(x, w, b)"), opset, **FOLDED))) == {"n": Verdict.PASS}
    wrong = graph(text.format("n = Conv(x, w, b)"), opset, **{**FOLDED, "b": SHIFT * 1.001})
    assert verdicts(gate(first, wrong)) == {"n": Verdict.FAIL}


def test_ir_version_3_lists_its_initializers_as_inputs():
    first = graph(CONV_BN_RELU, 9, w=W, **BN)
    second = graph("g (float[1,3,6,6] x) => (float[1,4,6,6] y) { n = Conv(x, w, b) y = Relu(n) }", 9, **FOLDED)
    for model in (first, second):
        model.ir_version = 3
        model.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in model.graph.initializer
        )
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    assert verdicts(gate(first, second, feed)) == {"n": Verdict.PASS}


def test_an_original_that_is_infinite_there_says_nothing():
    text = "g (float[1,4] x) => (float[1,4] y) {{ z = Sub(x, x) h = Add({}, z) y = Neg(h) }}"
    outcome = gate(graph(text.format("w"), w=[np.inf] * 4), graph(text.format("v"), v=[2] * 4))
    assert verdicts(outcome) == {"h": Verdict.INCONCLUSIVE}


def test_infinity_where_the_original_is_finite_fails():
    first = graph("g (float[1,4] x) => (float[1,4] y) { h = Mul(x, w) y = Neg(h) }", w=[1] * 4)
    second = graph("g (float[1,4] x) => (float[1,4] y) { h = Mul(x, w) y = Neg(h) }", w=[1, np.inf, 1, 1])
    (site,) = gate(first, second).sites
    assert site.verdict is Verdict.FAIL
    assert "gives NaN, Inf" in site.reason


def test_a_shape_that_broadcasting_would_hide_fails():
    text = "g (float[4,4] x) => (float[4,4] y) {{ h = ReduceMax<axes = [1], keepdims = {}>(x) y = Add(h, x) }}"
    outcome = gate(graph(text.format(1)), graph(text.format(0)), {"x": np.ones((4, 4), np.float32)})
    (site,) = outcome.sites
    assert site.verdict is Verdict.FAIL
    assert "has shape [4] instead of [4, 1]" in site.reason


def test_integers_are_left_to_the_outputs():
    """A sum that ties up to rounding may be largest here or there."""
    text = "g (float[1,4] x) => (int64[1,1] y) {{ h = ArgMax<axis = 1, select_last_index = {}>(x) y = Abs(h) }}"
    ones = {"x": np.ones((1, 4), np.float32)}
    (site,) = gate(graph(text.format(0)), graph(text.format(1)), ones).sites
    assert site.verdict is Verdict.INCONCLUSIVE
    assert "is not equal" in site.reason
    report = verify(graph(text.format(0)), graph(text.format(1)), device="cpu", inputs=ones)
    assert report.verdict is Verdict.FAIL
    assert report.reason.startswith("output 'y' differs in 1 of 1 elements")


def test_a_model_that_the_runtime_refuses_leaves_it_to_the_outputs(monkeypatch):
    layers = random_layers(2)

    def broken(first, second, unpaired=()):
        built = build_sites_model(first, second, unpaired)
        built.model.proto.graph.node[-1].op_type = "NoSuchOp"
        return built

    monkeypatch.setattr(measure, "build_sites_model", broken)
    report = verify(original(layers), folded(layers), device="cpu")
    assert report.verdict is Verdict.PASS
    assert report.sites_note.startswith("sites were not measured: ")
    assert "NoSuchOp" in report.sites_note


def test_names_of_the_model_are_never_taken():
    layers = random_layers(2)
    first, second = original(layers), folded(layers)
    for model in (first, second):
        for node in model.graph.node:
            node.name = f"site1_{node.output[0]}"
    assert set(verdicts(gate(first, second)).values()) == {Verdict.PASS}


# --- the arithmetic --------------------------------------------------------------------------------------------


def judged(ratios, difference=1.0, signal=4.0, roundoff=2.0**-24, channels=True):
    probe = Probe(
        Site("v", ("n",), Verdict.SKIPPED), "v", "ratio", "max", "difference", "signal", ("a", "b"), roundoff, channels
    )
    shape = np.array([1, 2])
    results = {"ratio": np.float32(ratios), "max": np.float32(0.5), "difference": np.float32(difference)}
    return judge_site(probe, {**results, "signal": np.float32(signal), "a": shape, "b": shape})


def test_the_limit_is_32_rounding_bounds_of_the_worst_channel():
    unit = 2.0**-24
    good, bad = judged([1 * unit, 32 * unit]), judged([33 * unit, 32 * unit])
    assert (good.verdict, good.ratio, good.channel) == (Verdict.PASS, 32.0, 1)
    assert (bad.verdict, bad.ratio, bad.channel) == (Verdict.FAIL, 33.0, 0)
    assert good.rel_l2 == 0.5
    assert judged(33 * unit, channels=False).channel is None


def test_numbers_that_are_not_finite():
    assert judged([1.0], signal=math.nan).verdict is Verdict.INCONCLUSIVE
    assert judged([0.0], difference=math.nan).verdict is Verdict.FAIL
    assert judged([0.0], difference=0.0, signal=0.0).rel_l2 == 0.0
    assert judged([]).verdict is Verdict.SKIPPED


# --- what nothing reads ----------------------------------------------------------------------------------------


def test_a_change_that_leads_to_no_output_is_none_of_ours():
    first = graph("g (float[1,2] x) => (float[1,2] y) { y = Relu (x) a = MatMul (x, w) }", w=np.eye(2))
    second = graph("g (float[1,2] x) => (float[1,2] y) { y = Relu (x) b = MatMul (x, w) }", w=2 * np.eye(2))
    outcome = gate(first, second)
    assert (outcome.sites, outcome.note) == ((), "")
    through = graph("g (float[1,2] x) => (float[1,2] y) { b = MatMul (x, w) y = Relu (b) }", w=2 * np.eye(2))
    assert [site.verdict for site in gate(first, through).sites] == [Verdict.FAIL]
