"""Constants that stand in the way of runtimes: evaluated where something is folded, and only those."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_fold import Folded, batch_norm, fold, parse, random

import bnfold

NORM = "BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"


def folded(body: str, outputs: str = "double[2,4,6,6] y", **more: np.ndarray) -> Folded:
    text = f"agraph (double[2,3,6,6] x) => ({outputs}) {{ c = Conv (x, w) n = {NORM} {body} }}"
    return fold(parse(text, opset=18, w=random(4, 3, 1, 1), **batch_norm(4), **more))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_bounds_that_are_made_to_fit_a_value_are_constants() -> None:
    """As torch's newer exporter writes relu6."""
    result = folded(
        "l = Constant <value_int = 0> () h = Constant <value = int64 {6}> () low = CastLike (l, n)"
        " high = CastLike (h, n) y = Clip (n, low, high)"
    )
    assert operators(result.model) == ["Conv", "Constant", "Constant", "Clip"]
    assert [node.name for node in result.model.graph.node] == [
        node.name for node in result.original.graph.node if node.op_type in ("Conv", "CastLike", "Clip")
    ]


def test_what_is_made_of_them_is_one_constant() -> None:
    """A missing bias of a convolution that takes no batch norm."""
    result = folded(
        "zero = Constant <value_float = 0.0> () z = CastLike (zero, n) s = Shape (v) f = Slice (s, nil, one)"
        " b = Expand (z, f) r = Relu (n) y = Conv (r, v, b)",
        v=random(4, 4, 1, 1),
        nil=np.array([0]),
        one=np.array([1]),
    )
    assert operators(result.model) == ["Conv", "Constant", "Relu", "Conv"]
    assert {tensor.name for tensor in result.model.graph.initializer}.isdisjoint({"nil", "one"})


def test_short_forms_are_spelled_out() -> None:
    result = folded("i = Constant <value_ints = [0, -1]> () y = Reshape (n, i)", "double[2,144] y")
    (constant,) = [node for node in result.model.graph.node if node.op_type == "Constant"]
    assert [given.name for given in constant.attribute] == ["value"]
    assert onnx.numpy_helper.to_array(constant.attribute[0].t).tolist() == [0, -1]


def test_a_second_name_of_a_constant_goes() -> None:
    result = folded("u = Identity (v) k = Identity (u) r = Relu (n) y = Conv (r, k)", v=random(4, 4, 1, 1))
    assert operators(result.model) == ["Conv", "Relu", "Conv"]
    assert result.model.graph.node[-1].input[1] == "v"


@pytest.mark.parametrize(
    ("body", "outputs", "stays"),
    [
        ("k = Identity (v) y = Conv (n, k)", "double[2,4,6,6] y, double[4,4,1,1] k", "Identity"),
        ("k = Identity (x) y = Sum (n, n) z = Abs (k)", "double[2,4,6,6] y, double[2,3,6,6] z", "Identity"),
        ("i = Cast <to = 11> (one) y = Mul (n, i)", "double[2,4,6,6] y", "Cast"),
    ],
)
def test_what_is_in_nobodys_way_stays(body: str, outputs: str, stays: str) -> None:
    more = {"v": random(4, 4, 1, 1)} if "v)" in body else {"one": np.array(2)} if "one" in body else {}
    assert stays in operators(folded(f"r = Relu (n) {body.replace('(n', '(r')}", outputs, **more).model)


def test_a_name_that_an_inner_graph_has_for_something_else_is_not_given_to_it() -> None:
    text = f"""
    agraph (double[2,3,6,6] x, bool p) => (double[2,4,6,6] y)
    {{
      c = Conv (x, w)
      n = {NORM}
      k = Identity (v)
      y = If (p) <then_branch = t () => (double[2,4,6,6] a) {{ v = Relu (n) a = Mul (v, k) }},
                  else_branch = e () => (double[2,4,6,6] b) {{ b = Mul (n, k) }}>
    }}
    """
    model = parse(
        text, w=random(4, 3, 1, 1), v=random(4, 1, 1), **batch_norm(4)
    )  # onnxruntime takes it, the checker not
    assert operators(bnfold.fold(model).model) == ["Conv", "Identity", "If"]


def test_a_file_where_nothing_is_folded_stays_as_it_is() -> None:
    text = (
        "agraph (double[2] x) => (double[2] y) { h = Constant <value_int = 6> () l = CastLike (h, x) y = Min (x, l) }"
    )
    model = parse(text, opset=18)
    assert fold(model).model == model


def test_onnxruntime_fuses_the_clip(tmp_path) -> None:
    text = f"""
    agraph (float[2,3,6,6] x) => (float[2,4,6,6] y)
    {{
      c = Conv (x, w)
      n = {NORM}
      l = Constant <value_int = 0> ()
      h = Constant <value_int = 6> ()
      low = CastLike (l, n)
      high = CastLike (h, n)
      y = Clip (n, low, high)
    }}
    """
    constants = {"w": random(4, 3, 1, 1), **batch_norm(4)}
    model = parse(text, opset=18, **{name: array.astype(np.float32) for name, array in constants.items()})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        bnfold.fold(model).model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert operators(onnx.load(tmp_path / "optimised.onnx")) == ["FusedConv"]
