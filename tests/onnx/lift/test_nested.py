"""Graphs inside graphs: the branches of If, the bodies of Loop and Scan."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_fold import add_initializers, batch_norm, fold, parse, random, random_feeds, run_unoptimised

import bnfold

BRANCHES = """
agraph (double[2,3,6,6] x, bool p) => (double[2,4,4,4] y)
{
  [if] y = If (p) <
    then_branch = t () => (double[2,4,4,4] y1)
      { [conv1] c1 = Conv (x, w)
        [bn1] y1 = BatchNormalization (c1, bn_g, bn_b, bn_m, bn_v) },
    else_branch = e () => (double[2,4,4,4] y2)
      { [conv2] c2 = Conv (x, u)
        [bn2] y2 = BatchNormalization (c2, bn_g, bn_b, bn_m, bn_v) }>
}
"""


def both_ways(model: onnx.ModelProto) -> list[str]:
    """Folds and compares in both branches; gives the codes of what stays."""
    feeds = random_feeds(model)
    codes = []
    for way in (True, False):
        codes = fold(model, feeds={**feeds, "p": np.array(way)}, leftover="keep").codes
    return codes


def test_both_branches_fold_with_weights_from_outside() -> None:
    assert both_ways(parse(BRANCHES, w=random(4, 3, 3, 3), u=random(4, 3, 3, 3, seed=3), **batch_norm(4))) == []


def test_branches_that_share_a_weight() -> None:
    assert both_ways(parse(BRANCHES.replace("(x, u)", "(x, w)"), w=random(4, 3, 3, 3), **batch_norm(4))) == []


def test_weights_inside_a_branch() -> None:
    model = parse(BRANCHES, u=random(4, 3, 3, 3), **batch_norm(4))
    then = model.graph.node[0].attribute[0].g
    add_initializers(then, {"w": random(4, 3, 3, 3)})
    assert both_ways(model) == []


def test_bn_parameters_inside_a_branch() -> None:
    model = parse(BRANCHES, w=random(4, 3, 3, 3), u=random(4, 3, 3, 3), **batch_norm(4, "other"), **batch_norm(4))
    then = model.graph.node[0].attribute[0].g
    for index in range(1, 5):
        then.node[1].input[index] = then.node[1].input[index].replace("bn", "inner")
    add_initializers(then, batch_norm(4, "inner"))
    assert both_ways(model) == []


@pytest.mark.parametrize("other_reads", ["w", "u"])
@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("way", [True, False])
def test_an_initializer_of_a_branch_by_the_name_of_a_value_around_it(
    other_reads: str, computed: bool, way: bool
) -> None:
    """onnxruntime lets the value from outside prevail, but only where the other branch reads it."""
    constants = {"w": random(4, 3, 3, 3), "u": random(4, 3, 3, 3, seed=3), **batch_norm(4)}
    if computed:
        constants["v"] = constants.pop("w")
    text = BRANCHES.replace("double", "float").replace("(x, u)", f"(x, {other_reads})")
    text = text.replace("[if]", "w = Sigmoid (v) [if]" if computed else "[if]")
    model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
    add_initializers(model.graph.node[-1].attribute[0].g, {"w": random(4, 3, 3, 3, seed=8).astype(np.float32)})
    feeds = {**random_feeds(model), "p": np.array(way)}
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    before, after = run_unoptimised(model, feeds), run_unoptimised(folded.model, feeds)
    np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5 * np.abs(before).max())


@pytest.mark.parametrize("in_both", [True, False])
@pytest.mark.parametrize("kind", ["initializer", "constant"])
def test_siblings_with_the_same_value_names(kind: str, in_both: bool) -> None:
    text = BRANCHES.replace("c2", "c1").replace("y2", "y1").replace("(x, u)", "(x, w)")
    if not in_both:
        text = text.replace("[bn2] y1 = BatchNormalization (c1, bn_g, bn_b, bn_m, bn_v)", "y1 = Neg (c1)")
    model = parse(text, **batch_norm(4))
    for place, attribute in enumerate(model.graph.node[0].attribute):
        weight = random(4, 3, 3, 3, seed=place)
        if kind == "initializer":
            add_initializers(attribute.g, {"w": weight})
        else:
            node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
            attribute.g.node.insert(0, node)
    assert both_ways(model) == []


@pytest.mark.parametrize("attempt", range(8))
def test_graphs_at_several_depths_fold_in_one_go(attempt: int) -> None:
    """Whatever order scopes are visited in, an edit of an inner graph must not be lost with its outer one."""
    text = """
    agraph (double[2,3,6,6] x, bool p) => (double[2,4,4,4] y)
    {
      [conv] c = Conv (x, w)
      [bn] d = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      [if] y = If (p) <
        then_branch = t () => (double[2,4,4,4] y1)
          { [conv1] c1 = Conv (d, w1)
            [bn1] d1 = BatchNormalization (c1, bn_g, bn_b, bn_m, bn_v)
            [inner] y1 = If (p) <
              then_branch = tt () => (double[2,4,4,4] y11)
                { [conv11] c11 = Conv (d1, w1)
                  [bn11] y11 = BatchNormalization (c11, bn_g, bn_b, bn_m, bn_v) },
              else_branch = ee () => (double[2,4,4,4] y12)
                { [conv12] c12 = Conv (d1, w1)
                  [bn12] y12 = BatchNormalization (c12, bn_g, bn_b, bn_m, bn_v) }> },
        else_branch = e () => (double[2,4,4,4] y2)
          { [conv2] c2 = Conv (d, w1)
            [bn2] y2 = BatchNormalization (c2, bn_g, bn_b, bn_m, bn_v) }>
    }
    """
    ballast = [object() for _ in range(attempt * 1000)]
    model = parse(text, w=random(4, 3, 3, 3), w1=random(4, 4, 1, 1), **batch_norm(4))
    assert both_ways(model) == []
    assert fold(model).count("BatchNormalization") == 0
    assert len(ballast) == attempt * 1000


@pytest.mark.parametrize("leftover", ["conv", "mul-add"])
def test_leftovers_at_several_depths(leftover: str) -> None:
    text = """
    agraph (float[2,4,4,4] x, bool p) => (float[2,4,4,4] y)
    {
      r = Relu (x)
      d = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
      e = Relu (d)
      y = If (p) <
        then_branch = t () => (float[2,4,4,4] y1)
          { d1 = BatchNormalization (e, bn_g, bn_b, bn_m, bn_v)
            y1 = Relu (d1) },
        else_branch = e () => (float[2,4,4,4] y2) { y2 = Neg (d) }>
    }
    """
    for _ in range(6):
        folded = fold(parse(text, **batch_norm(4, dtype=np.float32)), compare=False, leftover=leftover)
        assert folded.count("BatchNormalization") == 0


def test_a_value_that_a_branch_reads_does_not_change() -> None:
    text = """
    agraph (double[2,3,4,4] x, bool p) => (double[2,4,4,4] y, double[2,4,4,4] z)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      z = If (p) <then_branch = t () => (double[2,4,4,4] z1) { z1 = Neg (c) },
                  else_branch = e () => (double[2,4,4,4] z2) { z2 = Relu (y) }>
    }
    """
    assert both_ways(parse(text, w=random(4, 3, 1, 1), **batch_norm(4))) == ["captured"]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("reader", ["Shape (c)", "Size (c)", "CastLike (one, c)"])
@pytest.mark.parametrize("static", [True, False])
def test_a_branch_that_reads_only_a_shape_or_a_type(static: bool, reader: str, depth: int) -> None:
    """Whether or not bnfold knows its result beforehand, the name that it reads must still be there."""
    kind, rank = {"Shape (c)": ("int64", "4"), "Size (c)": ("int64", ""), "CastLike (one, c)": ("double", "1")}[reader]
    kind = f"{kind}[{rank}]" if rank else kind
    batch = "2" if static else "N"
    node = f"z1 = {reader}"
    if depth == 2:
        then, other = (f"{name} () => ({kind} {name}z) {{ {name}z = {reader} }}" for name in ("tt", "te"))
        node = f"z1 = If (p) <then_branch = {then}, else_branch = {other}>"
    text = f"""
    agraph (double[{batch},3,4,4] x, bool p) => (double[{batch},4,4,4] y, {kind} z)
    {{
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      z = If (p) <then_branch = t () => ({kind} z1) {{ {node} }},
                  else_branch = e () => ({kind} z2) {{ z2 = {reader} }}>
    }}
    """
    constants = {"one": np.ones(1, np.float32)} if "one" in reader else {}
    model = parse(text, w=random(4, 3, 1, 1), **constants, **batch_norm(4))
    assert both_ways(model) in ([], ["captured"])


def test_a_branch_that_reads_the_shape_of_a_bn_that_goes_forward() -> None:
    text = """
    agraph (double[2,3,4,4] x, bool p) => (double[2,4,4,4] y, int64[4] z)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = Conv (b, w)
      z = If (p) <then_branch = t () => (int64[4] z1) { z1 = Shape (b) },
                  else_branch = e () => (int64[4] z2) { z2 = Shape (y) }>
    }
    """
    assert both_ways(parse(text, w=random(4, 3, 1, 1), **batch_norm(3))) in ([], ["captured"], ["model_input"])


def test_a_branch_whose_output_is_a_value_of_the_graph_around_it() -> None:
    text = """
    agraph (double[2,3,4,4] x, bool p) => (double[2,4,4,4] y, double[2,4,4,4] z)
    {
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      z = If (p) <then_branch = t () => (double[2,4,4,4] c) { },
                  else_branch = e () => (double[2,4,4,4] z2) { z2 = Relu (y) }>
    }
    """
    model = parse(text, w=random(4, 3, 1, 1), **batch_norm(4))
    (left,) = bnfold.fold(model).plan.left
    assert left.code == "captured"


def test_a_conv_outside_and_its_bn_inside() -> None:
    text = """
    agraph (double[2,3,4,4] x, bool p) => (double[2,4,4,4] y)
    {
      c = Conv (x, w)
      y = If (p) <then_branch = t () => (double[2,4,4,4] y1) { y1 = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) },
                  else_branch = e () => (double[2,4,4,4] y2) { y2 = Relu (c) }>
    }
    """
    assert both_ways(parse(text, w=random(4, 3, 1, 1), **batch_norm(4))) == ["captured"]


def test_a_bn_outside_and_its_conv_inside() -> None:
    text = """
    agraph (double[2,4,4,4] x, bool p) => (double[2,4,4,4] y)
    {
      b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)
      y = If (p) <then_branch = t () => (double[2,4,4,4] y1) { y1 = Conv (b, w) },
                  else_branch = e () => (double[2,4,4,4] y2) { y2 = Conv (b, w) }>
    }
    """
    assert both_ways(parse(text, w=random(4, 4, 1, 1), **batch_norm(4))) in (["captured"], ["model_input"])


LOOP = """
agraph (double[2,4,4,4] x) => (double[2,4,4,4] y, double[K,2,4,4,4] scans) <int64 trips = {3}, bool go = {1}>
{
  [loop] y, scans = Loop (trips, go, x) <
    body = b (int64 i, bool g, double[2,4,4,4] s) => (bool h, double[2,4,4,4] t, double[2,4,4,4] scan)
    {
      h = Identity (g)
      [conv] c = Conv (s, w)
      [bn] d = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      t = Tanh (d)
      scan = Neg (t)
    }>
}
"""


def test_the_body_of_a_loop_with_weights_from_outside() -> None:
    folded = fold(parse(LOOP, w=random(4, 4, 1, 1), **batch_norm(4)))
    assert (folded.codes, folded.count("BatchNormalization")) == ([], 0)


def test_a_weight_that_a_loop_carries_is_not_constant() -> None:
    text = LOOP.replace("double[2,4,4,4] s)", "double[2,4,4,4] s, double[4,4,1,1] v)").replace("(s, w)", "(s, v)")
    text = text.replace("=> (bool h, double[2,4,4,4] t,", "=> (bool h, double[2,4,4,4] t, double[4,4,1,1] u,")
    text = text.replace("h = Identity (g)", "h = Identity (g)\n u = Neg (v)").replace("go, x)", "go, x, w)")
    text = text.replace("y, scans = Loop", "y, last, scans = Loop")
    assert fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)), leftover="keep").codes == ["weight_not_constant"]


def test_the_output_of_a_body_is_seen_from_outside() -> None:
    text = LOOP.replace("t = Tanh (d)", "t = Tanh (c)").replace("scan = Neg (t)", "scan = Identity (d)")
    assert fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)), leftover="keep").codes == ["other_consumers"]


def test_a_bn_that_is_the_output_of_a_body() -> None:
    text = LOOP.replace("t = Tanh (d)", "").replace("] d = Batch", "] t = Batch")
    assert fold(parse(text, w=random(4, 4, 1, 1) / 4, **batch_norm(4))).codes == []


def test_the_body_of_a_scan() -> None:
    text = """
    agraph (double[5,2,3,4,4] x) => (double[5,2,4,4,4] y)
    {
      y = Scan <num_scan_inputs=1, body = b (double[2,3,4,4] s) => (double[2,4,4,4] t)
        {
          [conv] c = Conv (s, w)
          [bn] t = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
        }> (x)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert (folded.codes, folded.plan.folds[0].nodes) == ([], ("Scan(y).body/bn",))


def test_a_weight_computed_outside_is_a_constant_inside() -> None:
    text = LOOP.replace("[loop]", "w = Reshape (k, s4)\n [loop]")
    model = parse(text, k=random(16), s4=np.array([4, 4, 1, 1]), **batch_norm(4))
    folded = fold(model)
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["Loop"]


def test_an_input_of_the_model_that_has_a_default_is_overridable_inside() -> None:
    model = parse(LOOP.replace("4,4] x)", "4,4] x, double[4,4,1,1] w)", 1), w=random(4, 4, 1, 1), **batch_norm(4))
    assert fold(model, leftover="keep").codes == ["overridable"]


def test_a_matmul_in_a_body_gains_its_add_there() -> None:
    text = """
    agraph (double[3,5] x, bool p) => (double[3,4] y)
    {
      y = If (p) <then_branch = t () => (double[3,4] y1)
                    { c = MatMul (x, w) y1 = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) },
                  else_branch = e () => (double[3,4] y2) { y2 = MatMul (x, w) }>
    }
    """
    assert both_ways(parse(text, w=random(5, 4), **batch_norm(4))) == []


def test_ir_version_3() -> None:
    """Every initializer is an input of the main graph, also those that a branch needs."""
    model = parse(BRANCHES, opset=8, ir_version=3, w=random(4, 3, 3, 3), u=random(4, 3, 3, 3), **batch_norm(4))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert both_ways(model) == []


BETWEEN = """
agraph (double[2,4,6,6] x, bool p) => (double[2,4,6,6] y, int64[4] s)
{
  BEFORE
  c = Conv (x, w)
  BEHIND
  [bn] y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
}
"""
BRANCH = (
    "s = If (p) <then_branch = t () => (int64[4] NAME) { INSIDE },"
    " else_branch = e () => (int64[4] s2) { s2 = Shape (x) }>"
)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("y", "y = Shape (x)"),
        ("s1", "y = Relu (x) s1 = Shape (y)"),
        ("s1", "y = Relu (x) READ s1 = Add (a, b)"),
        (
            "s1",
            "q = Relu (x) s1 = If (p) <then_branch = t2 () => (int64[4] y) { y = Shape (q) },"
            " else_branch = e2 () => (int64[4] s4) { s4 = Shape (x) }>",
        ),
        ("c", "c = Shape (x)"),
        ("s1", "c = Relu (x) s1 = Shape (c)"),
    ],
)
def test_a_nested_graph_has_a_value_of_its_own_by_a_name_that_comes_later(before: bool, name: str, inside: str) -> None:
    """The conv takes the name y over from its BN; before it, or between them, a nested graph has a y of its own.

    It may read the shape of the outer c beside that, which is called y then.
    """
    if not before and (name == "c" or "c =" in inside):
        pytest.skip("this c would hide the other")
    inside = inside.replace("READ", "a = Shape (y) b = Shape (x)" if before else "a = Shape (c) b = Shape (y)")
    branch = BRANCH.replace("NAME", name).replace("INSIDE", inside)
    text = BETWEEN.replace("BEFORE", branch if before else "").replace("BEHIND", "" if before else branch)
    model = parse(text, w=random(4, 4, 1, 1), **batch_norm(4))
    add_initializers(model.graph.node[0 if before else 1].attribute[0].g, {"unread": random(1)})
    assert both_ways(model) == []


