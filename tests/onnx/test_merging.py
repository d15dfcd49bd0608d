"""Parallel branches of ONNX models become one map, or stay with a reason."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from exporters import Variant, export_variant
from merging_as_written import BORDERED, WRITTEN
from merging_full_size import FULL_SIZE
from merging_networks import NETWORKS, deployed, randomised
from onnx import helper, numpy_helper
from onnx_fold import batch_norm, fold, parse, random, random_feeds
from oracle import evaluate, relative_error, to_double

import bnfold
from bnfold.planning.plan import MergeKind, Plan
from bnfold.reasons import StopCode
from bnfold.result import FoldResult

IMAGE = "double[2, 4, H, W]"
FORMS = {
    "repvgg": {"Conv": 4, "Relu": 4},
    "mobileone": {"Conv": 5, "Relu": 5},
    "repvit": {"Conv": 7, "Relu": 1, "Add": 2},
    "fastvit": {"Conv": 9, "Relu": 1, "Add": 2},
    "acnet": {"Conv": 3, "Relu": 3},
    "dbb": {"Conv": 3, "Relu": 3},
}
"""What is left of each network: the deployment form of its paper. The activations of repvit and fastvit, which
exporters write in many ways, are not counted."""


WRITTEN_FORMS = {
    "yolo": {"Conv": 5},
    "qarepvgg": {"Conv": 4},
    "replknet": {"Conv": 7, "Add": 2},
    "unireplknet": {"Conv": 3},
    "pp_lcnet_v3": {"Conv": 4, "Mul": 2, "Add": 2},
}
"""The same of networks as they are written; what exporters write in many ways is not counted. Of the three learnable
affines behind the activations of pp_lcnet_v3, which all stay in its authors' deployment form, that in front of the 1x1
goes, and those in front of a zero padding or at the end stay."""


VARIANTS = [Variant.TORCHSCRIPT_FOLDED, pytest.param(Variant.DYNAMO_RAW, marks=pytest.mark.slow)]


def apart(plan: Plan) -> list[str]:
    return [str(entry.code) for entry in plan.apart]


def graph(body: str, shape: str = IMAGE, result: str = "double[N, C, P, Q]") -> str:
    return f"g ({shape} x) => ({result} y) {{ {body} }}"


def network(name: str, variant: Variant, folder: Path) -> onnx.ModelProto:
    path = folder / f"{name}.onnx"
    torch.manual_seed(0)
    module = randomised({**NETWORKS, **WRITTEN, **BORDERED}[name]())
    export_variant((module, (torch.randn(2, 3, 20, 28),)), path, variant)
    return onnx.load(path)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_form_becomes_the_deployment_form(name, variant, tmp_path):
    model = network(name, variant, tmp_path)
    double = to_double(model)
    folded = bnfold.fold(double)
    onnx.checker.check_model(folded.model, full_check=True)
    assert folded.plan.batch_norms_left == 0
    assert folded.plan.batch_norms == len([n for n in model.graph.node if n.op_type == "BatchNormalization"]) > 0
    assert {op: folded.ops_after.get(op, 0) for op in ("Conv", "Relu", "Add", "Sub", "AveragePool")} == {
        "Conv": 0,
        "Relu": 0,
        "Add": 0,
        "Sub": 0,
        "AveragePool": 0,
        **FORMS[name],
    }
    feeds = random_feeds(double, seed=3)
    for key, value in evaluate(double, feeds).items():
        assert relative_error(evaluate(folded.model, feeds)[key], value) < 1e-10
    again = bnfold.fold(folded.model)
    assert not again.changed


def fold_as_double(model: onnx.ModelProto) -> FoldResult[onnx.ModelProto]:
    """The fold of a model in float64, with its outputs checked."""
    double = to_double(model)
    folded = bnfold.fold(double, leftover="keep")
    onnx.checker.check_model(folded.model, full_check=True)
    feeds = random_feeds(double, seed=3)
    for key, value in evaluate(double, feeds).items():
        assert relative_error(evaluate(folded.model, feeds)[key], value) < 1e-10
    return folded


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("variant", VARIANTS)
def test_so_does_one_in_the_words_of_its_code(name, variant, tmp_path):
    folded = fold_as_double(network(name, variant, tmp_path))
    assert folded.plan.batch_norms_left == 0
    assert folded.plan.batch_norms > 0
    for op, count in {"AveragePool": 0, "Sub": 0, **WRITTEN_FORMS[name]}.items():
        assert folded.ops_after.get(op, 0) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_borders_that_are_written_into_slices_stay(variant, tmp_path):
    """What has no such border is merged: in a dense block two convolutions, in a depthwise one the pool."""
    dense = fold_as_double(network("dbb_dense", variant, tmp_path))
    assert [str(left.code) for left in dense.plan.left] == ["no_rule", "no_rule"]
    assert all("no exact rule moves an affine past ScatterND" in left.reason for left in dense.plan.left)
    assert (dense.plan.batch_norms, dense.plan.batch_norms_left) == (12, 2)
    assert {op: dense.ops_after[op] for op in ("Conv", "AveragePool", "Pad")} == {
        "Conv": 1 + 2 * (1 + 1 + 2),  # the stem; the branches of x, the pool's 1x1, and the pair
        "AveragePool": 2,
        "Pad": 4,
    }
    depthwise = fold_as_double(network("dbb_depthwise", variant, tmp_path))
    assert (depthwise.plan.batch_norms, depthwise.plan.batch_norms_left) == (8, 0)
    assert depthwise.ops_after["Conv"] == 1 + 2 * (1 + 2)
    assert "AveragePool" not in depthwise.ops_after


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_network_of_full_size_has_the_nodes_of_its_paper(name, tmp_path):
    torch.manual_seed(0)
    images = (torch.randn(1, 3, 64, 64),)
    nodes = []
    for module in (randomised(FULL_SIZE[name]()), deployed(FULL_SIZE[name]()).eval()):
        export_variant((module, images), tmp_path / "model.onnx", Variant.TORCHSCRIPT_FOLDED)
        model = onnx.load(tmp_path / "model.onnx")
        nodes.append([node.op_type for node in bnfold.fold(model).model.graph.node])
        assert ("BatchNormalization" in [node.op_type for node in model.graph.node]) == (len(nodes) == 1)
    assert nodes[0] == nodes[1]


def test_without_merging_the_branches_stay(tmp_path):
    model = network("repvgg", Variant.TORCHSCRIPT_FOLDED, tmp_path)
    folded = bnfold.fold(model, merge=False)
    assert not folded.plan.merges
    assert not folded.plan.apart
    convs = [node for node in folded.model.graph.node if node.op_type == "Conv"]
    assert len(convs) >= len([node for node in model.graph.node if node.op_type == "Conv"])


def test_every_batch_norm_is_in_one_place():
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w)  n = BatchNormalization (a, bn_g, bn_b, bn_m, bn_v)"
        " i = BatchNormalization (x, id_g, id_b, id_m, id_v)  s = Add (n, i)"
        " y = BatchNormalization (s, out_g, out_b, out_m, out_v)"
    )
    constants = {**batch_norm(4), **batch_norm(4, "id"), **batch_norm(4, "out"), "w": random(4, 4, 3, 3)}
    folded = fold(parse(graph(body), **constants), merge=True)
    plan = folded.plan
    assert (plan.batch_norms, plan.batch_norms_left, len(plan.folds)) == (3, 0, 2)
    (merge,) = plan.merges
    assert merge.nodes == ("BatchNormalization(i)",)
    assert merge.batch_norms == 1
    assert {fold.targets for fold in plan.folds} == {("Conv(a)",)}
    assert folded.count("Conv") == 1
    assert len(folded.model.graph.node) == 1


CASES = {
    "pointwise into dense": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1, c)  y = Add (a, b)", 1),
    "difference": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)  b = Conv (x, w1, c)  y = Sub (b, a)", 1),
    "three at once": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1, c)  d = Conv <pads = [1, 1, 1, 1]> (x, w3, c)"
        " y = Sum (a, b, d)",
        1,
    ),
    "nested": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1, c)  d = Sub (b, a)  e = Conv (x, v1)  y = Sub (e, d)",
        1,
    ),
    "residual": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3)  y = Add (x, a)", 1),
    "residual, subtracted": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)  y = Sub (x, a)", 1),
    "scaled branches": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  h = Mul (a, half)  b = Conv (x, w1, c)  t = Mul (three, b)"
        " d = Sub (h, t)  e = Mul (x, half)  y = Add (d, e)",
        1,
    ),
    "depthwise into grouped": (
        "a = Conv <pads = [1, 1, 1, 1], group = 2> (x, wg)  b = Conv <group = 4> (x, wd, c)  y = Add (a, b)",
        1,
    ),
    "depthwise with the identity": ("b = Conv <group = 4> (x, wd)  y = Add (b, x)", 1),
    "skeletons": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv <pads = [1, 0, 1, 0]> (x, w31, c)"
        " d = Conv <pads = [0, 1, 0, 1]> (x, w13)  e = Add (b, d)  y = Add (a, e)",
        1,
    ),
    "strided": (
        "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w3)  b = Conv <strides = [2, 2]> (x, w1, c)"
        " y = Add (a, b)",
        1,
    ),
    "dilated": (
        "a = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w3, c)  b = Conv (x, w1)  y = Add (a, b)",
        1,
    ),
    "padded by name": (
        'a = Conv <auto_pad = "SAME_UPPER"> (x, w3, c)  b = Conv <auto_pad = "VALID"> (x, w1)  y = Add (b, a)',
        1,
    ),
    "an even kernel padded by name": ('a = Conv <auto_pad = "SAME_LOWER"> (x, w2, c)  y = Add (x, a)', 1),
    "padded unevenly": (
        "a = Conv <pads = [2, 1, 0, 1]> (x, w3, c)  b = Conv <pads = [0, 1, 0, 0]> (x, w12)  y = Add (b, a)",
        1,
    ),
    "counted pool": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)"
        " b = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)  y = Sub (a, b)",
        1,
    ),
    "pool without pads": (
        "a = Conv (x, w3, c)  b = AveragePool <kernel_shape = [3, 3]> (x)  y = Add (a, b)",
        1,
    ),
    "pool behind a pointwise map": (
        "a = Conv (x, w3, c)  b = Conv (x, w1, c)  d = AveragePool <kernel_shape = [3, 3]> (b)  y = Add (a, d)",
        1,
    ),
    "two maps in a row": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w1, c)  b = Conv <strides = [2, 1]> (a, w3, c)"
        " d = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w3)  y = Add (b, d)",
        1,
    ),
    "behind identities": (
        "i = Identity (x)  j = Dropout (i)  a = Conv <pads = [1, 1, 1, 1]> (j, w3, c)  b = Conv (x, w1)"
        " k = Identity (b)  y = Add (a, k)",
        3,
    ),
    "with something else between": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)  r = Relu (x)  d = Sub (r, a)  b = Conv (x, w1)  y = Add (d, b)",
        3,
    ),
    "subtracted from something else": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)  r = Relu (x)  b = Conv (x, w1, c)  d = Sub (r, b)  y = Sub (d, a)",
        3,
    ),
    "the first of a difference goes": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3, c)  r = Relu (x)  b = Conv (x, w1)  d = Sub (x, a)  e = Sub (r, d)"
        " y = Sub (b, e)",
        3,
    ),
    "two sums in one": (
        "r = Relu (x)  a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv <pads = [1, 1, 1, 1]> (r, w3)"
        " d = Conv (x, w1)  e = Conv (r, w1, c)  f = Add (a, b)  g = Add (d, e)  y = Add (f, g)",
        4,
    ),
    "averaged": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1, c)  d = Sub (a, b)"
        "  e = Conv (x, v1)  y = Mean (d, x, e)",
        1,
    ),
    "averaged with something else": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  r = Relu (x)  b = Conv (x, w1, c)  d = Mean (r, b)  y = Sub (d, a)",
        3,
    ),
    "x three times": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3)  d = Add (x, x)  y = Add (d, a)", 1),
}


def weights(dtype: object = np.float64) -> dict[str, np.ndarray]:
    shapes = {
        "w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "v1": (4, 4, 1, 1), "wg": (4, 2, 3, 3), "wd": (4, 1, 1, 1),
        "w31": (4, 4, 3, 1), "w13": (4, 4, 1, 3), "w2": (4, 4, 2, 2), "w12": (4, 4, 1, 2), "c": (4,),
    }  # fmt: skip
    drawn = {name: random(*shape, seed=len(name), dtype=dtype) for name, shape in shapes.items()}
    return {**drawn, "half": np.array(0.5, dtype), "three": np.array([3.0], dtype)}


@pytest.mark.parametrize("case", CASES)
def test_branches_become_one_map(case):
    body, nodes = CASES[case]
    constants = {name: array for name, array in weights().items() if f" {name}" in body or f"({name}" in body}
    model = parse(graph(body, "double[2, 4, 7, 8]"), **constants)
    folded = fold(model, merge=True)
    assert folded.plan.merges
    assert len(folded.model.graph.node) == nodes
    for merge in folded.plan.merges:
        assert merge.multiply_adds <= merge.multiply_adds_before
        assert merge.branches > 1 or merge.kind is MergeKind.CHAIN


POOL = "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>"


@pytest.mark.parametrize("sum_", ["Add (a, n)", "Sub (n, a)"])
def test_a_batch_norm_behind_a_pool_that_counts_zeros(sum_):
    """Its shift cannot go back, but all of it is a kernel of what the pool reads."""
    body = f"a = Conv <pads = [1, 1, 1, 1]> (x, w3)  p = {POOL} (x)"
    body += f" n = BatchNormalization (p, bn_g, bn_b, bn_m, bn_v)  y = {sum_}"
    folded = fold(parse(graph(body), w3=random(4, 4, 3, 3), **batch_norm(4)), merge=True)
    assert [node.op_type for node in folded.model.graph.node] == ["Conv"]
    (merge,) = folded.plan.merges
    assert merge.nodes == ("AveragePool(p)", "BatchNormalization(n)")
    assert (merge.kernels, merge.batch_norms) == (((3, 3), (3, 3)), 1)
    assert merge.multiply_adds_before == 4 * 4 * 9 + 4 * 9 + 4
    assert (folded.plan.batch_norms, folded.plan.batch_norms_left) == (1, 0)


@pytest.mark.parametrize(
    ("branch", "reason"),
    [
        (f"p = {POOL} (x)", "no map among them could stand for all of them"),  # a convolution is not made
        (f"d = Conv <group = 4> (x, wd)  p = {POOL} (d)", "no map among them could stand for all of them"),
    ],
)
def test_it_stays_where_no_convolution_could_take_it(branch, reason):
    body = f"{branch}  n = BatchNormalization (p, bn_g, bn_b, bn_m, bn_v)  y = Add (x, n)"
    constants = {"wd": random(4, 1, 1, 1)} if "wd" in branch else {}
    folded = fold(parse(graph(body), **constants, **batch_norm(4)), merge=True)
    assert folded.plan.batch_norms_left == 1
    assert [entry.reason for entry in folded.plan.apart] == [reason]
    assert folded.count("AveragePool") == 1


GUARDS = {
    "read twice": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1)  r = Relu (b)  s = Add (a, b)  y = Add (s, r)",
        StopCode.OTHER_CONSUMERS,
    ),
    "more work": (
        "a = Conv <pads = [1, 0, 1, 0]> (x, w31)  b = Conv <pads = [0, 1, 0, 1]> (x, w13)  y = Add (a, b)",
        StopCode.MORE_WORK,
    ),
    "more work in fewer groups": (
        "a = Conv <pads = [1, 1, 1, 1], group = 2> (x, wg)  b = Conv (x, w1)  y = Add (a, b)",
        StopCode.MORE_WORK,
    ),
    "a tap more than the identity is worth": (
        "a = Conv <pads = [0, 1, 0, 1], dilations = [1, 2]> (x, w12)  y = Add (a, x)",
        StopCode.MORE_WORK,
    ),
    "what is left would change its sign": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  r = Relu (x)  b = Conv (x, w1)  d = Sub (b, r)  y = Sub (a, d)",
        StopCode.NO_RULE,
    ),
    "what is left would be divided": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  r = Relu (x)  b = Conv (x, w1)  d = Mean (b, r)  y = Mean (a, d)",
        StopCode.NO_RULE,
    ),
    "other strides": (
        "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w3)  b = Conv <strides = [1, 2]> (x, w1) y = Add (a, b)",
        StopCode.STRIDES,
    ),
    "sizes that need not be equal": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv <pads = [1, 1, 1, 1]> (x, w1)  y = Add (a, b)",
        StopCode.OUTPUT_SIZE,
    ),
    "the identity of another size": ("a = Conv (x, w3)  y = Add (a, x)", StopCode.OUTPUT_SIZE),
    "padding by name": (
        'a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w3)  b = Conv <strides = [2, 2]> (x, w1)'
        " y = Add (a, b)",
        StopCode.PADDING,
    ),
    "not of the same value": (
        "r = Relu (x)  a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (r, w1)  y = Add (a, b)",
        None,
    ),
    "a pool that does not count its padding": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)"
        " y = Add (a, b)",
        None,
    ),
    "a pool that rounds up": (
        "a = Conv (x, w3)  b = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (x)  y = Add (a, b)",
        None,
    ),
    "the border of a padded chain": (
        "a = Conv (x, w1, c)  b = Conv <pads = [1, 1, 1, 1]> (a, w3)  y = Relu (b)",
        StopCode.PADDED_SHIFT,
    ),
    "operands left over": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1)  r = Relu (x)  y = Sum (a, r, b)",
        StopCode.NO_RULE,
    ),
    "a constant that varies along the image": (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Mul (x, image)  y = Add (a, b)",
        None,
    ),
}


@pytest.mark.parametrize("case", GUARDS)
def test_branches_that_stay(case):
    body, code = GUARDS[case]
    constants = {**weights(), "image": random(7, 8)}
    constants = {name: array for name, array in constants.items() if f" {name}" in body or f"({name}" in body}
    sized = "double[2, 4, 7, 8]" if case in ("a constant that varies along the image",) else IMAGE
    folded = fold(parse(graph(body, sized), **constants), merge=True, compare=False)
    assert not folded.plan.merges
    assert apart(folded.plan) == ([] if code is None else [code])


def test_an_output_in_the_middle_stays():
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w3)  b = Conv (x, w1)  y = Add (a, b)"
    text = graph(body).replace("y)", "y, double[N, C, P, Q] b)")
    constants = weights()
    folded = fold(parse(text, w3=constants["w3"], w1=constants["w1"]), merge=True)
    assert not folded.plan.merges
    assert apart(folded.plan) == [StopCode.MODEL_OUTPUT]


def test_sizes_that_are_known_to_be_equal():
    body = (
        "a = Conv <pads = [0, 0, 1, 1], strides = [2, 2]> (x, w3)  b = Conv <strides = [2, 2]> (x, w3)  y = Add (a, b)"
    )
    known = fold(parse(graph(body, "double[2, 4, 7, 9]"), w3=weights()["w3"]), merge=True)
    assert len(known.model.graph.node) == 1
    unknown = fold(parse(graph(body, "double[2, 4, H, 9]"), w3=weights()["w3"]), merge=True)
    assert apart(unknown.plan) == [StopCode.OUTPUT_SIZE]


def test_an_affine_that_would_vary_along_the_image_stays():
    body = "a = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)  b = Mul (x, image)  y = Add (a, b)"
    model = parse(graph(body, "double[2, 4, 7, 8]"), image=random(7, 8), **batch_norm(4))
    folded = fold(model, merge=True)
    assert not folded.plan.merges
    assert apart(folded.plan) == [StopCode.VARIES]


def test_affines_that_overflow_together_stay():
    parameters = {"g": 4e4, "b": 0.0, "m": 0.0, "v": 1.0}
    constants = {f"bn_{letter}": np.full(4, number, np.float16) for letter, number in parameters.items()}
    body = (
        "a = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)  b = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)"
        " y = Add (a, b)"
    )
    text = graph(body, "float16[1, 4, 2, 2]", "float16[N, C, P, Q]")
    folded = fold(parse(text, **constants), merge=True, compare=False)
    assert apart(folded.plan) == [StopCode.OVERFLOW]


def test_a_chain_that_overflows_stays():
    big = np.full((4, 4, 1, 1), 2e3, np.float16)
    text = graph("a = Conv (x, w)  y = Conv (a, w)", "float16[1, 4, 2, 2]", "float16[N, C, P, Q]")
    folded = fold(parse(text, w=big), merge=True, compare=False)
    assert apart(folded.plan) == [StopCode.OVERFLOW]


def test_a_transposed_map_and_another_stay():
    body = "a = ConvTranspose (x, w)  b = Conv (x, w)  y = Add (a, b)"
    folded = fold(parse(graph(body), w=random(4, 4, 1, 1)), merge=True)
    assert apart(folded.plan) == [StopCode.NO_RULE]


def test_an_overflow_stays():
    big = np.full((4, 4, 1, 1), 4e4, np.float16)
    text = graph("a = Conv (x, w)  b = Conv (x, v)  y = Add (a, b)", "float16[1, 4, 2, 2]", "float16[N, C, P, Q]")
    folded = fold(parse(text, w=big, v=big), merge=True, compare=False)
    assert not folded.plan.merges
    assert apart(folded.plan) == [StopCode.OVERFLOW]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_weights_are_rounded_once(name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    w, v, c, d = (random(*shape, seed=9).astype(dtype) for shape in ((4, 4, 3, 3), (4, 4, 1, 1), (4,), (4, 1)))
    d = d[:, 0]
    constants = {key: array.astype(dtype) for key, array in batch_norm(4).items()}
    body = (
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Conv (x, v, d)"
        " n = BatchNormalization (b, bn_g, bn_b, bn_m, bn_v)  s = Sub (a, n)  y = Add (s, x)"
    )
    kind = "float" if name == "float32" else name
    text = graph(body, f"{kind}[1, 4, 5, 5]", f"{kind}[N, C, P, Q]")
    folded = fold(parse(text, opset=22, w=w, v=v, c=c, d=d, **constants), merge=True, compare=False)
    scale = constants["bn_g"].astype(float) / np.sqrt(constants["bn_v"].astype(float) + float(np.float32(1e-5)))
    exact = w.astype(np.float64)
    exact[:, :, 1, 1] -= scale[:, None] * v.astype(np.float64)[:, :, 0, 0]
    exact[:, :, 1, 1] += np.eye(4)
    bias = c.astype(float) - (
        scale * (d.astype(float) - constants["bn_m"].astype(float)) + constants["bn_b"].astype(float)
    )
    (conv,) = folded.model.graph.node
    stored = {t.name: numpy_helper.to_array(t).astype(dtype) for t in folded.model.graph.initializer}
    for got, want in ((stored[conv.input[1]], exact), (stored[conv.input[2]], bias)):
        gap = np.abs(got.astype(np.float64) - want)
        unit = (
            np.abs(np.spacing(got.astype(dtype)).astype(np.float64)) if name != "bfloat16" else np.abs(want) * 2.0**-7
        )
        assert (gap <= 0.5000001 * unit).all()


PRODUCTS = {
    "two heads, averaged": ("a = Gemm (x, w, c)  b = Gemm (x, v, d)  s = Add (a, b)  y = Mul (s, half)", 1),
    "layouts and factors": (
        "a = Gemm <alpha = 0.5, beta = 2.0> (x, w, c)  b = Gemm <transB = 1, alpha = 3.0> (x, v, d)  y = Sub (b, a)",
        1,
    ),
    "MatMul and its bias": ("a = MatMul (x, w)  e = Add (a, c)  b = MatMul (x, v)  y = Add (b, e)", 2),
    "MatMul and Gemm": ("a = MatMul (x, w)  b = Gemm (x, v, c)  y = Add (a, b)", 1 + 1),
    "with the input": ("a = MatMul (x, w)  y = Add (x, a)", 1),
    "with a BN of it": (
        "a = Gemm (x, w, c)  n = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)  y = Sub (n, a)",
        1,
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_one_value(case):
    body, nodes = PRODUCTS[case]
    constants = {"w": random(4, 4), "v": random(4, 4, seed=5), "c": random(4), "d": random(3, 4), **batch_norm(4)}
    constants["half"] = np.array(0.5)
    used = {name: array for name, array in constants.items() if any(f"{o}{name}" in body for o in (" ", "("))}
    folded = fold(parse(graph(body, "double[3, 4]", "double[N, C]"), **used), merge=True)
    assert len(folded.plan.merges) == 1
    assert len(folded.model.graph.node) == nodes


def test_a_product_from_the_left():
    body = "a = MatMul (w, x)  e = Add (a, c)  b = MatMul (v, x)  s = Sub (e, b)  y = Add (s, x)"
    text = graph(body, "double[2, 4, 5]", "double[B, M, N]")
    folded = fold(parse(text, w=random(4, 4), v=random(4, 4, seed=5), c=random(4, 1)), merge=True)
    assert [node.op_type for node in folded.model.graph.node] == ["MatMul", "Add"]


def test_products_on_different_axes_stay():
    body = "a = MatMul (w, x)  b = MatMul (x, v)  y = Add (a, b)"
    folded = fold(
        parse(graph(body, "double[2, 4, 4]", "double[B, M, N]"), w=random(4, 4), v=random(4, 4, seed=5)), merge=True
    )
    assert not folded.plan.merges
    assert apart(folded.plan) == [StopCode.CHANNEL_AXIS]


def test_affines_of_one_value_become_one():
    body = (
        "a = BatchNormalization (x, one_g, one_b, one_m, one_v)  b = BatchNormalization (x, two_g, two_b, two_m, two_v)"
        " d = Sub (a, b)  y = Add (d, x)"
    )
    folded = fold(parse(graph(body), **batch_norm(4, "one"), **batch_norm(4, "two")), merge=True)
    plan = folded.plan
    assert (plan.batch_norms, plan.batch_norms_folded, plan.batch_norms_left) == (2, 1, 1)
    assert plan.merges[0].target in plan.left[0].nodes
    assert len(folded.model.graph.node) <= 2


def test_affines_of_one_value_are_not_merged_where_they_must_stay():
    body = "a = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)  y = Add (a, x)"
    folded = fold(parse(graph(body), **batch_norm(4)), merge=True, leftover="keep")
    assert not folded.plan.merges
    assert folded.count("BatchNormalization") == 1


def test_spelled_out_affines_alone_are_none_of_ours():
    folded = fold(parse(graph("a = Mul (x, half)  y = Add (a, x)"), half=np.array(0.5)), merge=True)
    assert not folded.plan.merges


def test_a_skipped_batch_norm_stays():
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w)  i = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)  y = Add (a, i)"
    model = parse(graph(body), w=random(4, 4, 3, 3), **batch_norm(4))
    folded = fold(model, merge=True, skip=("*",))
    assert not folded.plan.merges
    assert folded.codes == [StopCode.SKIPPED]


def test_transposed_maps():
    body = (
        "a = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w, c)"
        " b = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (x, v)  y = Add (a, b)"
    )
    model = parse(graph(body, "double[1, 4, 3, 5]"), w=random(4, 6, 3, 3), v=random(4, 6, 1, 1), c=random(6))
    folded = fold(model, merge=True)
    assert [node.op_type for node in folded.model.graph.node] == ["ConvTranspose"]


def test_transposed_maps_in_groups():
    body = (
        "a = ConvTranspose <group = 2, strides = [2, 1]> (x, w, c)  b = ConvTranspose <group = 2, strides = [2, 1]>"
        " (x, v)  y = Sub (a, b)"
    )
    model = parse(graph(body, "double[1, 4, 3, 5]"), w=random(4, 3, 3, 3), v=random(4, 3, 3, 3, seed=4), c=random(6))
    assert len(fold(model, merge=True).model.graph.node) == 1


def test_transposed_maps_whose_taps_do_not_fit_stay():
    body = (
        "a = ConvTranspose <pads = [1, 0, 1, 0]> (x, w)  b = ConvTranspose <pads = [0, 1, 0, 1]> (x, v)  y = Add (a, b)"
    )
    model = parse(graph(body, "double[1, 4, 3, 5]"), w=random(4, 6, 3, 1), v=random(4, 6, 1, 3))
    folded = fold(model, merge=True)
    assert apart(folded.plan) == [StopCode.MORE_WORK]


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (11, 6), (13, 7), (21, 10)])
def test_old_and_new_versions(opset, ir_version):
    body, _ = CASES["counted pool"]
    model = parse(graph(body, "double[2, 4, 7, 8]"), opset=opset, ir_version=ir_version)
    constants = weights()
    for name in ("w3", "c"):
        model.graph.initializer.append(numpy_helper.from_array(constants[name], name))
        if ir_version < 4:
            kind = helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, constants[name].shape)
            model.graph.input.append(kind)
    assert len(fold(model, merge=True).model.graph.node) == 1


def test_inside_branches_and_functions():
    text = """
    <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
    g (double[2, 4, 7, 8] x, bool b) => (double[N, C, P, Q] y)
      <double[4, 4, 3, 3] w3 = {%s}, double[4, 4, 1, 1] w1 = {%s}>
    {
      z = local.block (x, w3, w1)
      y = If (b) <
        then_branch = t () => (double[N, C, P, Q] p) {
          a = Conv <pads = [1, 1, 1, 1]> (z, w3)  i = Conv (z, w1)  p = Add (a, i)
        },
        else_branch = e () => (double[N, C, P, Q] q) { q = Identity (z) }
      >
    }
    <domain: "local", opset_import: ["" : 17]>
    block (x, w3, w1) => (y) { a = Conv <pads = [1, 1, 1, 1]> (x, w3)  y = Add (a, x) }
    """
    numbers = [", ".join(map(str, random(*shape).reshape(-1))) for shape in ((4, 4, 3, 3), (4, 4, 1, 1))]
    folded = fold(parse(text % tuple(numbers)), merge=True, compare=False)
    assert len(folded.plan.merges) >= 1
    assert folded.count("Conv") == 2


def test_what_is_said_about_a_merge():
    body, _ = CASES["skeletons"]
    constants = {name: weights()[name] for name in ("w3", "w31", "w13", "c")}
    (merge,) = fold(parse(graph(body), **constants), merge=True).plan.merges
    assert merge.target == "Conv(a)"
    assert set(merge.nodes) == {"Conv(b)", "Conv(d)"}
    assert sorted(merge.kernels) == [(1, 3), (3, 1), (3, 3)]
    assert (merge.kernel, merge.branches, merge.kind) == ((3, 3), 3, MergeKind.BRANCHES)
    assert (merge.multiply_adds_before, merge.multiply_adds) == (16 * 15, 16 * 9)
    assert (merge.parameters_before, merge.parameters) == (16 * 15 + 4, 16 * 9 + 4)


def test_a_fault_in_a_merged_kernel_is_found(tmp_path):
    model = network("mobileone", Variant.TORCHSCRIPT_FOLDED, tmp_path)
    folded = bnfold.fold(model)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    folded.save(good)
    assert bnfold.verify(model, onnx.load(good), device="cpu").verdict == "pass"
    broken = onnx.load(good)
    conv = [node for node in broken.graph.node if node.op_type == "Conv"][2]
    tensor = next(t for t in broken.graph.initializer if t.name == conv.input[1])
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(broken, bad)
    report = bnfold.verify(model, broken, device="cpu")
    assert report.verdict == "fail"
    assert report.sites[0].verdict == "fail"
    assert conv.name in report.sites[0].nodes


NOT_IDEMPOTENT_ONCE = {
    "a BN and a pool": "r = Relu (x) n = NORM (r) p = AveragePool <POOL> (r) y = Add (n, p)",
    "a BN before a pool": "r = Relu (x) n = NORM (r) p = AveragePool <POOL> (n) q = AveragePool <POOL> (r)"
    " y = Add (p, q)",
    "a BN before a pool, and a map": "r = Relu (x) n = NORM (r) p = AveragePool <POOL> (n) a = Conv <PADS> (r, w3)"
    " y = Add (p, a)",
    "a BN that might stand for a map": "r = Relu (x) n = NORM (r) a = Conv <PADS> (r, w3) z = Sigmoid (x)"
    " d = Sub (z, a) y = Sub (n, d)",
    "a BN that stands for another": "r = Relu (x) n = NORM (r) m = NORM (r) z = Sigmoid (x) d = Sub (z, m)"
    " y = Sub (n, d)",
    "a BN that another stands for": "r = Relu (x) n = NORM (r) m = NORM (r) z = Sigmoid (x) d = Sub (n, z)"
    " e = Sub (z, d) y = Sub (m, e)",
    "two BNs, one of which would change a sign": "r = Relu (x) n = NORM (r) m = NORM (r) z = Sigmoid (x)"
    " d = Sub (z, n) y = Sub (d, m)",
    "a pool behind two BNs": "r = Relu (x) n = NORM (r) p = AveragePool <POOL> (n) m = NORM (p) y = Add (m, r)",
}


@pytest.mark.parametrize("case", NOT_IDEMPOTENT_ONCE)
@pytest.mark.parametrize("shape", ["float[2, 4, 7, 8]", "float[2, 4, H, W]"])
def test_a_second_fold_merges_no_bn_that_has_become_a_conv(case, shape):
    pads = "pads = [1, 1, 1, 1]"
    body = NOT_IDEMPOTENT_ONCE[case].replace("POOL", f"kernel_shape = [3, 3], {pads}, count_include_pad = 1")
    body = body.replace("PADS", pads).replace("NORM (r)", "BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)")
    body = body.replace("NORM (p)", "BatchNormalization (p, bn_g, bn_b, bn_m, bn_v)")
    constants = {name: array.astype(np.float32) for name, array in batch_norm(4).items()}
    if "w3" in body:
        constants["w3"] = random(4, 4, 3, 3, dtype=np.float32)
    model = parse(graph(body, shape, "float[N, C, P, Q]"), **constants)
    for leftover in ("conv", "mul-add", "keep"):
        fold(model, merge=True, compare=False, leftover=leftover)
    fold(to_double(model), merge=True, feeds={"x": random(2, 4, 7, 8)})


def test_a_depthwise_conv_of_one_tap_becomes_no_larger_one():
    """What a BN that stays is written as; another branch of its kind may still be added to it."""
    w = {"w": random(4, 1, 1, 1), "v": random(4, 1, 1, 1, seed=1)}
    point = "a = Conv <group = 4> (x, w)"
    pool = "b = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)"
    stays = fold(parse(graph(f"{point} {pool} y = Add (a, b)"), w=w["w"]), merge=True)
    assert not stays.plan.merges
    goes = fold(parse(graph(f"{point} b = Conv <group = 4> (x, v) y = Add (a, b)"), **w), merge=True)
    assert goes.count("Conv") == 1
