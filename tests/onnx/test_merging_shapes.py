"""Merges and what reads the shape, the type or the name of a value that they take away or change."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_fold import Folded, batch_norm, fold, parse, random

from bnfold.reasons import StopCode

OPEN, FIXED = "double[N, 4, H, W]", "double[2, 4, 7, 8]"
WIDE, POINT = "a = Conv <pads = [1, 1, 1, 1]> (x, w3)", "b = Conv (x, w1)"
READERS = {
    "Shape": "s = Shape (READ)",
    "the last two sizes": "s = Shape <start = 2> (READ)",
    "Size": "s = Size (READ)",
    "CastLike": "s = CastLike (i, READ)",
    "RandomNormalLike": "r = RandomNormalLike <seed = 1.0> (READ) s = Shape (r)",
    "RandomUniformLike": "r = RandomUniformLike <seed = 1.0> (READ) s = Shape (r)",
    "a constant of that shape": "t = Shape (READ) s = ConstantOfShape (t)",
    "Reshape": "t = Shape (READ) s = Reshape (x, t)",
    "Expand": "t = Shape (READ) s = Expand (i0, t)",
    "in a nested graph": "s = If (p) <then_branch = t () => (s1) { s1 = Shape (READ) },"
    " else_branch = e () => (s2) { s2 = Shape (x) }>",
    "deep in a nested graph": "s = If (p) <then_branch = t () => (s1) { s1 = If (p) <then_branch = tt () => (s3)"
    " { s3 = Shape (READ) }, else_branch = ee () => (s4) { s4 = Shape (x) }> }, else_branch = e () => (s2)"
    " { s2 = Shape (x) }>",
}


FEEDS = {
    "x": random(2, 4, 7, 8),
    "z": random(2, 4, 7, 8, seed=1),
    "p": np.array(True),
    "i": np.array([3, 4], np.int32),
    "i0": np.array(2.0),
}


def model(body: str, shape: str = OPEN, **weights: np.ndarray) -> onnx.ModelProto:
    """A model with outputs y and s of whatever type; x, z of the shape, p, i and i0."""
    text = (
        f"g ({shape} x, {shape} z, bool p, int32[2] i, double i0) => (double[A, B, C, D] y, double[E] s) {{ {body} }}"
    )
    made = parse(text, **weights)
    types = {node.output[0]: node for node in made.graph.node}
    maker = types["s"].op_type
    integers = ("Shape", "Size", "If")
    rank = {"Size": 0, "ConstantOfShape": 4, "Reshape": 4, "Expand": 4}.get(maker, 1)
    kind = (
        TensorProto.INT64
        if maker in integers
        else TensorProto.FLOAT
        if maker == "ConstantOfShape"
        else TensorProto.DOUBLE
    )
    made.graph.output[1].CopyFrom(helper.make_tensor_value_info("s", kind, [None] * rank))
    for inner in (graph for node in made.graph.node for graph in _nested(node)):
        inner.output[0].CopyFrom(helper.make_tensor_value_info(inner.output[0].name, TensorProto.INT64, [4]))
    return made


def _nested(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    own = [given.g for given in node.attribute if given.type == onnx.AttributeProto.GRAPH]
    return [*own, *(inner for graph in own for child in graph.node for inner in _nested(child))]


def merged(body: str, shape: str = OPEN, **weights: np.ndarray) -> Folded:
    return fold(model(body, shape, **weights), feeds=FEEDS, merge=True)


def codes(folded: Folded) -> list[str]:
    return [str(entry.code) for entry in folded.plan.apart]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("shape", [OPEN, FIXED])
def test_the_shapes_of_both_branches_are_read(reader: str, shape: str) -> None:
    body = f"{WIDE} {POINT} other = Shape (a) y = Add (a, b) {READERS[reader].replace('READ', 'b')}"
    folded = merged(body, shape, w3=random(4, 4, 3, 3), w1=random(4, 4, 1, 1))
    assert codes(folded) == [StopCode.SHAPE_IS_READ]


@pytest.mark.parametrize("read", ["a", "b", "y"])
def test_the_shape_of_one_branch_is_read(read: str) -> None:
    """The one whose shape is read stands for both, and has the shape that it had."""
    body = f"{WIDE} {POINT} y = Add (a, b) s = Shape ({read})"
    folded = merged(body, w3=random(4, 4, 3, 3), w1=random(4, 4, 1, 1))
    assert folded.count("Conv") == 1


@pytest.mark.parametrize("reader", ["Shape", "CastLike", "deep in a nested graph"])
@pytest.mark.parametrize("shape", [OPEN, FIXED])
@pytest.mark.parametrize("read", ["h", "y"])
def test_the_shape_between_two_maps_is_read(reader: str, shape: str, read: str) -> None:
    body = f"h = Conv (x, wide) y = Conv (h, w3) {READERS[reader].replace('READ', read)}"
    folded = merged(body, shape, wide=random(8, 4, 1, 1), w3=random(4, 8, 3, 3))
    assert codes(folded) == ([StopCode.SHAPE_IS_READ] if read == "h" else [])
    assert folded.count("Conv") == (2 if read == "h" else 1)


@pytest.mark.parametrize("small", [(1, 4, 1, 1), (4, 1, 1), (2, 4, 7, 8)])
@pytest.mark.parametrize("read", ["x", "t"])
def test_the_shape_of_a_sum_of_which_one_operand_is_left(small: tuple[int, ...], read: str) -> None:
    """x goes out of x + z, and z, which may be broadcast, is what is left of it."""
    body = f"t = Add (x, z) a = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Add (t, a) s = Shape ({read})"
    made = model(body, FIXED, w3=random(4, 4, 3, 3))
    made.graph.input[1].CopyFrom(helper.make_tensor_value_info("z", TensorProto.DOUBLE, small))
    made.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.DOUBLE, [2, 4, 7, 8]))
    folded = fold(made, feeds={**FEEDS, "z": random(*small)}, merge=True)
    assert len(folded.plan.merges) == (read == "x")
    assert codes(folded) == ([] if read == "x" else [StopCode.SHAPE_IS_READ])
    assert len(folded.model.graph.value_info) == (read == "t")


def test_what_is_left_of_a_sum_of_sums_may_be_smaller() -> None:
    """u = (a + p) + q is p + q once a is elsewhere: of one channel, and its declared shape is not true any more."""
    body = (
        "a = Conv (x, w1) t = Add (a, p4) u = Add (t, q4) b = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Add (u, b)"
        " s = Shape (x)"
    )
    made = model(body, FIXED, w1=random(4, 4, 1, 1), w3=random(4, 4, 3, 3))
    for name, sizes in (("p4", (2, 1, 7, 8)), ("q4", (1, 1, 1, 8))):
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, sizes))
    made.graph.value_info.append(helper.make_tensor_value_info("u", TensorProto.DOUBLE, [2, 4, 7, 8]))
    folded = fold(made, feeds={**FEEDS, "p4": random(2, 1, 7, 8), "q4": random(1, 1, 1, 8)}, merge=True)
    assert (folded.count("Conv"), folded.count("Add")) == (1, 2)
    assert not folded.model.graph.value_info


def test_an_affine_does_not_reach_an_operand_that_is_broadcast() -> None:
    """Behind x + z, of which z is left, comes a BN; the map that makes z has one channel, that of the sum four."""
    body = (
        "q = Conv (z, one) t = Add (x, q) a = Conv <pads = [1, 1, 1, 1]> (x, w3) u = Add (t, a)"
        " y = BatchNormalization (u, bn_g, bn_b, bn_m, bn_v) s = Shape (x)"
    )
    folded = merged(body, one=random(1, 4, 1, 1), w3=random(4, 4, 3, 3), **batch_norm(4))
    assert len(folded.plan.merges) == 1
    assert folded.codes == [StopCode.BROADCAST]


@pytest.mark.parametrize("before", ["", "h = Relu (z)", "h = Identity (z)"])
def test_an_operand_that_is_left_keeps_its_name(before: str) -> None:
    """It is an input or an output of the model, which keeps its name, and is not what is added up."""
    left = "h" if before else "z"
    body = f"{before} t = Add (x, {left}) a = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Add (t, a) s = Shape (x)"
    made = model(body, FIXED, w3=random(4, 4, 3, 3))
    if before:
        made.graph.output.append(helper.make_tensor_value_info("h", TensorProto.DOUBLE, [2, 4, 7, 8]))
    folded = fold(made, feeds=FEEDS, merge=True)
    assert len(folded.plan.merges) == 1
    assert folded.count("Add") == 1


@pytest.mark.parametrize(("size", "convs"), [(5, 2), (6, 3), (8, 2)])
def test_sizes_behind_a_chain_are_those_of_its_end(size: int, convs: int) -> None:
    """Of a size divisible by three both maps behind it have the same output; of six, four are left there."""
    body = (
        "h = Conv (x, wide) m = Conv (h, w3) a = Conv <strides = [3, 3]> (m, v3) b = Conv <strides = [3, 3]> (m, w1)"
        " y = Add (a, b) s = Shape (x)"
    )
    maps = {"wide": random(8, 4, 1, 1), "w3": random(4, 8, 3, 3), "v3": random(4, 4, 3, 3), "w1": random(4, 4, 1, 1)}
    made = model(body, f"double[2, 4, {size}, {size}]", **maps)
    folded = fold(made, feeds={**FEEDS, "x": random(2, 4, size, size)}, merge=True)
    assert folded.count("Conv") == convs