def test_what_is_known_of_an_outer_value_is_not_known_of_an_inner_one_of_its_name() -> None:
    """Inside, q has as many channels as x; the outer q, which comes later, has others."""
    text = """
    agraph (double[2,4,6,6] x, bool p) => (double[2,4,6,6] z, double[2,6,6,4] y)
    {
      z = If (p) <
        then_branch = t () => (double[2,4,6,6] z1)
          { q = Identity (x) c = Conv (q, w) z1 = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v) },
        else_branch = e () => (double[2,4,6,6] z2) { z2 = Relu (x) }>
      q = Transpose <perm = [0, 2, 3, 1]> (x)
      y = Relu (q)
    }
    """
    assert both_ways(parse(text, w=random(4, 4, 1, 1), **batch_norm(4))) == []


def test_a_value_of_the_same_name_in_two_branches_is_not_one() -> None:
    """In one branch b is merged away, so that what is declared of its sum goes; in the other it stays."""
    sum_ = "a = Conv <pads = [1, 1, 1, 1]> (x, w3) t = Add (x, z) b = Add (t, a)"
    text = f"""
    agraph (double[2,4,6,6] x, double[1,4,1,1] z, bool p) => (double[2,4,6,6] y)
    {{
      y = If (p) <
        then_branch = t () => (double[2,4,6,6] y1) {{ {sum_} y1 = Relu (b) }},
        else_branch = e () => (double[2,4,6,6] y2) {{ t = Conv (x, w1)
          n = BatchNormalization (t, bn_g, bn_b, bn_m, bn_v) y2 = Relu (n) }}>
    }}
    """
    model = parse(text, w3=random(4, 4, 3, 3), w1=random(4, 4, 1, 1), **batch_norm(4))
    for given in model.graph.node[0].attribute:
        declared = helper.make_tensor_value_info("t", onnx.TensorProto.DOUBLE, [2, 4, 6, 6])
        given.g.value_info.append(declared)
    feeds = random_feeds(model)
    for way in (True, False):
        folded = fold(model, feeds={**feeds, "p": np.array(way)}, merge=True)
        declared = [{item.name for item in given.g.value_info} for given in folded.model.graph.node[0].attribute]
        assert declared == [set(), {"n"}]
