"""The ways in which weights and BN parameters are written as constants."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_fold import batch_norm, fold, parse, random, scale_and_shift

import bnfold

TEXT = """
agraph (double[N,3,4,4] x EXTRA) => (double[N,4,4,4] y)
{
  EXPRESSION
  [conv] c = Conv (x, w BIAS)
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""


def model_of(
    expression: str, *, bias: str = "", extra: str = "", opset: int = 17, ir_version: int = 10, **constants: np.ndarray
) -> onnx.ModelProto:
    text = TEXT.replace("EXPRESSION", expression).replace("BIAS", bias).replace("EXTRA", extra)
    return parse(text, opset=opset, ir_version=ir_version, **{**batch_norm(4), **constants})


WEIGHT = random(4, 3, 1, 1)

EXPRESSIONS = {
    "initializer": ("", {"w": WEIGHT}),
    "identity": ("w = Identity (k)", {"k": WEIGHT}),
    "identities": ("k1 = Identity (k)\n w = Identity (k1)", {"k": WEIGHT}),
    "cast": ("w = Cast <to=11> (k)", {"k": WEIGHT.astype(np.float32)}),
    "cast_like": ("w = CastLike (k, x)", {"k": WEIGHT.astype(np.float32)}),
    "cast_like_constant": ("w = CastLike (k, bn_g)", {"k": WEIGHT.astype(np.float32)}),
    "reshape": ("w = Reshape (k, s)", {"k": WEIGHT.reshape(-1), "s": np.array([4, 3, 1, 1])}),
    "reshape_minus_one": ("w = Reshape (k, s)", {"k": WEIGHT.reshape(-1), "s": np.array([4, -1, 1, 1])}),
    "transpose": ("w = Transpose <perm=[1,0,3,2]> (k)", {"k": random(3, 4, 1, 1)}),
    "expand": ("w = Expand (k, s)", {"k": random(1, 3, 1, 1), "s": np.array([4, 3, 1, 1])}),
    "constant_of_shape": ("w = ConstantOfShape <value=double[1] {0.25}> (s)", {"s": np.array([4, 3, 1, 1])}),
    "unsqueeze": ("w = Unsqueeze (k, a)", {"k": random(4, 3), "a": np.array([2, 3])}),
    "concat": ("w = Concat <axis=0> (k, k)", {"k": random(2, 3, 1, 1)}),
    "slice": ("w = Slice (k, a, b)", {"k": random(9, 3, 1, 1), "a": np.array([0]), "b": np.array([4])}),
    "scaled": ("w = Mul (k, s)", {"k": WEIGHT, "s": random(4, 1, 1, 1)}),
    "weight_norm": (
        "n = ReduceL2 <axes=[1,2,3]> (k)\n d = Div (k, n)\n w = Mul (d, s)",
        {"k": random(4, 3, 1, 1), "s": random(4, 1, 1, 1)},
    ),
    "weight_standardisation": (
        "m = ReduceMean <axes=[1,2,3]> (k)\n d = Sub (k, m)\n e = Mul (d, d)\n v = ReduceMean <axes=[1,2,3]> (e)\n"
        " q = Sqrt (v)\n w = Div (d, q)",
        {"k": random(4, 3, 1, 1)},
    ),
    "low_rank": (
        "p = MatMul (a, b)\n r = Reshape (p, s)\n w = Add (k, r)",
        {"k": WEIGHT, "a": random(4, 2), "b": random(2, 3), "s": np.array([4, 3, 1, 1])},
    ),
    "low_rank_by_letters": (
        'w = Einsum <equation="or,rihw->oihw"> (a, b)',
        {"a": random(4, 2), "b": random(2, 3, 1, 1)},
    ),
    "pruned": ("m = Greater (k, t)\n w = Where (m, k, t)", {"k": WEIGHT, "t": np.array(0.0)}),
    "padded": ("w = Pad (k, p)", {"k": random(2, 3, 1, 1), "p": np.array([1, 0, 0, 0, 1, 0, 0, 0])}),
    "positive": ("e = Exp (k)\n o = Sigmoid (e)\n w = Softplus (o)", {"k": WEIGHT}),
}


@pytest.mark.parametrize(("expression", "constants"), EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_a_weight_in_every_form(expression: str, constants: dict[str, np.ndarray]) -> None:
    folded = fold(model_of(expression, **constants))
    assert folded.codes == []
    assert {node.op_type for node in folded.model.graph.node} == {"Conv"}, "the expression has no reader any more"


@pytest.mark.parametrize("stays", [name for name in EXPRESSIONS if name != "initializer"])
def test_an_expression_that_others_read_stays(stays: str) -> None:
    expression, constants = EXPRESSIONS[stays]
    model = model_of(expression, **constants)
    model.graph.node.append(helper.make_node("Neg", ["w"], ["other"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.DOUBLE, [4, 3, 1, 1]))
    folded = fold(model)
    assert folded.codes == []
    kept = [node.op_type for node in model.graph.node if node.op_type != "BatchNormalization"]
    if stays in ("identity", "identities"):
        kept = ["Conv", "Neg"]  # what it is another name of is read instead
    elif stays.startswith("cast_like"):
        kept = ["Constant", "Conv"]  # evaluated, with what is made of it: runtimes do not when they load a file
    assert sorted(node.op_type for node in folded.model.graph.node) == sorted(kept)


def test_constant_nodes() -> None:
    model = model_of("")
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT, "inside"))
    model.graph.node.insert(0, weight)
    folded = fold(model)
    assert (folded.codes, folded.count("Constant")) == ([], 0)
    scale, _ = scale_and_shift(batch_norm(4))
    np.testing.assert_allclose(folded.constant("conv", 1), WEIGHT * scale.reshape(-1, 1, 1, 1), rtol=1e-11)


@pytest.mark.parametrize("opset", [12, 17])
def test_constant_nodes_of_plain_numbers(opset: int) -> None:
    text = """
    agraph (float[N,3,4,4] x) => (float[N,4,4,4] y)
    {
      bias = Constant <value_floats=[0.5, 0.25, 1.0, 2.0]> ()
      [conv] c = Conv (x, w, bias)
      [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    parameters = batch_norm(4, dtype=np.float32)
    folded = fold(parse(text, opset=opset, w=WEIGHT.astype(np.float32), **parameters), compare=False)
    assert (folded.codes, folded.count("Constant")) == ([], 0)
    scale, shift = scale_and_shift(parameters)
    exact = np.array([0.5, 0.25, 1.0, 2.0]) * scale + shift
    assert folded.constant("conv", 2).tobytes() == exact.astype(np.float32).tobytes()


def test_the_missing_bias_of_the_torch_exporter() -> None:
    """torch.onnx.export(dynamo=True, optimize=False) writes it as Expand(CastLike(Constant), Shape(weight))."""
    expression = """
      zero = Constant <value_float=0.0> ()
      like = CastLike (zero, x)
      shape = Shape <start=0, end=1> (w)
      bias = Expand (like, shape)
    """
    folded = fold(model_of(expression, bias=", bias", w=WEIGHT, opset=18))
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]


def test_cast_like_reads_no_elements() -> None:
    """A constant cast to the type of the conv's own output does not hold that output back."""
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      c = Conv (x, w)
      z = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      k = CastLike (one, c)
      y = Mul (z, k)
    }
    """
    model = parse(text, w=WEIGHT, one=np.array(2.0, np.float32), **batch_norm(4))
    assert fold(model).codes == []


@pytest.mark.parametrize("symbolic", [True, False])
def test_shape_reads_no_elements(symbolic: bool) -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, int64[4] s)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      s = Shape (c)
    }
    """
    model = parse(text if symbolic else text.replace("[N,", "[2,"), w=WEIGHT, **batch_norm(4))
    folded = fold(model)
    assert folded.codes == []


