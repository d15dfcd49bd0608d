"""Model-local functions: with their own weights they are folded, with weights from the caller inlined first."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_fold import batch_norm, fold, parse, random

import bnfold
from bnfold.onnx.proto.versions import means_the_same

HEADER = '<ir_version: 10, opset_import: ["" : 17, "f" : 1]>\n'

ARGUMENTS = """
<domain: "f", opset_import: ["" : 17]>
block (a, w, g, b, m, v) => (r)
{
  c = Conv (a, w)
  r = BatchNormalization (c, g, b, m, v)
}
"""


def test_weights_as_arguments() -> None:
    text = "agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { [call] y = f.block (x, w, bn_g, bn_b, bn_m, bn_v) }"
    folded = fold(parse(HEADER + text + ARGUMENTS, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert (folded.codes, folded.count("BatchNormalization")) == ([], 0)


def test_several_calls_with_weights_of_their_own() -> None:
    text = """
    agraph (double[N,4,4,4] x) => (double[N,4,4,4] y)
    {
      [one] a = f.block (x, w, bn_g, bn_b, bn_m, bn_v)
      [two] c = f.block (a, w, o_g, o_b, o_m, o_v)
      [three] y = f.block (c, u, bn_g, bn_b, bn_m, bn_v)
    }
    """
    constants = {"w": random(4, 4, 1, 1), "u": random(4, 4, 1, 1, seed=4)}
    folded = fold(parse(HEADER + text + ARGUMENTS, **constants, **batch_norm(4), **batch_norm(4, "o")))
    assert (folded.codes, folded.plan.batch_norms_folded) == ([], 3)


def test_nested_functions() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { y = f.outer (x, w, bn_g, bn_b, bn_m, bn_v) }
    <domain: "f", opset_import: ["" : 17, "f" : 1]>
    outer (a, w, g, b, m, v) => (r) { q = f.block (a, w, g, b, m, v) r = Relu (q) }
    """
    folded = fold(parse(HEADER + text + ARGUMENTS, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert folded.codes == []


@pytest.mark.parametrize("step", ["Identity (w)", "CastLike (w, a)", "Transpose <perm=[0,1,3,2]> (w)"])
def test_arguments_that_pass_through_an_expression_first(step: str) -> None:
    text = "agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { y = f.block (x, w, bn_g, bn_b, bn_m, bn_v) }"
    function = ARGUMENTS.replace("c = Conv (a, w)", f"k = {step}\n c = Conv (a, k)")
    folded = fold(parse(HEADER + text + function, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert folded.codes == []


def test_attributes_as_arguments() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,2,2] y)
    {
      y = f.block <eps = 0.25, strides = [2, 2]> (x)
    }
    <domain: "f", opset_import: ["" : 17]>
    block <eps, strides> (a) => (r)
    {
      c = Conv <strides: ints = @strides> (a, w)
      r = BatchNormalization <epsilon: float = @eps> (c, g, b, m, v)
    }
    """
    model = parse(HEADER + text)
    parameters = batch_norm(4)
    constants = {"w": random(4, 3, 1, 1), **{name[-1]: array for name, array in parameters.items()}}
    insert_constants(model.functions[0], constants)
    folded = fold(model)
    assert (folded.codes, folded.count("BatchNormalization")) == ([], 0)


def test_an_attribute_with_a_default() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { y = f.block (x, w, bn_g, bn_b, bn_m, bn_v) }
    <domain: "f", opset_import: ["" : 17]>
    block <eps: float = 0.5> (a, w, g, b, m, v) => (r)
    {
      c = Conv (a, w)
      r = BatchNormalization <epsilon: float = @eps> (c, g, b, m, v)
    }
    """
    assert fold(parse(HEADER + text, w=random(4, 3, 1, 1), **batch_norm(4))).codes == []


def assert_runs_alike(model: onnx.ModelProto) -> None:
    """Compares a fold with its original in onnxruntime, which inlines functions by itself."""
    result = bnfold.fold(model)
    assert result.plan.batch_norms_left == 0
    feed = {"x": random(2, 4, 3, 3, seed=9).astype(np.float32)}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    original, folded = (
        onnxruntime.InferenceSession(each.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feed)[0]
        for each in (model, result.model)
    )
    np.testing.assert_allclose(folded, original, rtol=1e-4, atol=1e-5)


def in_float32(text: str, *norms: str) -> onnx.ModelProto:
    constants = {
        "w": random(4, 4, 1, 1),
        **{key: array for norm in norms for key, array in batch_norm(4, norm).items()},
    }
    return parse(HEADER + text, **{key: array.astype(np.float32) for key, array in constants.items()})


NORM = """
<domain: "f", opset_import: ["" : 17]>
norm <eps: float = 0.5> (a, g, b, m, v) => (r) { r = BatchNormalization <epsilon: float = @eps> (a, g, b, m, v) }
"""
HANDS_ON = """
<domain: "f", opset_import: ["" : 17, "f" : 1]>
block <e> (a, w, g, b, m, v) => (r) { c = Conv (a, w) r = f.norm <eps: float = @e> (c, g, b, m, v) }
"""


@pytest.mark.parametrize("given", ["", "<eps = 2.0>"])
def test_the_default_of_an_attribute_is_what_the_function_declares(given: str) -> None:
    text = f"""
    agraph (float[N,4,H,W] x) => (float[N,4,H,W] y)
    {{ c = Conv (x, w) y = f.norm {given} (c, bn_g, bn_b, bn_m, bn_v) }}
    """
    assert_runs_alike(in_float32(text + NORM, "bn"))


def test_a_default_holds_where_the_function_around_it_is_not_given_the_attribute() -> None:
    text = """
    agraph (float[N,4,H,W] x) => (float[N,4,H,W] y)
    {
      a = f.block (x, w, bn_g, bn_b, bn_m, bn_v)
      y = f.block <e = 2.0> (a, w, o_g, o_b, o_m, o_v)
    }
    """
    assert_runs_alike(in_float32(text + NORM + HANDS_ON, "bn", "o"))


def test_an_attribute_with_two_defaults_inside_is_refused_only_where_it_is_left_out() -> None:
    other = NORM.replace("norm", "other").replace("0.5", "0.25")
    both = HANDS_ON.replace("r = f.norm", "d = f.other <eps: float = @e> (c, g, b, m, v) r = f.norm")
    both = both.replace("@e> (c, g, b, m, v) }", "@e> (d, g, b, m, v) }")
    graph = """
    agraph (float[N,4,H,W] x) => (float[N,4,H,W] y) { y = f.block GIVEN (x, w, bn_g, bn_b, bn_m, bn_v) }
    """
    assert_runs_alike(in_float32(graph.replace("GIVEN", "<e = 2.0>") + NORM + other + both, "bn"))
    with pytest.raises(bnfold.UnsupportedModelError, match="leaves out e"):
        bnfold.fold(in_float32(graph.replace("GIVEN", "") + NORM + other + both, "bn"))


def test_a_function_named_like_an_operator_is_not_what_runtimes_call() -> None:
    text = """
    agraph (float[N,4,H,W] x) => (float[N,4,H,W] y)
    { c = Conv (x, w) i = Identity (c) y = BatchNormalization (i, bn_g, bn_b, bn_m, bn_v) }
    """
    model = in_float32(text, "bn")
    body = [helper.make_node("Mul", ["a", "a"], ["o"])]
    model.functions.append(helper.make_function("", "Identity", ["a"], ["o"], body, [helper.make_opsetid("", 17)]))
    assert_runs_alike(model)
    assert bnfold.verify(model, bnfold.fold(model).model, device="cpu").verdict == "pass"


def in_function_of_opset(opset: int, node: onnx.NodeProto) -> onnx.ModelProto:
    text = """
    agraph (float[N,4,H,W] x) => (float[N,4,P,Q] y)
    { c = Conv (x, w) b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) y = f.own (b) }
    """
    model = in_float32(text, "bn")
    model.functions.append(helper.make_function("f", "own", ["a"], ["o"], [node], [helper.make_opsetid("", opset)]))
    return model


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (13, helper.make_node("ReduceMean", ["a"], ["o"], axes=[2, 3])),  # the same operator
        (18, helper.make_node("ReduceMean", ["a"], ["o"])),  # has its axes as an input, had there been any
        (13, helper.make_node("Softmax", ["a"], ["o"], axis=1)),
        (13, helper.make_node("Relu", ["a"], ["o"])),  # took fewer types
    ],
)
def test_a_function_in_another_opset_is_verified_where_its_nodes_mean_the_same(
    opset: int, node: onnx.NodeProto
) -> None:
    model = in_function_of_opset(opset, node)
    assert_runs_alike(model)
    assert bnfold.verify(model, bnfold.fold(model).model, device="cpu").verdict == "pass"


