"""What runtimes take and the standard does not allow: read, folded, kept as it is, and mended if asked for."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fold import batch_norm, parse, random

import bnfold
from bnfold.onnx.ir import FoldBatchNormPass
from bnfold.verification import InputSpec

TEXT = """
agraph (float[2,3,8,8] x) => (float[2,4,6,6] y)
{
  [conv] c = Conv (x, w)
  [bn] n = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
  [act] y = Relu (n)
}
"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
Odd = Callable[[onnx.ModelProto], None]


def network() -> onnx.ModelProto:
    constants = {"w": random(4, 3, 3, 3), **batch_norm(4)}
    return parse(TEXT, **{name: array.astype(np.float32) for name, array in constants.items()})


def run(model: onnx.ModelProto, **more: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {**FEEDS, **more})[0])


def declare(model: onnx.ModelProto, name: str, shape: list[int | str] | None) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def unsorted(model: onnx.ModelProto) -> None:
    nodes = [*reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def stale_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 20


def output_of_another_rank(model: onnx.ModelProto) -> None:
    del model.graph.output[0].type.tensor_type.shape.dim[2:]


def stale_value(model: onnx.ModelProto) -> None:
    declare(model, "c", [1, 4, 6, 6])


def value_of_another_rank(model: onnx.ModelProto) -> None:
    declare(model, "c", [2, 4, 6])


def output_with_a_name_only(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def value_with_a_name_only(model: onnx.ModelProto) -> None:
    model.graph.value_info.add(name="c")


def output_without_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def input_without_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def sizes_of_minus_one(model: onnx.ModelProto) -> None:
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1


def placeholders(model: onnx.ModelProto) -> None:
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "?"


def no_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def spelled_out_domain(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"


def imported_twice(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="", version=17)


def default_domain_not_imported(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain, model.opset_import[0].version = "com.microsoft", 1


def contrib_not_imported(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type, model.graph.node[2].domain = "QuickGelu", "com.microsoft"


def twice_the_same_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def ir3_without_listed_initializers(model: onnx.ModelProto) -> None:
    model.ir_version = 3
    model.opset_import[0].version = 9


ODDITIES = [
    unsorted,
    stale_output,
    output_of_another_rank,
    stale_value,
    value_of_another_rank,
    output_with_a_name_only,
    value_with_a_name_only,
    output_without_shape,
    input_without_shape,
    sizes_of_minus_one,
    placeholders,
    no_name,
    spelled_out_domain,
    imported_twice,
    default_domain_not_imported,
    contrib_not_imported,
    twice_the_same_initializer,
    ir3_without_listed_initializers,
]


@pytest.mark.parametrize("odd", ODDITIES)
def test_what_the_runtime_takes_is_folded_and_stays_as_it_is(odd: Odd, tmp_path) -> None:
    model, plain = network(), network()
    odd(model)
    before = run(model)
    result = bnfold.fold(model)
    assert (result.plan.batch_norms_folded, result.plan.left) == (1, ())
    result.save(tmp_path / "folded.onnx")
    folded = onnx.load(tmp_path / "folded.onnx")
    np.testing.assert_allclose(run(folded), before, rtol=1e-5, atol=1e-5)
    expected = bnfold.fold(plain).model
    assert [node.name for node in folded.graph.node if node.name != "bn"] == [
        node.name for node in model.graph.node if node.name != "bn"
    ]
    assert {t.name: t.raw_data for t in folded.graph.initializer if t.name.endswith("_folded")} == {
        t.name: t.raw_data for t in expected.graph.initializer if t.name.endswith("_folded")
    }
    assert (folded.ir_version, folded.opset_import) == (model.ir_version, model.opset_import)
    assert (folded.graph.name, folded.graph.input, folded.graph.output) == (
        model.graph.name,
        model.graph.input,
        model.graph.output,
    )


@pytest.mark.parametrize("odd", ODDITIES)
def test_a_repaired_model_is_what_the_standard_asks_for(odd: Odd) -> None:
    model = network()
    odd(model)
    repaired = bnfold.fold(model, repair=True)
    assert repaired.plan.batch_norms_folded == 1
    np.testing.assert_allclose(run(repaired.model), run(model), rtol=1e-5, atol=1e-5)
    if odd is not input_without_shape:  # the checker asks for a shape of inputs, and nothing says all of this one
        onnx.checker.check_model(repaired.model, full_check=True)


def test_a_model_without_oddities_is_not_repaired() -> None:
    model = network()
    assert bnfold.fold(model, repair=True).model == bnfold.fold(model).model
    assert not bnfold.fold(model, only=("bn",), skip=("bn",), leftover="keep", repair=True).changed


def test_a_repaired_output_that_is_a_sequence_stays_one() -> None:
    text = TEXT.replace("(float[2,4,6,6] y)", "(seq(float[2,4,6,6]) y)").replace("Relu (n)", "SequenceConstruct (n)")
    constants = {"w": random(4, 3, 3, 3), **batch_norm(4)}
    model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
    model.graph.output[0].ClearField("type")
    repaired = bnfold.fold(model, repair=True).model
    assert repaired.graph.output[0].type.WhichOneof("value") == "sequence_type"
    np.testing.assert_allclose(run(repaired), run(model), rtol=1e-5, atol=1e-5)


def test_a_repair_alone_is_a_change() -> None:
    model = network()
    unsorted(model)
    result = bnfold.fold(model, skip=("bn",), leftover="keep", repair=True)
    assert result.changed
    assert [node.name for node in result.model.graph.node] == ["conv", "bn", "act"]


@pytest.mark.parametrize("odd", ODDITIES)
def test_a_verification_reads_them_too(odd: Odd) -> None:
    model = network()
    odd(model)
    shapes = {"x": InputSpec((2, 3, 8, 8))}
    report = bnfold.verify(model, bnfold.fold(model).model, device="cpu", shapes=shapes)
    assert (report.verdict, report.sites[0].verdict) == ("pass", "pass")


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("skip", [(), ("bn",)], ids=["folded", "kept"])
def test_statistics_without_names_do_not_end_the_process(skip: tuple[str, ...], as_file: bool, tmp_path: Path) -> None:
    """With its optimisations onnxruntime runs such a model, and without them it crashes where it computes them."""
    constants = {name: array.astype(np.float32) for name, array in {"w": random(4, 3, 3, 3), **batch_norm(4)}.items()}
    model = parse(TEXT, opset=9, ir_version=8, **constants)
    model.graph.node[1].output.extend([""] * 4)
    folded = bnfold.fold(model, skip=skip).model
    assert len(folded.graph.node) == 2 + len(skip)
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for proto, path in zip((model, folded), paths, strict=True):
        onnx.save(proto, path)
    original, result = paths if as_file else (model, folded)
    assert bnfold.verify(original, result, device="cpu").verdict == "pass"


def test_sizes_of_one_name_need_not_be_equal() -> None:
    model = network()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "size"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    folded = bnfold.fold(model).model
    report = bnfold.verify(model, folded, device="cpu", shapes={"x": InputSpec((2, 3, 5, 9))})
    assert report.verdict == "pass"
    assert report.config is not None
    assert report.config.inputs_note == "'size' stands for 5 and 9"
    assert "'size' stands for 5 and 9" in report.summary_line()


def test_a_size_of_one_name_is_no_proof_of_another() -> None:
    """Rows and columns have one name and other sizes: the channels of the Reshape are not those of the Conv."""
    text = """
    agraph (float[1,3,s,s] x) => (float[1,s,4,s] y)
    {
      c = Conv (x, w)
      t = Transpose <perm = [0, 2, 1, 3]> (c)
      full = Shape (x)
      four = Constant <value = int64[1] {4}> ()
      one = Constant <value = int64[1] {1}> ()
      height = Slice (full, two, three)
      width = Slice (full, three, end)
      target = Concat <axis = 0> (one, width, four, height)
      r = Reshape (t, target)
      y = Mul (r, m)
    }
    """
    constants = {"w": random(4, 3, 1, 1), "m": random(1, 1, 4, 1)}
    model = parse(
        text,
        **{name: array.astype(np.float32) for name, array in constants.items()},
        **{name: np.array([number]) for name, number in (("two", 2), ("three", 3), ("end", 4))},
    )
    result = bnfold.fold(model)
    assert not result.plan.folds
    assert not result.changed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda g: g.node[0].input.__setitem__(0, "n"), "'c', a result of Conv 'conv', needs itself"),
        (lambda g: g.node[2].input.__setitem__(0, "nobody"), "Relu 'act' reads 'nobody', which nothing gives"),
        (lambda g: g.output[0].__setattr__("name", "nobody"), "nothing gives its output 'nobody'"),
        (lambda g: g.node[2].output.__setitem__(0, "n"), "the value 'n' is defined twice"),
        (lambda g: g.input.append(g.input[0]), "the value 'x' is defined twice"),
        (lambda g: g.node[0].input.extend(["w", "w"]), "Conv 'conv' has 4 inputs"),
        (lambda g: g.node[0].input.pop(), "Conv 'conv' has 1 inputs"),
        (lambda g: g.node[0].attribute.add(name="group", i=1), "the attribute 'group' of Conv 'conv' has no type"),
        (
            lambda g: g.node[0].attribute.append(helper.make_attribute("group", 1.5)),
            "'group' of Conv 'conv' is of another",
        ),
        (lambda g: g.node[0].attribute.extend([helper.make_attribute("group", 1)] * 2), "an attribute 'group' twice"),
        (lambda g: g.node[2].__setattr__("op_type", "Cast"), "Cast 'act' lacks its attribute 'to'"),
        (lambda g: g.initializer.append(other_weight()), "two initializers called 'w' with different values"),
        (lambda g: g.initializer[1].dims.__setitem__(0, 5), "the tensor 'bn_g' of shape [5] needs 20 bytes"),
        (lambda g: g.initializer[1].ClearField("raw_data"), "the tensor 'bn_g' needs 4 numbers and has 0"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(damage: Callable[[onnx.GraphProto], None], said: str) -> None:
    model = network()
    damage(model.graph)
    with pytest.raises(bnfold.ModelLoadError, match=re.escape(said)):
        bnfold.inspect(model)


def other_weight() -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")


def test_an_operator_that_nobody_knows_is_left_alone() -> None:
    """TensorRT's plugins stand in the default domain: onnxruntime does not load them."""
    model = network()
    model.graph.node[2].op_type = "BatchedNMSDynamic_TRT"
    assert bnfold.inspect(model).batch_norms_folded == 1
    with pytest.raises(bnfold.VerificationError) as caught:
        bnfold.verify(model, bnfold.fold(model).model, device="cpu")
    assert "--no-verify" in caught.value.hint


def test_an_operator_with_an_attribute_of_another_kind_is_left_alone() -> None:
    model = network()
    model.graph.node[0].attribute.append(helper.make_attribute("fused_activation", "Relu"))
    (left,) = bnfold.fold(model, leftover="keep").plan.left
    assert "'fused_activation' is no attribute of Conv" in left.reason or left.code == "no_rule"


def test_a_bn_with_an_attribute_of_another_kind_stays() -> None:
    model = network()
    model.graph.node[1].attribute.append(helper.make_attribute("activation", "Relu"))
    (left,) = bnfold.fold(model).plan.left
    assert left.reason == "'activation' is no attribute of BatchNormalization in opset 17"


def test_a_sparse_weight_is_left_with_that_reason() -> None:
    model = network()
    weight = model.graph.initializer[0]
    values = numpy_helper.from_array(np.ones(5, np.float32), "w")
    indices = numpy_helper.from_array(np.arange(0, 50, 10), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [*weight.dims]))
    del model.graph.initializer[0]
    result = bnfold.fold(model)
    assert "the weight 'w' of Conv 'conv' is a sparse initializer" in result.plan.left[0].reason
    np.testing.assert_allclose(run(result.model), run(model), rtol=1e-5, atol=1e-5)
    report = bnfold.verify(model, result.model, device="cpu")
    assert (report.verdict, report.sites[0].verdict) == ("pass", "pass")


NORM = "BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)"


def left_behind_sparse(body: str) -> str:
    """The reason that a BN stays in a graph with a sparse initializer s."""
    floats = {"w": random(4, 4, 1, 1), "k": random(1, 4, 1, 1), **batch_norm(4)}
    arrays = {name: array.astype(np.float32) for name, array in floats.items() if name in body}
    if "shape" in body:
        arrays["shape"] = np.array([4, 4, 1, 1])
    model = parse(f"agraph (float[2,4,6,6] x) => (float[2,4,6,6] y) {{ {body} }}", **arrays)
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    indices = numpy_helper.from_array(np.array([0, 3]), "s_indices")
    sizes = [16] if "shape" in body else [4, 1, 1] if "Mul" in body else [4]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, sizes))
    (left,) = bnfold.fold(model).plan.left
    return left.reason


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"c = Conv (x, w) g = Neg (s) y = {NORM.replace('bn_g', 'g')}", "its scale 'g' comes from a sparse tensor"),
        (f"c = Conv (x, w) y = {NORM.replace('bn_g', 's')}", "its scale 's' is a sparse initializer"),
        (f"q = Reshape (s, shape) [f] c = Conv (x, q) y = {NORM}", "weight 'q' of Conv 'f' comes from a sparse tensor"),
        (f"b = Neg (s) [f] c = Conv (x, w, b) y = {NORM}", "the bias 'b' of Conv 'f' comes from a sparse tensor"),
        (f"[f] c = Conv (x, w, s) y = {NORM}", "the bias 's' of Conv 'f' is a sparse initializer"),
        (f"[f] c = Mul (x, s) y = {NORM}", "'s', which Mul 'f' reads, is a sparse initializer"),
        (f"q = Abs (s) [f] c = Mul (x, q) y = {NORM}", "'q', which Mul 'f' reads, comes from a sparse tensor"),
    ],
)
def test_what_comes_from_a_sparse_tensor_is_left_with_that_reason(body: str, words: str) -> None:
    assert f"{words}, which a fold would make dense" in left_behind_sparse(body)