def test_bn_parameters_in_every_form() -> None:
    expression = """
      bn_g = ConstantOfShape <value=double[1] {1.5}> (s)
      bn_b = Cast <to=11> (b32)
      bn_m = Identity (m1)
      bn_v = Expand (v1, s)
    """
    parameters = {
        "s": np.array([4]),
        "b32": random(4, dtype=np.float32),
        "m1": random(4),
        "v1": np.array([2.0]),
    }
    model = model_of(expression, w=WEIGHT, **parameters)
    unused = {"bn_g", "bn_b", "bn_m", "bn_v"}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in unused]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    folded = fold(model)
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]


@pytest.mark.parametrize(
    ("expression", "constants"),
    [
        ("w = Add (k, z)", {"k": WEIGHT}),
        ("w = RandomNormal <shape=[4,3,1,1], dtype=11> ()", {}),
        ("w = Dropout (k)", {"k": WEIGHT}),
    ],
)
def test_what_is_not_constant_is_left(expression: str, constants: dict[str, np.ndarray]) -> None:
    model = model_of(expression, extra=", double[1] z", **constants)
    assert fold(model, compare=False, leftover="keep").codes == ["weight_not_constant"]


def test_a_symbolic_shape_is_not_constant() -> None:
    expression = "s = Shape <start=0, end=1> (x)\n one = ConstantOfShape (s)\n f = CastLike (one, x)\n w = Mul (k, f)"
    model = model_of(expression, k=WEIGHT, opset=18)
    assert fold(model, leftover="keep", feeds={"x": random(1, 3, 4, 4)}).plan.folds == ()


def test_the_default_of_an_input_may_be_overridden() -> None:
    model = model_of("", extra=", double[4,3,1,1] w", w=WEIGHT)
    folded = fold(model, leftover="keep")
    assert folded.codes == ["overridable"]
    assert folded.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("parameter", ["bn_g", "bn_b", "bn_m", "bn_v"])
def test_bn_parameters_may_be_overridden(parameter: str) -> None:
    model = model_of("", extra=f", double[4] {parameter}", w=WEIGHT)
    folded = fold(model)
    assert (folded.codes, folded.count("BatchNormalization")) == (["overridable"], 1)


