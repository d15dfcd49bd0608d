"""The outputs gate on real sessions: correct folds pass, planted faults fail, and what cannot be told is said."""

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from small_networks import changed, folded, original, random_layers

from bnfold.report import Verdict
from bnfold.verification import verify


def cpu(first, second, **options):
    return verify(first, second, device="cpu", **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_correct_fold_passes(dtype, seed):
    layers = random_layers(4, dtype=dtype, seed=seed)
    report = cpu(original(layers, dtype=dtype), folded(layers, dtype=dtype), seed=seed)
    assert report.verdict is Verdict.PASS, report.summary_line()
    (output,) = report.outputs
    assert output.samples == 4
    assert output.max_abs > 0, "a fold rounds: equality would mean that one model ran twice"
    assert 0.05 < output.noise_ratio < 2


def planted(layers, fault):
    """The folded model with one fault, in the last layer but one."""
    place = len(layers) - 2
    layer = layers[place]
    swapped = layer.gamma.copy()
    pair = [layer.gamma.argmin(), layer.gamma.argmax()]
    swapped[pair] = swapped[pair[::-1]]
    match fault:
        case "epsilon times ten":
            return {"layers": layers, "epsilon": 1e-4}
        case "beta dropped":
            return {"layers": changed(layers, place, beta=np.zeros_like(layer.beta))}
        case "two gammas swapped":
            return {"layers": changed(layers, place, gamma=swapped)}
        case "folded twice":
            return {"layers": layers, "twice": place}
        case "one bias off by a tenth":
            beta = layer.beta.copy()
            bias = layer.folded()[1]
            channel = np.abs(bias).argmax()
            beta[channel] += 0.1 * bias[channel]
            return {"layers": changed(layers, place, beta=beta)}
    raise AssertionError(fault)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "fault",
    ["epsilon times ten", "beta dropped", "two gammas swapped", "folded twice", "one bias off by a tenth"],
)
def test_a_planted_fault_fails(fault, dtype):
    if fault == "epsilon times ten" and dtype == "float16":
        pytest.skip("epsilon 1e-4 for 1e-5 changes the result by less than float16 can hold")
    layers = random_layers(4, dtype=dtype)
    wrong = planted(layers, fault)
    report = cpu(original(layers, dtype=dtype), folded(wrong.pop("layers"), dtype=dtype, **wrong))
    assert report.verdict is Verdict.FAIL
    assert "'y' differs by" in report.reason
    assert report.outputs[0].noise_ratio > 4


def test_a_deep_random_network_passes_where_fixed_tolerances_fail():
    layers = random_layers(30, 16, gain=1.5)
    first, second = original(layers), folded(layers)
    report = cpu(first, second)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert 0.05 < report.outputs[0].noise_ratio < 2
    tolerances = cpu(first, second, rtol=1e-5, atol=1e-8)  # numpy.allclose
    assert tolerances.verdict is Verdict.FAIL
    assert "rtol 1e-05 and atol 1e-08" in tolerances.reason
    assert tolerances.outputs[0].noise_ratio is None
    assert tolerances.config.noise_draws == 0


def test_a_deep_random_network_with_a_fault_fails():
    layers = random_layers(30, 16, gain=1.5)
    swapped = layers[3].gamma[::-1].copy()
    report = cpu(original(layers), folded(changed(layers, 3, gamma=swapped)))
    assert report.verdict is Verdict.FAIL


def test_tolerances_decide_where_they_are_given():
    layers = random_layers(2)
    wrong = folded(layers, epsilon=1e-4)
    assert cpu(original(layers), wrong).verdict is Verdict.FAIL
    accepted = cpu(original(layers), wrong, rtol=0.01, atol=0.01)
    assert accepted.verdict is Verdict.PASS
    assert "rtol 0.01 and atol 0.01 instead of the noise ratio" in accepted.summary_line()
    assert (accepted.config.rtol, accepted.config.atol) == (0.01, 0.01)


