"""Affines that move only together: pieces that are normalised alike, loops that exporters unrolled."""

import pytest
from onnx_fold import Folded, batch_norm, fold, parse, random

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"
OTHER = "BatchNormalization (%s, other_g, other_b, other_m, other_v)"


def folded(
    body: str, *, source: str = "double[4,3,6,6] x", results: str = "double[4,4,6,6] y", **more: object
) -> Folded:
    text = f"agraph ({source}) => ({results}) {{ {body} }}"
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    constants = {
        "w": random(4, 3, 1, 1),
        "v": random(4, 4, 1, 1, seed=1),
        **batch_norm(4),
        **batch_norm(4, "other"),
        **{f"i{number}": [number] for number in range(7)},
    }
    return fold(parse(text, **{name: array for name, array in constants.items() if name in words}), merge=False, **more)


TOGETHER = {
    "ghost batch norm": f"""c = Conv (x, w) p, q = Split <axis=0> (c)
        a = {NORM % "p"} b = {NORM % "q"} z = Concat <axis=0> (a, b) y = Relu (z)""",
    "a loop over slices": f"""c = Conv (x, w)
        p = Slice (c, i0, i1, i0) q = Slice (c, i1, i4, i0) a = {NORM % "p"} b = {NORM % "q"}
        z = Concat <axis=0> (a, b) y = Relu (z)""",
    "a loop over rows, picked one by one": f"""c = Conv (x, w) e = Transpose <perm=[2,0,1,3]> (c)
        p0 = Slice (e, i0, i3, i0) p = Transpose <perm=[1,2,0,3]> (p0)
        q0 = Slice (e, i3, i4, i0) q = Transpose <perm=[1,2,0,3]> (q0)
        r0 = Slice (e, i4, i6, i0) r = Transpose <perm=[1,2,0,3]> (r0)
        a = {NORM % "p"} b = {NORM % "q"} d = {NORM % "r"} z = Concat <axis=2> (a, b, d) y = Relu (z)""",
    "of one value": f"c = Conv (x, w) a = {NORM % 'c'} b = {NORM % 'c'} s = Sigmoid (a) y = Mul (s, b)",
    "some elements are read by nobody": f"""c = Conv (x, w)
        p = Slice (c, i0, i1, i0) q = Slice (c, i0, i2, i0) a = {NORM % "p"} b = {NORM % "q"}
        s = Relu (a) t = Relu (b) z = Concat <axis=0> (s, t, t) y = Concat <axis=0> (z)""",
}


@pytest.mark.parametrize("name", TOGETHER)
def test_equal_ones_go_backward_as_one(name: str) -> None:
    body = TOGETHER[name]
    results = "double[4,4,6,6] y" if "elements" not in name else "double[5,4,6,6] y"
    result = folded(body, results=results, exactly=True)
    assert result.codes == []
    assert result.count("BatchNormalization") == 0
    assert {target for move in result.plan.folds for target in move.targets} == {"Conv(c)"}
    assert len(result.plan.folds) == body.count("BatchNorm")


def test_one_of_two_of_one_value_may_be_an_output() -> None:
    body = f"c = Conv (x, w) y = {NORM % 'c'} b = {NORM % 'c'} s = Sigmoid (b) u = Relu (s)"
    result = folded(body, results="double[4,4,6,6] y, double[4,4,6,6] u", exactly=True)
    assert [[*node.output] for node in result.model.graph.node] == [["y"], ["s"], ["u"]]


def test_forward_they_go_into_what_reads_all_of_them() -> None:
    """Each by itself could not: along the batch a convolution has no place for an affine."""
    body = f"a = {NORM % 'x'} b = {NORM % 'z'} c = Concat <axis=0> (a, b) y = Conv (c, v)"
    result = folded(body, source="double[2,4,6,6] x, double[2,4,6,6] z", exactly=True)
    assert result.codes == []
    assert [move.path for move in result.plan.folds] == [("Concat(c)",)] * 2


def test_shifts_of_their_own_meet_in_a_sum() -> None:
    """The scales are the same and the shifts are not: s·a + t + s·b + u = s·(a + b) + (t + u)."""
    shifted = OTHER.replace("other_g", "bn_g").replace("other_v", "bn_v")
    body = f"a = {NORM % 'x'} b = {shifted % 'z'} c = Add (a, b) y = Conv (c, v)"
    result = folded(body, source="double[4,4,6,6] x, double[4,4,6,6] z", exactly=True)
    assert result.codes == []
    assert [node.op_type for node in result.model.graph.node] == ["Add", "Conv"]


APART = {
    "other parameters": f"""c = Conv (x, w) p, q = Split <axis=0> (c)
        a = {NORM % "p"} b = {OTHER % "q"} z = Concat <axis=0> (a, b) y = Relu (z)""",
    "a piece without one": f"""c = Conv (x, w) p, q = Split <axis=0> (c)
        a = {NORM % "p"} b = Sigmoid (q) z = Concat <axis=0> (a, b) y = Relu (z)""",
    "a piece that is an output": f"""c = Conv (x, w) p, q = Split <axis=0> (c)
        a = {NORM % "p"} b = {NORM % "q"} z = Concat <axis=0> (a, b) y = Relu (z) u = Identity (q)""",
    "equal ones of one value": f"c = Conv (x, w) y = {NORM % 'c'} u = {NORM % 'c'}",
    "a shift that meets padding": f"""a = {NORM % "x"} b = {NORM % "z"} c = Concat <axis=0> (a, b)
        y = Conv <pads=[1,1,1,1], kernel_shape=[3,3]> (c, wide)""",
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_asked_by_all_stays(name: str) -> None:
    outputs = {
        "a piece that is an output": ", double[2,4,6,6] u",
        "equal ones of one value": ", double[4,4,6,6] u",
    }
    forward = "padding" in name
    sources = "double[2,4,6,6] x, double[2,4,6,6] z" if forward else "double[4,3,6,6] x"
    text = f"agraph ({sources}) => (double[4,4,6,6] y{outputs.get(name, '')}) {{ {APART[name]} }}"
    constants = {"wide": random(4, 4, 3, 3)} if forward else {"w": random(4, 3, 1, 1)}
    norms = {**batch_norm(4), **(batch_norm(4, "other") if "other_g" in text else {})}
    result = fold(parse(text, **constants, **norms), merge=False, leftover="keep")
    assert result.plan.folds == ()


def test_maps_that_shared_a_weight_share_the_new_one_where_it_is_the_same() -> None:
    body = f"""p, q, r = Split <axis=0> (x) a = Conv (p, w) b = Conv (q, w) c = Conv (r, w)
        z = Concat <axis=0> (a, b) n = {NORM % "z"} o = {OTHER % "c"} y = Concat <axis=0> (n, o)"""
    result = folded(body, source="double[6,3,6,6] x", results="double[6,4,6,6] y", exactly=True)
    first, second, third = (node.input[1] for node in result.model.graph.node if node.op_type == "Conv")
    assert first == second != third
    assert len({tensor.name for tensor in result.model.graph.initializer if len(tensor.dims) == 4}) == 2