@pytest.mark.parametrize(
    "expression", ["w = Identity (k)", "w = Reshape (k, s)", "f = CastLike (k, x)\n w = Identity (f)"]
)
def test_what_follows_from_an_overridable_default_may_be_overridden(expression: str) -> None:
    model = model_of(expression, extra=", double[4,3,1,1] k", k=WEIGHT, s=np.array([4, 3, 1, 1]))
    assert fold(model, leftover="keep").codes == ["overridable"]


def test_an_overridable_bias_is_left() -> None:
    model = model_of("", bias=", bias", extra=", double[4] bias", w=WEIGHT, bias_=random(4))
    model.graph.initializer[-1].name = "bias"
    assert fold(model, leftover="keep").codes == ["overridable"]


@pytest.mark.parametrize("large", [False, True])
def test_in_ir_version_3_every_initializer_is_an_input(large: bool) -> None:
    parameters = batch_norm(4)
    weight = random(4, 3, 9, 9) if large else WEIGHT
    text = TEXT.replace("EXPRESSION", "").replace("BIAS", "").replace("4,4]", "16,16]" if large else "4,4]")
    text = text.replace("N,4,16,16", "N,4,8,8")
    model = parse(text.replace("EXTRA", ""), opset=8, ir_version=3, w=weight, **parameters)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    folded = fold(model)
    assert folded.codes == []
    assert sorted(value.name for value in folded.model.graph.input) == ["conv_bias", "w_folded", "x"]


def test_in_ir_version_3_leftovers_are_listed_too() -> None:
    text = """
    agraph (float[N,4,4,4] x) => (float[N,4,4,4] y)
    {
      r = Relu (x)
      y = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, opset=8, ir_version=3, **batch_norm(4, dtype=np.float32))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    folded = fold(model, compare=False)
    assert (folded.count("BatchNormalization"), folded.count("Conv")) == (0, 1)


def test_a_sparse_constant_node_is_left() -> None:
    model = model_of("", w=WEIGHT)
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("w")]
    values = numpy_helper.from_array(np.array([1.0, 2.0]), "")
    indices = numpy_helper.from_array(np.array([0, 7]), "")
    sparse = helper.make_sparse_tensor(values, indices, [4, 3, 1, 1])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    assert fold(model, compare=False, leftover="keep").codes == ["weight_not_constant"]


def test_a_weight_of_whole_numbers_is_left() -> None:
    text = """
    agraph (int32[N,3] x) => (double[N,4] y)
    {
      c = MatMul (x, w)
      d = Cast <to=11> (c)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, w=np.ones((3, 4), np.int32), **batch_norm(4))
    assert fold(model, leftover="keep").codes == ["changes_dtype"]


@pytest.mark.parametrize("op_type", ["Expand", "Mul", "Gather", "ConstantOfShape", "MatMul", "Einsum", "Pad"])
def test_an_expression_of_any_size_in_a_few_bytes_is_not_evaluated(op_type: str) -> None:
    side = 1 << 22
    make = {
        "Expand": "big = Expand (column, tall)",
        "Mul": "big = Mul (column, row)",
        "Gather": "i0 = Cast <to=7> (row)\n i = Squeeze (i0, zero)\n"
        " r = Reshape (column, flat)\n big = Gather <axis=0> (r, i)",
        "ConstantOfShape": "big = ConstantOfShape (both)",
        "MatMul": "big = MatMul (column, row)",
        "Einsum": 'big = Einsum <equation="ij,jk->ik"> (column, row)',
        "Pad": "big = Pad (column, pads)",
    }[op_type]
    text = f"""
    agraph (float[N,4,4,4] x) => (float[N,4,4,4] y)
    {{
      column = ConstantOfShape (high)
      row = ConstantOfShape (wide)
      {make}
      w0 = Reshape (big, s)
      w = Slice (w0, zero, four)
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    model = parse(
        text,
        high=np.array([side, 1]),
        wide=np.array([1, side]),
        tall=np.array([1, side]),
        both=np.array([side, side]),
        pads=np.array([0, 0, 0, side]),
        flat=np.array([1, side]),
        s=np.array([-1, 4, 1, 1]),
        zero=np.array([0]),
        four=np.array([4]),
        **batch_norm(4, dtype=np.float32),
    )
    result = bnfold.fold(model, leftover="keep")
    assert [str(left.code) for left in result.plan.left] == ["weight_not_constant"]


@pytest.mark.parametrize("expression", ["w = Reshape (k, s)", "w = ConstantOfShape (s)"])
def test_an_expression_that_makes_no_sense_is_left_or_refused(expression: str) -> None:
    model = model_of(expression, k=WEIGHT, s=np.array([-5, -3, 1, 1]))
    try:
        plan = bnfold.fold(model, leftover="keep").plan
    except bnfold.ModelLoadError:
        return
    assert [str(left.code) for left in plan.left] == ["weight_not_constant"]


def test_the_other_name_of_the_default_domain() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      w = ai.onnx.Reshape (k, s)
      c = ai.onnx.Conv (x, w)
      y = ai.onnx.BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, k=WEIGHT.reshape(-1), s=np.array([4, 3, 1, 1]), **batch_norm(4))
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError:
        pytest.skip("this onnx does not know the name ai.onnx")
    folded = fold(model, compare=False)
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]
