"""Gemm, MatMul and MatMul+Add with the BatchNorms around them."""

import numpy as np
import onnx
import pytest
from onnx_fold import batch_norm, fold, parse, random, scale_and_shift

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"

GEMM_BN = """
agraph (double[A,B] x) => (double[3,4] y)
{
  [gemm] c = Gemm ATTRIBUTES (x, w BIAS)
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""


def gemm_bn(attributes: str, trans_a: int, trans_b: int, bias: np.ndarray | None) -> onnx.ModelProto:
    rows, columns = (5, 3) if trans_a else (3, 5)
    text = GEMM_BN.replace("A,B", f"{rows},{columns}").replace("BIAS", "" if bias is None else ", bias")
    given = [f"transA={trans_a}", f"transB={trans_b}", *filter(None, [attributes])]
    text = text.replace("ATTRIBUTES", f"<{', '.join(given)}>")
    constants = {"w": random(4, 5) if trans_b else random(5, 4)}
    if bias is not None:
        constants["bias"] = bias
    return parse(text, **constants, **batch_norm(4))


BIASES = {
    "absent": None,
    "scalar": np.array(0.7),
    "one": np.array([0.7]),
    "row": random(4, seed=3),
    "1xN": random(1, 4, seed=3),
    "column": random(3, 1, seed=3),
    "full": random(3, 4, seed=3),
}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("attributes", ["", "alpha=0.5, beta=2.5", "alpha=-1.5, beta=0.0"])
def test_gemm_in_all_its_forms(attributes: str, trans: tuple[int, int], bias: np.ndarray | None) -> None:
    folded = fold(gemm_bn(attributes, *trans, bias))
    assert (folded.count("BatchNormalization"), folded.count("Add")) == (0, 0)


def test_gemm_with_an_empty_bias_name_and_a_beta() -> None:
    model = gemm_bn("beta=3.0", 0, 0, None)
    model.graph.node[0].input.append("")
    folded = fold(model)
    np.testing.assert_allclose(folded.constant("gemm", 2), scale_and_shift(batch_norm(4))[1], rtol=1e-14)


@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
def test_gemm_takes_the_bn_before_it_unless_it_transposes(trans: tuple[int, int], bias: np.ndarray | None) -> None:
    trans_a, trans_b = trans
    # As many rows as columns, so that nothing but the axis itself tells them apart.
    last = "" if bias is None else ", bias"
    text = f"""
    agraph (double[3,3] x) => (double[3,4] y)
    {{
      [bn] b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      [gemm] y = Gemm <alpha=0.5, beta=2.0, transA={trans_a}, transB={trans_b}> (b, w {last})
    }}
    """
    constants = {"w": random(4, 3) if trans_b else random(3, 4), **batch_norm(3)}
    if bias is not None:
        constants["bias"] = bias
    folded = fold(parse(text, **constants), leftover="keep")
    assert folded.codes == (["channel_axis"] if trans_a else [])


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_gemm_of_old_opsets(opset: int) -> None:
    text = GEMM_BN.replace("A,B", "3,5").replace("ATTRIBUTES", "").replace("BIAS", ", bias")
    folded = fold(parse(text, opset=opset, w=random(5, 4), bias=random(4), **batch_norm(4)))
    assert folded.codes == []


def test_gemm_says_its_own_rank() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
    agraph (double[N,5] x) => (double[N,4] y)
    {
      u = my.Unknown (x)
      c = Gemm (u, w)
      b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      y = Relu (b)
    }
    """
    assert fold(parse(text, w=random(5, 4), **batch_norm(4)), compare=False).codes == []