def test_outputs_of_one_number_are_not_judged_by_luck():
    """Two runs of a rounding error on one number can differ by any factor: 60 correct folds must all pass."""
    verdicts = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        weight, gamma, beta, mean = (rng.standard_normal(size).astype("f") for size in ((1, 16, 1), 1, 1, 1))
        var = rng.uniform(0.5, 2, 1).astype("f")
        scale = gamma.astype("d") / np.sqrt(var.astype("d") + 1e-5)
        texts = (
            (
                "x, w",
                "c",
                "BatchNormalization(c, g, b, m, v)",
                {"w": weight, "g": gamma, "b": beta, "m": mean, "v": var},
            ),
            ("x, w, b", "c", "Identity(c)", {"w": weight * scale[:, None, None], "b": beta - scale * mean}),
        )
        models = []
        for read, convolved, last, arrays in texts:
            model = parser.parse_model(
                '<ir_version: 8, opset_import: ["": 17]> g (float[1,16,1] x) => (float[1,1,1] y) '
                f"{{ {convolved} = Conv({read}) y = {last} }}"
            )
            model.graph.initializer.extend(
                numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
            )
            models.append(model)
        verdicts.append(cpu(*models, seed=seed).verdict)
    assert set(verdicts) == {Verdict.PASS}


def test_weights_in_constant_nodes_make_the_same_noise():
    layers = random_layers(4)
    stored = original(layers)
    inline = onnx.ModelProto()
    inline.CopyFrom(stored)
    del inline.graph.initializer[:], inline.graph.node[:]
    inline.graph.node.extend(
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in stored.graph.initializer
    )
    inline.graph.node.extend(stored.graph.node)
    report = cpu(inline, folded(layers))
    assert report.verdict is Verdict.PASS
    expected = cpu(stored, folded(layers))
    assert report.outputs[0].noise_rel_l2 == pytest.approx(expected.outputs[0].noise_rel_l2, rel=0.5)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_listed_as_inputs_are_moved_and_not_fed(ir_version):
    layers = random_layers(3)
    model = original(layers)
    model.ir_version = ir_version
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    report = cpu(model, folded(layers))
    assert report.verdict is Verdict.PASS
    assert [item.name for item in report.config.inputs] == ["x"]
    assert report.outputs[0].noise_rel_l2 > 0


def test_files_with_external_data_and_other_forms_of_a_model(tmp_path):
    import onnx_ir

    layers = random_layers(3, 16)
    first, second = original(layers), folded(layers)
    reports = [cpu(first, second)]
    for name, external in (("plain", False), ("external", True)):
        onnx.save(original(layers), tmp_path / f"{name}.onnx", save_as_external_data=external, location=f"{name}.bin")
        reports.append(cpu(tmp_path / f"{name}.onnx", second))
    reports.append(cpu(onnx_ir.load(tmp_path / "external.onnx"), onnx_ir.from_proto(second)))
    assert {report.verdict for report in reports} == {Verdict.PASS}
    assert len({report.outputs[0].max_abs for report in reports}) == 1
    assert len({report.outputs[0].noise_ratio for report in reports}) == 1


