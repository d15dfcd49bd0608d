"""What a fold leaves alone: shared constants, other readers, names, declarations."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_fold import as_bytes, batch_norm, fold, parse, pure_scale, random, scale_and_shift

import bnfold

CHAIN = """
agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
{
  [conv] c = Conv (x, w)
  [bn] b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
  [relu] y = Relu (b)
}
"""


def chain(**options: object) -> onnx.ModelProto:
    return parse(CHAIN, **{"w": random(4, 3, 1, 1), **batch_norm(4), **options})


def initializers(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_the_conv_takes_over_the_name_of_the_bns_output() -> None:
    folded = fold(chain())
    assert [(node.name, *node.output) for node in folded.model.graph.node] == [("conv", "b"), ("relu", "y")]
    assert initializers(folded.model) == {"w_folded", "conv_bias"}


def test_two_convs_with_one_weight_get_weights_of_their_own() -> None:
    text = """
    agraph (double[N,3,4,4] x, double[N,3,4,4] z) => (double[N,4,4,4] y, double[N,4,4,4] u)
    {
      [one] c = Conv (x, w, bias)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      [two] d = Conv (z, w, bias)
      u = BatchNormalization (d, other_g, other_b, other_m, other_v)
    }
    """
    constants = {"w": random(4, 3, 1, 1), "bias": random(4)}
    folded = fold(parse(text, **constants, **batch_norm(4), **batch_norm(4, "other")))
    assert folded.codes == []
    for node, prefix in (("one", "bn"), ("two", "other")):
        scale, _ = scale_and_shift(batch_norm(4, prefix), prefix)
        expected = constants["w"] * scale.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(folded.constant(node, 1), expected, rtol=1e-11)
    assert len(initializers(folded.model)) == 4


@pytest.mark.parametrize("reader", ["u = Conv (x, w)", "u = Neg (w)", "u = Identity (w)"])
def test_a_weight_that_others_read_stays(reader: str) -> None:
    model = chain()
    text = CHAIN.replace("y = Relu (b)", f"y = Relu (b)\n  [other] {reader}")
    shape = "N,4,4,4" if "Conv" in reader else "4,3,1,1"
    model = parse(text.replace("4] y)", f"4] y, double[{shape}] u)"), w=random(4, 3, 1, 1), **batch_norm(4))
    folded = fold(model)
    assert folded.codes == []
    assert "w" in initializers(folded.model)
    assert "w" in folded.node("other").input


def test_a_weight_that_is_an_output_stays() -> None:
    model = chain()
    model.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.DOUBLE, [4, 3, 1, 1]))
    folded = fold(model)
    assert (folded.codes, "w" in initializers(folded.model)) == ([], True)


def test_what_nothing_ever_read_stays() -> None:
    folded = fold(chain(never_read=random(3), large_and_never_read=random(40, 40)))
    assert {"never_read", "large_and_never_read"} <= initializers(folded.model)


@pytest.mark.parametrize(
    ("more", "outputs", "code"),
    [
        ("", ", double[N,4,4,4] c", "model_output"),
        ("u = Tanh (c)", ", double[N,4,4,4] u", "other_consumers"),
        ("u = Add (c, b)", ", double[N,4,4,4] u", "other_consumers"),
    ],
)
def test_a_conv_that_others_read_keeps_its_bn(more: str, outputs: str, code: str) -> None:
    text = CHAIN.replace("y = Relu (b)", f"y = Relu (b)\n  {more}").replace("4] y)", f"4] y{outputs})")
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(4))
    kept = fold(model, leftover="keep")
    assert kept.codes == [code]
    assert as_bytes(kept.model) == as_bytes(model)
    assert fold(model).count("BatchNormalization") == 0


def test_two_bns_on_one_conv_stay() -> None:
    text = CHAIN.replace("y = Relu (b)", "y = BatchNormalization (c, o_g, o_b, o_m, o_v)").replace(
        "4] y)", "4] y, double[N,4,4,4] b)"
    )
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(4), **batch_norm(4, "o"))
    assert fold(model, leftover="keep").codes == ["other_consumers"] * 2


def test_a_bn_whose_output_is_an_output_folds_backward_only() -> None:
    text = CHAIN.replace("4] y)", "4] y, double[N,4,4,4] b)")
    assert fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4))).codes == []
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[N,3,4,4] b)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = Conv (b, w)
    }
    """
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(3))
    assert fold(model, leftover="keep").codes in (["model_output"], ["model_input"])