@pytest.mark.parametrize("opset", [9, 14, 21])
def test_a_batch_norm_in_a_function_of_another_opset_is_folded(opset: int) -> None:
    text = """
    agraph (float[N,4,H,W] x) => (float[N,4,P,Q] y) { c = Conv (x, w) y = f.own (c, bn_g, bn_b, bn_m, bn_v) }
    """
    model = in_float32(text, "bn")
    node = helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["o"])
    function = helper.make_function("f", "own", node.input, node.output, [node], [helper.make_opsetid("", opset)])
    model.functions.append(function)
    assert_runs_alike(model)
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    assert bnfold.verify(model, folded.model, device="cpu").verdict == "pass"


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (18, helper.make_node("ReduceMean", ["a", ""], ["o"])),
        (11, helper.make_node("Softmax", ["a"], ["o"], axis=1)),  # of all axes from there on
        (11, helper.make_node("Hardmax", ["a"], ["o"], axis=1)),
        (10, helper.make_node("AveragePool", ["a"], ["o"], kernel_shape=[2, 2], ceil_mode=1)),
    ],
)
def test_a_function_whose_node_means_something_else_in_the_opset_of_the_model_is_not_run(
    opset: int, node: onnx.NodeProto
) -> None:
    model = in_function_of_opset(opset, node)
    # A vector that grows, whose elements are followed where no function stands in the way.
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["unread"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([3]), "size"))
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    with pytest.raises(bnfold.UnsupportedModelError, match="mean something else in the opset"):
        bnfold.verify(model, folded.model, device="cpu")