MATMUL_BN = """
agraph (double[N,5] x) => (double[N,4] y)
{
  [matmul] c = MatMul (x, w)
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""


def test_matmul_gains_one_add_for_the_bn_that_goes() -> None:
    folded = fold(parse(MATMUL_BN, w=random(5, 4), **batch_norm(4)))
    assert (folded.count("BatchNormalization"), folded.count("Add")) == (0, 1)


@pytest.mark.parametrize("side", ["Add (c, bias)", "Add (bias, c)"])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (1, 1), ()])
def test_the_bias_of_a_matmul_is_an_add_in_either_order(shape: tuple[int, ...], side: str) -> None:
    text = MATMUL_BN.replace("[bn]", f"[add] d = {side}\n [bn]").replace("Normalization (c", "Normalization (d")
    folded = fold(parse(text, w=random(5, 4), bias=random(*shape), **batch_norm(4)))
    assert (folded.count("BatchNormalization"), folded.count("Add")) == (0, 1)
    assert folded.node("add").output == ["y"]


@pytest.mark.parametrize(
    ("shape", "codes"), [((3, 1), ["channel_axis", "no_rule"]), ((3, 4), []), ((1, 1, 4), ["no_rule"])]
)
def test_an_add_that_is_no_bias_is_none(shape: tuple[int, ...], codes: list[str]) -> None:
    """An Add that varies along the rows, or that adds a dimension, belongs to no output channel.

    One that varies along both takes the shift of the BN, and the scale passes it.
    """
    rank3 = len(shape) == 3
    text = f"""
    agraph (double[3,5] x) => (double[{"A,B,C" if rank3 else "3,4"}] y)
    {{
      c = MatMul (x, w)
      [add] d = Add (c, bias)
      [bn] y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    channels = 3 if rank3 else 4
    folded = fold(parse(text, w=random(5, 4), bias=random(*shape), **batch_norm(channels)), leftover="keep")
    assert folded.codes == codes


def test_a_product_that_others_read_keeps_its_add() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y, double[N,4] z)
    {
      c = MatMul (x, w)
      d = Add (c, bias)
      z = Relu (c)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(text, w=random(5, 4), bias=random(4), **batch_norm(4)), leftover="keep")
    assert folded.codes == ["other_consumers", "no_rule"]


def test_a_sum_of_the_product_with_itself_is_no_bias() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y)
    {
      c = MatMul (x, w)
      d = Add (c, c)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    assert fold(parse(text, w=random(5, 4), **batch_norm(4)), leftover="keep").codes == ["other_consumers"]


def test_a_product_gains_one_add_for_a_mul_and_an_add_that_go() -> None:
    """As Keras writes a batch norm behind a Dense without bias; a Mul alone, or an Add alone, would be no gain."""
    text = "agraph (double[2,3] x) => (double[2,4] y) { p = MatMul (x, w) m = Mul (p, s) a = Add (m, t) y = Relu (a) }"
    folded = fold(parse(text, w=random(3, 4), s=random(4), t=random(4, seed=2)))
    assert [node.op_type for node in folded.model.graph.node] == ["MatMul", "Add", "Relu"]
    text = "agraph (double[2,3] x) => (double[2,4] y) { r = Relu (x) a = Add (r, t) y = MatMul (a, w) }"
    folded = fold(parse(text, w=random(3, 4), t=random(3)))
    assert [left.code for left in folded.plan.left] == ["more_work"]


def test_one_bias_constant_for_two_products() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y, double[N,4] z)
    {
      c = MatMul (x, w)
      d = Add (c, bias)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
      e = MatMul (x, w)
      z = Add (e, bias)
    }
    """
    folded = fold(parse(text, w=random(5, 4), bias=random(4), **batch_norm(4)))
    assert folded.codes == []
    assert {"w", "bias"} <= {tensor.name for tensor in folded.model.graph.initializer}


@pytest.mark.parametrize("length", [4, 6])
def test_channels_of_a_sequence_are_not_those_of_its_bn(length: int) -> None:
    """BN normalises axis 1, a MatMul makes the last axis, even where both have the same size."""
    text = f"""
    agraph (double[N,{length},5] x) => (double[N,{length},4] y)
    {{
      c = MatMul (x, w)
      d = Add (c, bias)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    folded = fold(parse(text, w=random(5, 4), bias=random(4), **batch_norm(length)), leftover="keep")
    assert folded.codes == ["channel_axis"]


@pytest.mark.parametrize("bias", [None, (4, 1), (1, 4, 1), ()])
def test_a_constant_on_the_left_makes_axis_1_of_a_sequence(bias: tuple[int, ...] | None) -> None:
    add = "" if bias is None else "[add] d = Add (c, bias)"
    text = f"""
    agraph (double[N,5,4] x) => (double[N,4,4] y)
    {{
      c = MatMul (w, x)
      {add}
      y = BatchNormalization ({"c" if bias is None else "d"}, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    constants = {} if bias is None else {"bias": random(*bias)}
    folded = fold(parse(text, w=random(4, 5), **constants, **batch_norm(4)))
    assert (folded.codes, folded.count("Add")) == ([], 1)


def test_a_row_behind_a_constant_on_the_left_is_no_bias() -> None:
    text = """
    agraph (double[N,5,4] x) => (double[N,4,4] y)
    {
      c = MatMul (w, x)
      d = Add (c, bias)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, w=random(4, 5), bias=random(4), **batch_norm(4))
    assert fold(model, leftover="keep").codes == ["channel_axis", "no_rule"]


def test_a_product_of_four_dimensions() -> None:
    text = """
    agraph (double[N,4,6,5] x) => (double[N,4,6,4] y)
    {
      c = MatMul (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    assert fold(parse(text, w=random(5, 4), **batch_norm(4)), leftover="keep").codes == ["channel_axis"]


def test_a_weight_that_is_a_vector_is_left() -> None:
    text = f"""agraph (double[2,4,5] x) => (double[2,4] y) {{ c = MatMul (x, w) y = {NORM % "c"} }}"""
    assert fold(parse(text, w=random(5), **batch_norm(4)), leftover="keep").codes == ["no_rule"]


BATCHES = {
    "of all items": ([2, 4, 5], (2, 5, 3), "y = Transpose <perm=[0,2,1]> (c)", [2, 3, 4]),
    "one for all items": ([2, 4, 5], (1, 5, 3), "y = Transpose <perm=[0,2,1]> (c)", [2, 3, 4]),
    "of all channels": ([2, 3, 4, 5], (3, 5, 6), "y = Identity (c)", [2, 3, 4, 6]),
    "on the left": ([3, 5, 4], (2, 1, 6, 5), "y = Transpose <perm=[0,2,3,1]> (c)", [2, 6, 4, 3]),
    "of a vector": ([5], (2, 3, 5), "y = Identity (c)", [2, 3]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_matrices_takes_what_acts_along_one_of_its_axes(name: str) -> None:
    source, weight, between, result = BATCHES[name]
    operands = "w, x" if weight[-1] == 5 else "x, w"
    text = f"""agraph (double{source} x) => (double{result} z) {{
        c = MatMul ({operands}) {between} z = {NORM % "y"}
    }}"""
    folded = fold(parse(text, w=random(*weight), **batch_norm(result[1])), exactly=True)
    assert folded.codes == []
    assert folded.count("Add") == 1


def test_a_batch_of_matrices_stays_for_what_acts_on_the_other_operand() -> None:
    text = f"""agraph (double[2,4,5] x) => (double[2,4,4] y) {{ c = MatMul (x, w) y = {NORM % "c"} }}"""
    folded = fold(parse(text, w=random(2, 5, 4), **batch_norm(4)), leftover="keep")
    assert folded.codes == ["channel_axis"]


def test_a_vector_times_a_matrix_is_a_map_without_bn() -> None:
    text = """
    agraph (double[5] x, double[N,5] z) => (double[4] y, double[N,4] u)
    {
      c = MatMul (x, w)
      y = Add (c, bias)
      d = MatMul (z, w)
      u = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(text, w=random(5, 4), bias=random(4), **batch_norm(4)))
    assert folded.codes == []


def test_matmul_takes_the_bn_before_it() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = MatMul (b, w)
    }
    """
    folded = fold(parse(text, w=random(5, 4), **batch_norm(5)))
    assert (folded.codes, folded.count("Add")) == ([], 1)


def test_one_bn_is_not_worth_two_adds() -> None:
    """A bias-less MatMul may gain one Add for a BN that goes, not several: inference must not get slower."""
    text = """
    agraph (double[N,5] x) => (double[N,4] y, double[N,4] z)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = MatMul (b, w)
      z = MatMul (b, w)
    }
    """
    folded = fold(parse(text, w=random(5, 4), **batch_norm(5)), leftover="keep")
    assert folded.count("BatchNormalization") + folded.count("Add") == 1


def test_bns_on_both_sides_of_a_matmul_with_its_add() -> None:
    text = """
    agraph (double[N,5] x) => (double[N,4] y)
    {
      b = BatchNormalization (x, one_g, one_b, one_m, one_v)
      c = MatMul (b, w)
      d = Add (bias, c)
      y = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }
    """
    model = parse(text, w=random(5, 4), bias=random(4), **batch_norm(5, "one"), **batch_norm(4))
    folded = fold(model)
    assert (folded.codes, folded.count("Add")) == ([], 1)