def test_the_same_seed_gives_the_same_report_and_another_seed_another():
    layers = random_layers(3)
    runs = [cpu(original(layers), folded(layers), seed=seed).outputs for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_caller_s_models_are_not_changed():
    layers = random_layers(2)
    first, second = original(layers), folded(layers)
    before = first.SerializeToString(), second.SerializeToString()
    cpu(first, second)
    assert (first.SerializeToString(), second.SerializeToString()) == before


# --- what cannot be told ---------------------------------------------------------------------------------------


def tied(y):
    return [helper.make_node("ArgMax", [y], ["label"], axis=1, keepdims=0)]


def test_labels_that_noise_alone_flips_are_inconclusive():
    layers = random_layers(3)
    layer = layers[-1]
    # Twin channels differ by rounding only, so that which one is larger is chance.
    twins = {key: np.repeat(getattr(layer, key)[:4], 2, axis=0) for key in ("weight", "gamma", "beta", "mean", "var")}
    twins["gamma"][1::2] = np.nextafter(twins["gamma"][1::2].astype("f"), np.float32(np.inf))
    layers = changed(layers, 2, **twins)
    report = cpu(original(layers, head=tied), folded(layers, head=tied))
    label = report.outputs[1]
    assert label.name == "label"
    assert label.verdict is Verdict.INCONCLUSIVE
    assert "rounding noise alone changes it too" in label.reason
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.outputs[0].verdict is Verdict.PASS


def test_labels_that_a_fault_flips_fail():
    layers = random_layers(3)
    wrong = changed(layers, 2, beta=-layers[2].beta)
    report = cpu(original(layers, head=tied), folded(wrong, head=tied))
    assert report.verdict is Verdict.FAIL


def tail(text, **arrays):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    return model


@pytest.mark.parametrize(
    "node",
    [
        "r = RandomNormalLike(x)",
        "r = RandomUniformLike(x)",
        "t = Constant<value = bool {1}>() k = Constant<value = float {0.5}>() r = Dropout(x, k, t)",
    ],
)
def test_a_model_that_draws_random_numbers_is_inconclusive(node):
    model = tail(f"g (float[1,4] x) => (float[1,4] y) {{ {node} y = Add(x, r) }}")
    report = cpu(model, model)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "draws random numbers" in report.reason
    assert report.outputs[0].max_abs is None


def test_dropout_at_inference_draws_nothing():
    model = tail("g (float[1,4] x) => (float[1,4] y) { r = Dropout(x) y = Add(r, w) }", w=[1, 2, 3, 4])
    assert cpu(model, model).verdict is Verdict.PASS


def test_random_numbers_inside_a_branch_are_found():
    model = tail(
        "g (float[1,4] x, bool c) => (float[1,4] y) { y = If(c) <"
        "then_branch = a () => (float[1,4] p) { p = RandomNormalLike(x) }, "
        "else_branch = b () => (float[1,4] q) { q = Identity(x) }> }"
    )
    assert "RandomNormalLike" in cpu(model, model).reason


def test_an_output_that_does_not_react_proves_nothing():
    """A saturated output stays equal whatever was folded wrongly."""
    dead = "g (float[1,4] x) => (float[1,4] y) { s = Abs(x) n = Neg(s) h = Mul(n, w) y = Relu(h) }"
    first, second = tail(dead, w=[1, 2, 3, 4]), tail(dead, w=[4, 3, 2, 1])
    report = cpu(first, second)
    (output,) = report.outputs
    assert output.verdict is Verdict.INCONCLUSIVE
    assert "does not react to the parameters" in output.reason
    # The sites gate looks before the Relu.
    assert report.verdict is Verdict.FAIL
    assert report.reason.startswith("'Mul(h)' (value 'h') differs by")


def test_noise_that_drowns_the_signal_is_inconclusive():
    """1 + x − 1 loses the digits of a small x."""
    text = "g (float[1,4] x) => (float[1,4] y) { a = Add(x, big) y = Sub(a, big2) }"
    arrays = {"big": [1e6] * 4, "big2": [1e6] * 4}
    report = cpu(tail(text, **arrays), tail(text, **arrays), value_ranges={"x": (0.0, 0.5)})
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "rounding noise alone is" in report.reason


def test_a_model_without_parameters_passes_only_if_it_is_equal_up_to_a_rounding():
    same = cpu(
        tail("g (float[1,4] x) => (float[1,4] y) { y = Mul(x, x) }"),
        tail("g (float[1,4] x) => (float[1,4] z) { z = Mul(x, x) }".replace("z", "y")),
    )
    assert same.verdict is Verdict.PASS
    other = cpu(
        tail("g (float[1,4] x) => (float[1,4] y) { y = Mul(x, x) }"),
        tail("g (float[1,4] x) => (float[1,4] y) { y = Abs(x) }"),
    )
    assert other.outputs[0].verdict is Verdict.INCONCLUSIVE
    assert "give tolerances" in other.outputs[0].reason
    assert other.verdict is Verdict.FAIL


# --- structure -------------------------------------------------------------------------------------------------

SCALE = "g (float[1,4] x) => (float[1,4] y) { y = Mul(x, w) }"
W = {"w": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("g (float[1,4] x) => (float[1,4] z) { z = Mul(x, w) }", "'y' is missing from the folded model"),
        ("g (float[1,4] x) => (float[1,4] y, float[1,4] z) { y = Mul(x, w) z = Neg(y) }", "'z' is not an output"),
        ("g (float[1,4] x) => (float[4,1] y) { t = Mul(x, w) y = Transpose(t) }", "has shape 4×1 instead of 1×4"),
        ("g (float[1,4] x) => (double[1,4] y) { t = Mul(x, w) y = Cast<to = 11>(t) }", "is float64 instead of"),
        ("g (float[1,4] q) => (float[1,4] y) { y = Mul(q, w) }", "has no input 'x'"),
        ("g (float[1,4] x, float[1,4] q) => (float[1,4] y) { y = Mul(q, w) }", "asks for an input 'q'"),
        ("g (float[1,5] x) => (float[1,5] y) { y = Relu(x) }", "does not run where the original does"),
        ("g (float[1,4] x) => (float[1,4] y) { y = NoSuchOp(x, w) }", "does not run where the original does"),
    ],
)
def test_another_interface_fails(second, said):
    report = cpu(tail(SCALE, **W), tail(second, **W))
    assert report.verdict is Verdict.FAIL
    assert said in report.reason
    assert "\n" not in report.reason