@pytest.mark.parametrize("names", [([""], ["o"]), (["a"], [""])])
def test_onnx_is_not_asked_about_a_node_that_would_crash_it(names: tuple[list[str], list[str]]) -> None:
    assert means_the_same(helper.make_node("EyeLike", ["a"], ["o"]), 18, 22)
    assert not means_the_same(helper.make_node("EyeLike", *names), 18, 22)


def insert_constants(function: onnx.FunctionProto, constants: dict[str, np.ndarray]) -> None:
    for name, array in constants.items():
        function.node.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))


OWN_WEIGHTS = """
agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[N,4,4,4] z)
{
  [one] y = f.block (x)
  [two] a = Neg (x)
  [three] z = f.block (a)
}
<domain: "f", opset_import: ["" : 17]>
block (a) => (r)
{
  [conv] c = Conv (a, w)
  [bn] r = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""


@pytest.mark.parametrize("large", [False, True])
def test_a_function_with_its_own_weights_is_folded_where_it_stands(large: bool) -> None:
    text = OWN_WEIGHTS.replace("N,3,", "N,40,") if large else OWN_WEIGHTS
    model = parse(HEADER + text)
    insert_constants(model.functions[0], {"w": random(4, 40 if large else 3, 1, 1), **batch_norm(4)})
    folded = fold(model)
    assert (folded.codes, len(folded.model.functions), folded.count("BatchNormalization")) == ([], 1, 0)
    assert [node.name for node in folded.model.graph.node] == ["one", "two", "three"]
    assert folded.plan.folds[0].nodes == ("f.block/bn",)


def test_a_matmul_in_a_function_gains_its_add_there() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y) { y = f.block (x) }
    <domain: "f", opset_import: ["" : 17]>
    block (a) => (r)
    {
      c = MatMul (a, w)
      d = Add (bias, c)
      r = Identity (d)
    }
    """
    model = parse(HEADER + text.replace("r = Identity (d)", "r = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)"))
    insert_constants(model.functions[0], {"w": random(5, 4), "bias": random(4), **batch_norm(4)})
    # Nothing says the rank of `a` inside the function.
    assert fold(model, leftover="keep").codes in ([], ["unknown_rank"])


