"""Einsum with a constant matrix: a linear map wherever the channels are, and nothing else is one."""

import numpy as np
import pytest
from onnx_fold import batch_norm, fold, parse, random, scale_and_shift

from bnfold.algebra.einsum import einsum_map
from bnfold.algebra.tensor import ArrayTensor

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"

CARRIERS = {
    "as a MatMul": ("nd,df->nf", [2, 5], (5, 3), [2, 3]),
    "turned": ("nd,fd->nf", [2, 5], (3, 5), [2, 3]),
    "without an arrow": ("bn,nd", [2, 5], (5, 3), [2, 3]),
    "in spaces": ("n d , d f -> n f", [2, 5], (5, 3), [2, 3]),
    "channels of an image": ("nchw,cd->ndhw", [2, 5, 4, 3], (5, 3), [2, 3, 4, 3]),
    "channels that were last": ("nhwc,dc->ndhw", [2, 4, 3, 5], (3, 5), [2, 3, 4, 3]),
    "with an ellipsis before": ("...d,df->...f", [2, 5], (5, 3), [2, 3]),
    "with an ellipsis behind": ("nd...,df->nf...", [2, 5, 4, 6], (5, 3), [2, 3, 4, 6]),
    "adding up more": ("nkd,df->nf", [2, 4, 5], (5, 3), [2, 3]),
    "heads behind the product": ("bnd,dhf->bhnf", [2, 4, 5], (5, 3, 6), [2, 3, 4, 6]),
    "heads that are added up": ("bnhd,hdf->bfn", [2, 4, 6, 5], (6, 5, 3), [2, 3, 4]),
    "a matrix for each channel": ("bnd,ndf->bnf", [2, 3, 5], (3, 5, 4), [2, 3, 4]),
    "a matrix for each item": ("bnd,bfd->bfn", [2, 4, 5], (2, 3, 5), [2, 3, 4]),
    "one matrix for all items": ("bnd,bdf->bfn", [1, 4, 5], (1, 5, 3), [1, 3, 4]),
    "a value for all channels": ("bnd,df->bfn", [2, 4, 1], (5, 3), [2, 3, 4]),
}


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("on_the_left", [False, True])
def test_it_takes_what_acts_on_the_axis_of_its_weight(name: str, on_the_left: bool) -> None:
    equation, source, shape, result = CARRIERS[name]
    operands = "x, w"
    if on_the_left:
        terms, *rest = equation.replace(" ", "").split("->")
        equation, operands = "->".join([",".join(reversed(terms.split(","))), *rest]), "w, x"
    text = f"""agraph (double{source} x) => (double{result} y) {{
        [map] c = Einsum <equation="{equation}"> ({operands}) y = {NORM % "c"}
    }}"""
    weight = random(*shape)
    folded = fold(parse(text, w=weight, **batch_norm(3)), exactly=True)
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == ["Einsum", "Add"]
    scale, _ = scale_and_shift(batch_norm(3))
    along = [-1 if size == 3 else 1 for size in shape]
    new = folded.constant("map", 0 if on_the_left else 1)
    np.testing.assert_allclose(new, weight * scale.reshape(along), rtol=2**-50)


def test_a_bias_and_what_comes_before() -> None:
    text = f"""agraph (double[2,5,4] x) => (double[2,4,3] y) {{
        n = {NORM % "x"} c = Einsum <equation="bcl,cd->bld"> (n, w) y = Add (c, b)
    }}"""
    folded = fold(parse(text, w=random(5, 3), b=random(3), **batch_norm(5)), exactly=True)
    assert [node.op_type for node in folded.model.graph.node] == ["Einsum", "Add"]


STAYS = {
    "an axis of the value": ("bnd,bdf->bnf", [3, 3, 5], (3, 5, 4), "output channels"),
    "an axis of all but one matrix": ("nd,df->dnf", [2, 3], (3, 4), "output channels"),
    "a diagonal": ("nnd,df->nf", [2, 2, 5], (5, 3), "diagonal"),
    "what may be broadcast": ("nd,df->nf", [2, 1], (1, 3), "broadcast"),
}


@pytest.mark.parametrize("equation", ["nd", "nd,df,fg->ng", "n1,1f->nf", "ndk,df->nf", "..d,df->nf", ",->", ""])
def test_equations_that_make_no_sense_are_no_map(equation: str) -> None:
    assert isinstance(einsum_map(equation, 1, ArrayTensor(random(5, 3)), 2), str)


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_map_stays_with_the_reason(name: str) -> None:
    equation, source, weight, words = STAYS[name]
    result = np.einsum(equation, np.zeros(source), np.zeros(weight)).shape
    after = NORM % "c" if len(result) > 1 else "Mul (c, s)"
    text = f"""agraph (double{source} x) => (double{[*result]} y) {{
        c = Einsum <equation="{equation}"> (x, w) y = {after}
    }}"""
    norm = batch_norm(result[1]) if len(result) > 1 else {"s": random(3)}
    folded = fold(parse(text, w=random(*weight), **norm), leftover="keep")
    assert folded.plan.folds == ()
    assert not folded.plan.left or words in folded.plan.left[0].reason


def test_more_that_is_added_up_keeps_a_shift_outside() -> None:
    text = f"""agraph (double[2,5,4] x) => (double[2,3] y) {{
        n = {NORM % "x"} y = Einsum <equation="ncl,cd->nd"> (n, w)
    }}"""
    folded = fold(parse(text, w=random(5, 3), **batch_norm(5)), leftover="keep")
    assert folded.codes == ["padded_shift"]
    assert "adds up along axes" in folded.plan.left[0].reason


@pytest.mark.parametrize(
    ("equation", "weight", "goes"),
    [("bdn,hdf->bhnf", (6, 5, 4), False), ("bdhn,hdf->bnf", (6, 5, 4), True), ("bdn,hdf->bhnf", (1, 5, 4), True)],
)
def test_a_shift_goes_in_where_it_comes_out_as_one_vector(equation: str, weight: tuple[int, ...], goes: bool) -> None:
    """Σ_d t_d · W[h, d, f] is another vector for each h, unless h is added up as well, or is the only one."""
    operand, result = equation.split(",", maxsplit=1)[0], equation.split(">")[1]
    source = ",".join(str({"b": 2, "d": 5, "n": 3, "h": 6}[letter]) for letter in operand)
    text = f"""agraph (double[{source}] x) => (double[{",".join(result.upper())}] y) {{
        m = Mul (x, s) a = Add (m, t) y = Einsum <equation="{equation}"> (a, w)
    }}"""
    along = (5,) + (1,) * (len(operand) - 2)
    folded = fold(parse(text, w=random(*weight), s=random(*along), t=random(*along, seed=1)), exactly=True)
    assert folded.count("Mul") == (0 if goes else 1)


def test_two_that_come_out_in_another_order_stay_two() -> None:
    """Equal sizes prove nothing: one of them turns what the other does not."""
    text = """agraph (double[4,4,5] x) => (double[4,4,3] y) {
        a = Einsum <equation="abd,df->abf"> (x, w) c = Einsum <equation="abd,df->baf"> (x, v) y = Add (a, c)
    }"""
    folded = fold(parse(text, w=random(5, 3), v=random(5, 3, seed=1)), merge=True)
    assert folded.count("Einsum") == 2
