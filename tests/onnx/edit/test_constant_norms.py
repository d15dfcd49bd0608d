"""Batch norms of constants, as weights that are standardised have them: each becomes the constant that it gives."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_fold import batch_norm, fold, parse, random

import bnfold
from bnfold.report import Verdict

NORM = "{outputs} = BatchNormalization <epsilon = 0.01{mode}> (k, bn_g, bn_b, bn_m, bn_v)"
STANDARDISED = """agraph (double[N,3,8,8] x) => (double[N,4,P,Q] y) {{
  k = Reshape (w, rows) {norm} v = Reshape (n, kernel) {tail}
}}"""
TAILS = {
    "alone": "y = Conv (x, v)",
    "with a BN behind it": "c = Conv (x, v) y = BatchNormalization (c, other_g, other_b, other_m, other_v)",
    "with a BN before it": "c = BatchNormalization (x, third_g, third_b, third_m, third_v) y = Conv (c, v)",
    "read by two": "a = Conv (x, v) b = Conv (a, u) d = Conv (x, v) y = Add (b, d)",
}


def standardised(tail: str, mode: str = "", opset: int = 17) -> onnx.ModelProto:
    outputs = "n, m2, v2" if "training" in mode else "n"
    text = STANDARDISED.format(norm=NORM.format(outputs=outputs, mode=mode), tail=tail)
    constants = {
        "w": random(4, 3, 1, 1),
        "u": random(4, 4, 1, 1),
        "rows": np.array([1, 4, 3]),
        "column": np.array([4, 1, 1]),
        "kernel": np.array([4, 3, 1, 1]),
        **batch_norm(4),
        **batch_norm(4, "other"),
        **batch_norm(3, "third"),
    }
    model = parse(text, opset=opset)
    read = {name for node in model.graph.node for name in node.input}
    return parse(text, opset=opset, **{name: array for name, array in constants.items() if name in read})


@pytest.mark.parametrize("mode", ["", ", training_mode = 1"])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_it_becomes_what_it_gives(tail: str, mode: str) -> None:
    model = standardised(tail, mode)
    folded = fold(model, exactly=True)
    assert folded.codes == []
    assert folded.count("BatchNormalization") == 0
    assert folded.plan.folds[0].targets == ("n",)
    assert folded.plan.batch_norms == sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert bnfold.fold(model).check().verdict is Verdict.PASS


def test_a_wrong_result_is_found() -> None:
    model = standardised(TAILS["alone"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    result = bnfold.fold(model)
    assert bnfold.verify(model, result.model).verdict is Verdict.PASS
    [weight] = (tensor for tensor in result.model.graph.initializer if tensor.name == "n")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, "n"))
    assert bnfold.verify(model, result.model).verdict is Verdict.FAIL


@pytest.mark.parametrize("options", [{"skip": ("norm",)}, {"only": ("other",)}])
def test_it_stays_where_that_is_asked_for(options: dict[str, tuple[str, ...]]) -> None:
    norm = "z = BatchNormalization (c, other_g, other_b, other_m, other_v)"
    model = standardised(f"c = Conv (x, v) [other] {norm} y = Relu (z)")
    model.graph.node[1].name = "norm"
    folded = fold(model, **options)
    assert folded.codes == ["skipped"]


STAYS = {
    "what it gives besides": ("n, m2, v2", "", 13, "training_mode"),
    "statistics of each place": ("n", ", spatial = 0", 8, "spatial"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_constant(name: str) -> None:
    outputs, mode, opset, code = STAYS[name]
    model = standardised(TAILS["alone"], mode, opset)
    model.graph.node[1].output[:] = outputs.split(", ")
    assert [entry.code for entry in bnfold.inspect(model).left] == [code]


def test_statistics_that_are_read() -> None:
    model = standardised("z = Conv (x, v) m4 = Reshape (m2, column) y = Mul (z, m4)", ", training_mode = 1")
    assert fold(model).codes == ["training_mode"]


def test_an_input_that_a_caller_may_override() -> None:
    model = standardised(TAILS["alone"])
    model.graph.input.append(onnx.helper.make_tensor_value_info("bn_g", onnx.TensorProto.DOUBLE, [4]))
    assert fold(model).codes == ["overridable"]


def test_a_constant_that_is_too_large_to_be_computed_here() -> None:
    model = standardised(TAILS["alone"])
    expand = onnx.helper.make_node("Expand", ["w", "far"], ["wide"])
    norm = onnx.helper.make_node("BatchNormalization", ["wide", "bn_g", "bn_b", "bn_m", "bn_v"], ["n2"])
    relu = onnx.helper.make_node("Relu", ["n2"], ["r2"])
    model.graph.node.extend([expand, norm, relu])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 26, 4, 3, 1, 1]), "far"))
    wide = [entry for entry in bnfold.inspect(model).left if "n2" in entry.nodes[0]]
    assert [entry.code for entry in wide] == ["no_rule"]