def test_a_layer_of_constants_is_left_with_that_reason() -> None:
    reason = left_behind_sparse(f"[f] c = Conv (k, w) n = {NORM} y = Add (x, n)")
    assert "all inputs of Conv 'f' are constants, and no fold goes into such a node" in reason


def test_a_value_inside_a_branch_may_be_called_as_one_outside() -> None:
    """The value outside is renamed, as its BN goes forward; the one of that name inside stays what it is."""
    text = """
    agraph (float[2,3,8,8] x, bool p) => (float[2,4,6,6] y)
    {
      i = If (p) <then_branch = t () => (float[2,3,8,8] r) { r = Relu (x) },
                  else_branch = e () => (float[2,3,8,8] r) { r = Abs (x) }>
      n = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      r = Transpose <perm = [0, 1, 3, 2]> (n)
      c = Conv (r, w)
      j = Conv (i, w)
      y = Add (c, j)
    }
    """
    constants = {"w": random(4, 3, 3, 3), **batch_norm(3)}
    model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_folded == 1
    for way in (True, False):
        before, after = (run(proto, p=np.array(way)) for proto in (model, folded.model))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_pipeline_keeps_a_model_that_cannot_be_understood() -> None:
    model = onnx_ir.from_proto(network())
    model.graph[0].attributes["group"] = onnx_ir.AttrFloat32("group", 1.5)
    with pytest.warns(UserWarning, match="'group' of Conv 'conv' is of another type"):
        result = FoldBatchNormPass()(model)
    assert not result.modified
    assert [node.op_type for node in result.model.graph] == ["Conv", "BatchNormalization", "Relu"]