def test_a_bn_that_nothing_reads() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,3,4,4] y)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = Relu (x)
    }
    """
    folded = fold(parse(text, **batch_norm(3)), leftover="keep")
    assert folded.codes in (["unused"], ["model_input"])


@pytest.mark.parametrize("outputs", [0, 1])
def test_a_node_of_an_unknown_domain_is_a_reader(outputs: int) -> None:
    """A custom operator may have side effects, even one without outputs: what it reads must stay what it was."""
    header = '<ir_version: 10, opset_import: ["" : 17, "my" : 1]>'
    model = parse(header + CHAIN, w=random(4, 3, 1, 1), **batch_norm(4))
    model.graph.node.append(helper.make_node("Print", ["c"], ["unread"][:outputs], name="print", domain="my"))
    folded = fold(model, compare=False, leftover="keep")
    assert folded.codes == ["other_consumers"]
    assert folded.node("print").input == ["c"]


def test_metadata_doc_strings_and_unknown_domains_survive() -> None:
    header = '<ir_version: 10, opset_import: ["" : 17, "my" : 1]>'
    text = CHAIN.replace("y = Relu (b)", 'y = my.Swish <beta=2, mode="fast"> (b)')
    model = parse(header + text, w=random(4, 3, 1, 1), **batch_norm(4))
    model.doc_string, model.graph.doc_string, model.producer_name = "a model", "a graph", "a tool"
    model.domain, model.model_version, model.producer_version = "org.example", 7, "3.2"
    model.metadata_props.add(key="author", value="nobody")
    model.graph.metadata_props.add(key="part", value="all")
    for node in model.graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="line", value=node.name)
    folded = fold(model, compare=False)
    assert [node.doc_string for node in folded.model.graph.node] == ["about conv", "about relu"]
    assert folded.model.metadata_props[0].value == "nobody"


def test_a_model_without_bn_is_unchanged() -> None:
    model = parse(
        "agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) { c = Conv (x, w)\n y = Relu (c) }",
        w=random(4, 3, 1, 1),
        spare=random(3),
    )
    assert as_bytes(fold(model).model) == as_bytes(model)


def test_skip_and_only() -> None:
    text = CHAIN.replace(
        "[relu] y = Relu (b)", "[two] d = Conv (b, u)\n [bn2] y = BatchNormalization (d, o_g, o_b, o_m, o_v)"
    )
    model = parse(text, w=random(4, 3, 1, 1), u=random(4, 4, 1, 1), **batch_norm(4), **batch_norm(4, "o"))
    for options in ({"skip": ("bn",)}, {"only": ("*2",)}):
        folded = fold(model, **options)
        assert folded.codes == ["skipped"]
        assert folded.node("bn").op_type == "BatchNormalization"
        assert {"bn_g", "bn_b", "bn_m", "bn_v"} <= initializers(folded.model)
    with pytest.raises(bnfold.UsageError, match="BN"):
        fold(model, skip=("BN",))


def test_values_that_are_declared_stay_declared_once() -> None:
    declarations = "<double[N,4,4,4] c, double[N,4,4,4] b>"
    folded = fold(parse(CHAIN.replace("\n{", f" {declarations}\n{{", 1), w=random(4, 3, 1, 1), **batch_norm(4)))
    assert [value.name for value in folded.model.graph.value_info] == ["b"]


def test_a_graph_output_is_not_declared_a_second_time() -> None:
    text = (
        CHAIN.replace("\n{", " <double[N,4,4,4] c>\n{", 1)
        .replace("[relu] y = Relu (b)", "")
        .replace(" b = Batch", " y = Batch")
    )
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert [value.name for value in folded.model.graph.value_info] == []


def test_a_graph_input_is_not_declared_a_second_time() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y) <double[N,3,4,4] b>
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = Conv (b, w)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(3)))
    assert [value.name for value in folded.model.graph.value_info] == []


def test_two_bns_in_a_row_leave_one_declaration() -> None:
    text = CHAIN.replace("\n{", " <double[N,4,4,4] c, double[N,4,4,4] b>\n{", 1).replace(
        "y = Relu (b)", "d = BatchNormalization (b, bn_g, bn_b, bn_m, bn_v)\n y = Relu (d)"
    )
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert [value.name for value in folded.model.graph.value_info] in (["d"], [])


def test_initializers_that_are_declared_as_values() -> None:
    model = chain()
    for tensor in model.graph.initializer:
        model.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    folded = fold(model)
    assert [value.name for value in folded.model.graph.value_info] == []


def test_quantization_annotations_of_what_is_gone_go_too() -> None:
    model = chain(scale=np.array(0.5))
    for name in ("c", "b", "w", "y"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    folded = fold(model)
    assert {item.tensor_name for item in folded.model.graph.quantization_annotation} == {"b", "y"}
    assert "scale" in initializers(folded.model)


def test_a_weight_larger_than_a_kilobyte_and_a_small_one() -> None:
    text = CHAIN.replace("y = Relu (b)", "d = Conv (b, large)\n y = BatchNormalization (d, o_g, o_b, o_m, o_v)")
    text = text.replace("N,4,4,4] y", "N,90,4,4] y")
    model = parse(text, w=random(4, 3, 1, 1), large=random(90, 4, 1, 1), **batch_norm(4), **batch_norm(90, "o"))
    assert fold(model).codes == []


def test_weights_in_typed_fields_and_in_raw_data() -> None:
    model = chain()
    typed = helper.make_tensor("w", onnx.TensorProto.DOUBLE, [4, 3, 1, 1], random(4, 3, 1, 1).reshape(-1).tolist())
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(typed)
    assert fold(model).codes == []


def test_float16_weights_in_the_typed_field() -> None:
    text = CHAIN.replace("double", "float16")
    parameters = batch_norm(4, dtype=np.float16)
    raw = parse(text, w=random(4, 3, 1, 1, dtype=np.float16), **parameters)
    typed = parse(text, w=random(4, 3, 1, 1, dtype=np.float16), **parameters)
    for tensor in typed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.reshape(-1).tolist()))
        assert not tensor.raw_data
    assert as_bytes(fold(typed, compare=False).model) == as_bytes(fold(raw, compare=False).model)


def test_a_scale_before_a_conv_leaves_its_bias_alone() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      [conv] y = Conv <pads=[1,1,1,1]> (b, w, bias)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 3, 3), bias=random(4), **pure_scale(3)))
    assert folded.codes == []
    np.testing.assert_array_equal(folded.constant("conv", 2), random(4))


def test_node_order_stays_topological_where_a_bias_is_added_late() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y, double[N,4] z)
    {
      [matmul] c = MatMul (x, w)
      z = Tanh (b)
      y = Identity (z)
    }
    """.replace("z = Tanh", "b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)\n z = Tanh")
    folded = fold(parse(text, w=random(5, 4), **batch_norm(4)))
    assert [node.op_type for node in folded.model.graph.node] == ["MatMul", "Add", "Tanh", "Identity"]


def test_the_same_call_gives_the_same_bytes() -> None:
    model = chain()
    assert len({as_bytes(bnfold.fold(model).model) for _ in range(5)}) == 1


def test_counts() -> None:
    folded = fold(chain())
    assert Counter(node.op_type for node in folded.model.graph.node) == {"Conv": 1, "Relu": 1}
    assert folded.plan.batch_norms == folded.plan.batch_norms_folded == 1