def test_a_nested_graph_in_a_function() -> None:
    text = """
    agraph (double[2,3,4,4] x, bool p) => (double[2,4,4,4] y) { y = f.block (x, p) }
    <domain: "f", opset_import: ["" : 17]>
    block (a, p) => (r)
    {
      r = If (p) <then_branch = t () => (double[2,4,4,4] r1)
                    { c = Conv (a, w) r1 = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) },
                  else_branch = e () => (double[2,4,4,4] r2) { r2 = Conv (a, w) }>
    }
    """
    model = parse(HEADER + text)
    insert_constants(model.functions[0], {"w": random(4, 3, 1, 1), **batch_norm(4)})
    assert fold(model).codes == []


def test_an_opset_of_its_own() -> None:
    """A function is written in the opset that it imports, whatever the model imports."""
    model = parse(HEADER.replace('"" : 17', '"" : 18') + OWN_WEIGHTS)
    insert_constants(model.functions[0], {"w": random(4, 3, 1, 1), **batch_norm(4)})
    assert fold(model, compare=False).codes == []


def test_weights_as_arguments_and_an_opset_of_its_own() -> None:
    """onnx's inliner does not mix opsets: such a function is left with a reason, or folded, never a crash or a hang."""
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      y = f.block (x, w, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(HEADER.replace('"" : 17', '"" : 18') + text + ARGUMENTS, w=random(4, 3, 1, 1), **batch_norm(4))
    onnx.checker.check_model(model, full_check=True)
    codes = [str(left.code) for left in bnfold.fold(model).plan.left]
    assert codes in ([], ["parameters_not_constant"])


def test_a_function_that_nothing_calls() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(HEADER + text + ARGUMENTS, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert (folded.plan.batch_norms_folded, folded.plan.batch_norms_left) in ((1, 0), (1, 1))


UNRELATED = """
<domain: "f", opset_import: ["" : 17]>
attend (q, k) => (r) { r = MatMul (q, k) }
"""


@pytest.mark.parametrize("mode", ["folds", "stays"])
def test_functions_that_have_nothing_to_do_with_a_bn_survive(mode: str) -> None:
    """A product of two activations takes no weights from anybody."""
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      [call] a = f.attend (x, x)
      c = Conv (a, w)
      b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      y = Relu (b)
    }
    """
    text = text.replace("c = Conv (a, w)", "c1 = Conv (a, w)\n c = Relu (c1)") if mode == "stays" else text
    model = parse(HEADER + text + UNRELATED, w=random(4, 3, 1, 1), **batch_norm(4))
    folded = fold(model, leftover="keep")
    assert [function.name for function in folded.model.functions] == ["attend"]
    if mode == "stays":
        assert folded.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_bn_of_an_unknown_type_in_a_function_has_an_honest_reason() -> None:
    """Two BNs in a function that says no types: that they cannot be composed has nothing to do with overflow."""
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { y = f.block (x) }
    <domain: "f", opset_import: ["" : 17]>
    block (a) => (r)
    {
      c = Conv (a, w)
      d = Relu (c)
      e = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
      h = BatchNormalization (e, bn_g, bn_b, bn_m, bn_v)
      r = Relu (h)
    }
    """
    model = parse(HEADER + text)
    insert_constants(model.functions[0], {"w": random(4, 3, 1, 1), **batch_norm(4)})
    assert "overflow" not in fold(model).codes


def test_functions_of_two_overloads() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { y = f.block (x) }
    <domain: "f", opset_import: ["" : 17]>
    block (a) => (r) { c = Conv (a, w) r = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) }
    """
    model = parse(HEADER + text)
    insert_constants(model.functions[0], {"w": random(4, 3, 1, 1), **batch_norm(4)})
    other = model.functions.add()
    other.CopyFrom(model.functions[0])
    other.overload = "other"
    call = model.graph.node.add()
    call.CopyFrom(model.graph.node[0])
    call.overload, call.output[0] = "other", "z"
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "z"
    folded = fold(model, compare=False)
    assert (folded.codes, folded.plan.batch_norms_folded) == ([], 2)