def test_outputs_in_another_order_fail():
    text = "g (float[1,4] x) => ({}) {{ y = Mul(x, w) n = Neg(y) }}"
    first, second = (
        tail(text.format(order), **W) for order in ("float[1,4] y, float[1,4] n", "float[1,4] n, float[1,4] y")
    )
    assert cpu(first, first).verdict is Verdict.PASS
    assert cpu(first, second).reason == "the folded model gives its outputs in another order"


def test_integers_must_be_equal():
    text = "g (int64[1,4] x) => (int64[1,4] y) {{ y = {}(x, x) }}"
    assert cpu(tail(text.format("Add")), tail(text.format("Add"))).verdict is Verdict.PASS
    report = cpu(tail(text.format("Add")), tail(text.format("Mul")))
    assert report.verdict is Verdict.FAIL
    assert "of 4 elements" in report.reason


def test_booleans_must_be_equal():
    text = "g (bool[1,9] x) => (bool[1,9] y) {{ y = {}(x) }}"
    assert cpu(tail(text.format("Identity")), tail(text.format("Identity"))).verdict is Verdict.PASS
    assert cpu(tail(text.format("Identity")), tail(text.format("Not"))).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("second", "verdict"),
    [("Log(h)", Verdict.PASS), ("Neg(h)", Verdict.FAIL), ("Abs(h)", Verdict.FAIL)],
)
def test_nan_must_be_in_the_same_places(second, verdict):
    text = "g (float[1,64] x) => (float[1,64] y) {{ h = Mul(x, w) y = {} }}"
    report = cpu(tail(text.format("Log(h)"), w=[1.5] * 64), tail(text.format(second), w=[1.5] * 64))
    assert report.verdict is verdict
    assert report.outputs[0].nonfinite_original > 0
    if verdict is Verdict.FAIL:
        assert "NaN or Inf in other places" in report.reason


def test_infinity_of_another_sign_fails():
    text = "g (float[1,8] x) => (float[1,8] y) {{ z = Sub(x, x) h = Div(w, z) n = {}(h) y = Add(n, w) }}"
    report = cpu(tail(text.format("Identity"), w=[1] * 8), tail(text.format("Neg"), w=[1] * 8))
    assert report.verdict is Verdict.FAIL
    assert "of another sign" in report.reason


def test_an_output_that_is_nan_throughout_proves_nothing():
    text = "g (float[1,8] x) => (float[1,8] y) { z = Sub(x, x) h = Div(z, z) y = Add(h, w) }"
    report = cpu(tail(text, w=[1] * 8), tail(text, w=[2] * 8))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "NaN or Inf throughout" in report.reason


def test_metrics_are_those_of_the_definition():
    data = np.array([[3.0, 4.0, 1.0, -2.0]], np.float32)
    first, second = np.array([1, 2, 3, 4.0]), np.array([1, 2.5, 3, 4.0])
    report = cpu(tail(SCALE, w=first), tail(SCALE, w=second), inputs={"x": data})
    (output,) = report.outputs
    a, b = (data * first).ravel(), (data * second).ravel()
    assert output.max_abs == 2.0
    assert output.rel_l2 == pytest.approx(2 / np.linalg.norm(a))
    assert output.sqnr_db == pytest.approx(20 * math.log10(np.linalg.norm(a) / 2))
    assert output.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert output.top1_agreement == 1.0
    assert report.config.samples == 1
    assert report.config.inputs[0].source == "given"


def test_subgraph_and_function_weights_are_moved():
    branch = tail(
        "g (float[1,4] x) => (float[1,4] y) { c = Constant<value = bool {1}>() y = If(c) <"
        "then_branch = a () => (float[1,4] p) { v = Constant<value = float[4] {1.5, 2.5, 3.5, 4.5}>() p = Mul(x, v) },"
        "else_branch = b () => (float[1,4] q) { q = Identity(x) }> }"
    )
    function = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "local": 1]> '
        "g (float[1,4] x) => (float[1,4] y) { y = local.scaled(x) } "
        '<domain: "local", opset_import: ["": 17]> scaled (t) => (u) '
        "{ v = Constant<value = float[4] {1.5, 2.5, 3.5, 4.5}>() u = Mul(t, v) }"
    )
    for model in (branch, function):
        report = cpu(model, model)
        assert report.verdict is Verdict.PASS, report.summary_line()
        assert report.outputs[0].noise_rel_l2 > 0
