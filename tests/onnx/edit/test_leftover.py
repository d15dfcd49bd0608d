"""The BNs that stay, written as the frozen linear transform."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_fold import Folded, batch_norm, fold, parse, pure_scale, random, scale_and_shift

DTYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64}

TEXT = """
agraph (TYPE[N,4SIZES] x) => (TYPE[N,4SIZES] y)
{
  r = Relu (x)
  [bn] b = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
  y = Relu (b)
}
"""


def left_over(rank: int, type_name: str, form: str, parameters: dict[str, np.ndarray] | None = None) -> Folded:
    text = TEXT.replace("TYPE", type_name).replace("SIZES", ",3" * (rank - 2))
    parameters = parameters or batch_norm(4, dtype=DTYPES[type_name])
    model = parse(text, opset=22 if type_name == "bfloat16" else 17, **parameters)
    return fold(model, compare=type_name == "double", leftover=form)


@pytest.mark.parametrize("form", ["conv", "mul-add", "keep"])
@pytest.mark.parametrize("type_name", DTYPES)
@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6])
def test_every_form_rank_and_type(rank: int, type_name: str, form: str) -> None:
    folded = left_over(rank, type_name, form)
    assert len(folded.codes) == 1
    counts = {op_type: folded.count(op_type) for op_type in ("BatchNormalization", "Conv", "Mul", "Add")}
    if form == "keep":
        assert counts == {"BatchNormalization": 1, "Conv": 0, "Mul": 0, "Add": 0}
    elif form == "conv" and 3 <= rank <= 5 and type_name in ("float", "float16"):
        assert counts == {"BatchNormalization": 0, "Conv": 1, "Mul": 0, "Add": 0}
    else:
        assert counts == {"BatchNormalization": 0, "Conv": 0, "Mul": 1, "Add": 1}


@pytest.mark.parametrize("form", ["conv", "mul-add"])
@pytest.mark.parametrize("type_name", ["float", "float16", "double"])
def test_its_numbers_are_rounded_once(type_name: str, form: str) -> None:
    parameters = batch_norm(4, dtype=DTYPES[type_name])
    folded = left_over(4, type_name, form, parameters)
    exact = scale_and_shift(parameters)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in folded.model.graph.initializer}
    assert len(stored) == 2
    for array, expected in zip(stored.values(), exact, strict=True):
        assert array.dtype == DTYPES[type_name]
        if type_name == "double":
            np.testing.assert_allclose(array.reshape(-1), expected, rtol=1e-15)
        else:
            assert array.reshape(-1).tobytes() == expected.astype(DTYPES[type_name]).tobytes()


@pytest.mark.parametrize("rank", [2, 4, 6])
@pytest.mark.parametrize("form", ["conv", "mul-add"])
def test_an_add_of_zeros_is_not_written(form: str, rank: int) -> None:
    folded = left_over(rank, "double", form, pure_scale(4))
    assert (folded.count("Mul"), folded.count("Add"), folded.count("BatchNormalization")) == (1, 0, 0)
    single = {name: array.astype(np.float32) for name, array in pure_scale(4).items()}
    folded = left_over(4, "float", "conv", single)
    assert len(folded.node("bn_affine").input) == 2


def test_the_conv_is_depthwise_and_pointwise() -> None:
    folded = left_over(5, "float", "conv")
    attributes = {given.name: onnx.helper.get_attribute_value(given) for given in folded.node("bn_affine").attribute}
    assert attributes == {"group": 4, "kernel_shape": [1, 1, 1]}
    assert folded.constant("bn_affine", 1).shape == (4, 1, 1, 1, 1)


def test_an_affine_that_does_not_fit_its_type_stays() -> None:
    parameters = batch_norm(4, dtype=np.float16)
    parameters["bn_g"] = np.full(4, 60000, np.float16)
    parameters["bn_v"] = np.full(4, 2.0**-10, np.float16)
    folded = left_over(4, "float16", "conv", parameters)
    assert folded.count("BatchNormalization") == 1
    assert {"bn_g", "bn_b", "bn_m", "bn_v"} <= {tensor.name for tensor in folded.model.graph.initializer}


@pytest.mark.parametrize("form", ["conv", "mul-add"])
def test_parameters_that_are_shared_stay_for_the_other(form: str) -> None:
    text = """
    agraph (double[N,4,3,3] x) => (double[N,4,3,3] y, double[4] z)
    {
      r = Relu (x)
      y = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
      z = Neg (bn_g)
    }
    """
    folded = fold(parse(text, **batch_norm(4)), leftover=form)
    assert "bn_g" in {tensor.name for tensor in folded.model.graph.initializer}
    assert "bn_b" not in {tensor.name for tensor in folded.model.graph.initializer}


@pytest.mark.parametrize("form", ["conv", "mul-add", "keep"])
def test_what_was_composed_is_in_it(form: str) -> None:
    text = """
    agraph (double[N,4,3,3] x) => (double[N,4,3,3] y)
    {
      r = Relu (x)
      a = BatchNormalization (r, one_g, one_b, one_m, one_v)
      b = Identity (a)
      c = BatchNormalization (b, bn_g, bn_b, bn_m, bn_v)
      y = Relu (c)
    }
    """
    folded = fold(parse(text, **batch_norm(4), **batch_norm(4, "one")), leftover=form)
    assert folded.plan.batch_norms_left == 2
    assert folded.count("BatchNormalization") == (2 if form == "keep" else 0)
    assert folded.count("Mul") == (0 if form == "keep" else 1)


def test_mixed_types_follow_the_value() -> None:
    text = TEXT.replace("TYPE", "float16").replace("SIZES", ",3,3")
    statistics = batch_norm(4, dtype=np.float32)
    parameters = {**statistics, **{name: statistics[name].astype(np.float16) for name in ("bn_g", "bn_b")}}
    folded = fold(parse(text, **parameters), compare=False)
    assert folded.constant("bn_affine", 1).dtype == np.float16


@pytest.mark.parametrize("opset", [7, 13, 22])
@pytest.mark.parametrize("form", ["conv", "mul-add"])
def test_it_is_valid_in_every_opset(opset: int, form: str) -> None:
    for rank in (2, 3, 4):
        text = TEXT.replace("TYPE", "float").replace("SIZES", ",3" * (rank - 2))
        folded = fold(parse(text, opset=opset, **batch_norm(4, dtype=np.float32)), compare=False, leftover=form)
        assert folded.count("BatchNormalization") == 0


def test_a_leftover_behind_an_output_keeps_its_name() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[N,4,4,4] c)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert (folded.codes, folded.count("BatchNormalization")) == (["model_output"], 0)


EMPTY = {
    "an input": ("n = NORM (x) y = Relu (n)", False),
    "behind what has one position for each": (
        "r = Relu (x) s = Sigmoid (r) t = Mul (r, s) n = NORM (t) y = Relu (n)",
        False,
    ),
    "behind a conv": ("c = Conv (x, w1) r = Relu (c) n = NORM (r) y = Relu (n)", True),
    "behind a padded conv": ("c = Conv <pads = [2, 2]> (x, w3) r = Relu (c) n = NORM (r) y = Relu (n)", True),
    "behind a transposed conv": (
        "c = ConvTranspose <pads = [0, 0]> (x, w3) r = Relu (c) n = NORM (r) y = Relu (n)",
        True,
    ),
    "behind a pool of a conv": (
        "c = Conv (x, w1) p = MaxPool <kernel_shape = [2]> (c) r = Relu (p) n = NORM (r) y = Relu (n)",
        False,
    ),
    "behind a sum": ("c = Conv (x, w1) r = Relu (c) s = Add (r, r) n = NORM (s) y = Relu (n)", True),
    "behind a sum with what a conv reads": (
        "c = Conv (x, w1) r = Relu (c) s = Add (r, x) n = NORM (s) y = Relu (n)",
        True,
    ),
    "behind a sum with a smaller operand": (
        "c = Conv (x, w1) r = Relu (c) m = ReduceMax <axes = [0], keepdims = 0> (x) s = Add (r, m)"
        " n = NORM (s) y = Relu (n)",
        False,
    ),
    "behind pieces of which one is of a conv": (
        "c = Conv (x, w2) r = Relu (c) q = Slice (x, zero, two, one) s = Concat <axis = 1> (r, q) n = NORM (s)"
        " y = Relu (n)",
        True,
    ),
    "beside a conv": ("c = Conv <pads = [1, 1]> (x, w3) n = NORM (x) y = Add (c, n)", None),
    "before a conv": ("n = NORM (x) c = Conv <pads = [1, 1]> (n, w3) y = Relu (c)", True),
    "before a conv that nothing reads": (
        "n = NORM (x) r = Relu (n) c = Conv <pads = [1, 1]> (r, w3) y = Relu (n)",
        False,
    ),
    "before a conv that pads more than it reaches": (
        "n = NORM (x) c = Conv <pads = [2, 2]> (n, w3) y = Relu (c)",
        False,
    ),
    "before an activation and a conv": ("n = NORM (x) r = Relu (n) c = Conv (r, w3) y = Relu (c)", True),
    "beside a conv that reads the same": ("n = NORM (x) y = Relu (n) c = Conv (x, w3) z = Relu (c)", True),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_value_that_may_be_empty(name: str) -> None:
    """onnxruntime has a BN for an image of no positions, and refuses a convolution of one."""
    body, convolves = EMPTY[name]
    body = body.replace("NORM (", "BatchNormalization (bn_g, ").replace("(bn_g, x)", "(x)")
    for value in "xrtpsn":
        body = body.replace(
            f"BatchNormalization (bn_g, {value})", f"BatchNormalization ({value}, bn_g, bn_b, bn_m, bn_v)"
        )
        body = body.replace(f"BatchNormalization ({value})", f"BatchNormalization ({value}, bn_g, bn_b, bn_m, bn_v)")
    given = {
        **{f"w{taps}": random(4, 4, taps, dtype=np.float32) for taps in (1, 3)},
        "w2": random(2, 4, 1, dtype=np.float32),
        **{name: np.array([number]) for name, number in (("zero", 0), ("two", 2), ("one", 1))},
    }
    given = {name: array for name, array in given.items() if f" {name}" in body}
    outputs = "float[A,B,C] y, float[D,E,F] z" if "z =" in body else "float[A,B,C] y"
    model = parse(f"agraph (float[N,4,L] x) => ({outputs}) {{ {body} }}", **given, **batch_norm(4, dtype=np.float32))
    folded = fold(model, compare=False, merge=True)
    if convolves is not None:
        assert len(folded.codes) == 1
        added = folded.count("Conv") - sum(node.op_type == "Conv" for node in model.graph.node)
        assert added == convolves
    for length in (0, 1, 4):
        feeds = {"x": random(2, 4, length, dtype=np.float32)}
        try:
            expected = _run(model, feeds)
        except Exception:  # noqa: BLE001 - what the runtime refuses it may refuse
            continue
        for ours, theirs in zip(_run(folded.model, feeds), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_value_without_channels() -> None:
    """A convolution of no channels ends onnxruntime."""
    text = TEXT.replace("TYPE", "float").replace("SIZES", ",3,3").replace("[N,4", "[N,0")
    model = parse(text, **{name: array[:0] for name, array in batch_norm(4, dtype=np.float32).items()})
    folded = fold(model, compare=False)
    assert folded.count("Conv") == 0
    (result,) = _run(folded.model, {"x": np.zeros((2, 0, 3, 3), np.float32)})
    assert result.shape == (2, 0, 3, 3)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)
