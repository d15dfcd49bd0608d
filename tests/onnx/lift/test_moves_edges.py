"""Moves past ONNX operators where something is not known, not read, read twice, or seen from elsewhere."""

import numpy as np
import onnxruntime
import pytest
from onnx_fold import Folded, batch_norm, check_values, fold, parse, pure_scale, random, random_feeds

from bnfold.planning.plan import Direction

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"
IMAGE = "double[2,4,3,3]"


def neutral_in_part() -> dict[str, np.ndarray]:
    """A BN that does nothing to its last two channels, exactly."""
    return {"bn_g": np.array([2.0, 3, 1, 1]), "bn_b": np.array([1.0, -1, 0, 0]), **plain_statistics()}


def plain_statistics() -> dict[str, np.ndarray]:
    return {"bn_m": np.zeros(4), "bn_v": np.full(4, 1 - float(np.float32(1e-5)))}


def only_fold(folded: Folded) -> tuple[Direction, tuple[str, ...]]:
    (move,) = folded.plan.folds
    assert folded.codes == []
    return move.direction, move.targets


@pytest.mark.parametrize(
    ("other", "parameters"),
    [
        ("g = Gather <axis=1> (b, last) z = Sigmoid (g)", neutral_in_part()),
        ("f, g = Split <axis=1> (b, halves) z = Sigmoid (g)", neutral_in_part()),
        ("g = Slice (b, two, four, one) z = Sigmoid (g)", neutral_in_part()),
        ("g = Sub (b, b) z = Sigmoid (g)", {"bn_g": np.ones(4), "bn_b": np.arange(4.0), **plain_statistics()}),
        ("g = Mul (b, b) z = Sigmoid (g)", {"bn_g": -np.ones(4), "bn_b": np.zeros(4), **plain_statistics()}),
    ],
)
def test_what_arrives_as_nothing_hides_no_other_reader(other: str, parameters: dict[str, np.ndarray]) -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y, double[A,B,C,D] z) {{ b = {NORM % 'x'} y = Conv (b, w) {other} }}"
    constants = {"last": [2, 3], "halves": [2, 2], "two": [2], "four": [4], "one": [1]}
    integers = {name: np.array(numbers) for name, numbers in constants.items() if name in other}
    fold(parse(text, w=random(4, 4, 1, 1), **integers, **parameters))


@pytest.mark.parametrize(
    ("op", "numbers"),
    [
        ("r = Reshape (m, s)", [2, 4, 3, 3]),
        ("r = Expand (m, s)", [2, 4, 3, 3]),
        ("r = Tile (m, s)", [1, 1, 1, 1]),
        ('r = Pad <mode="edge"> (m, s)', [0, 0, 1, 1, 0, 0, 1, 1]),
        ("r = Resize (m, , , s)", [2, 4, 6, 6]),
        ("r = Slice (m, s, far)", [0, 0, 0, 0]),
        ("r = ReduceMean (m, s)", [2, 3]),
    ],
)
@pytest.mark.parametrize("forward", [False, True])
def test_a_shape_that_is_computed_while_the_model_runs(op: str, numbers: list[int], forward: bool) -> None:
    first, last = (NORM % "x", "Conv (r, w)") if forward else ("Conv (x, w)", NORM % "r")
    text = f"agraph ({IMAGE} x, int64[{len(numbers)}] s) => (double[A,B,C,D] y) {{ m = {first} {op} y = {last} }}"
    far = {"far": np.full(4, 100)} if "far" in op else {}
    model = parse(text, opset=18, w=random(4, 4, 1, 1), **far, **batch_norm(4))
    fold(model, feeds={"x": random(2, 4, 3, 3), "s": np.array(numbers)})


@pytest.mark.parametrize(
    ("op", "numbers", "rank", "channels"),
    [
        ("r = Gather (table, s)", 1, 1, 4),
        ("r = Gather <axis=1> (table, s)", [1, 0], 2, 2),
        ("r = Gather (table, s)", [[1, 0]], 3, 2),
        ("r = Expand (table, s)", [2, 4, 4], 3, 4),
        ("r = Reshape (table, s)", [4, 2, 2], 3, 2),
        ("r = Slice (table, s, far)", [0, 0], 2, 4),
        ("r = Tile (table, s)", [1, 2], 2, 8),
    ],
)
def test_a_constant_read_by_position_is_no_value_to_change(op: str, numbers: object, rank: int, channels: int) -> None:
    array = np.array(numbers)
    shape = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    result = f"double[{','.join('ABC'[:rank])}]"
    norm = "y = Mul (r, c)" if rank == 1 else f"y = {NORM % 'r'}"
    constants = {"table": random(4, 4), **({"far": np.array([9, 9])} if "far" in op else {})}
    constants |= {"c": random(channels)} if rank == 1 else batch_norm(channels)
    text = f"agraph (int64{shape} s) => ({result} y) {{ {op} {norm} }}"
    folded = fold(parse(text, **constants), feeds={"s": array})
    assert not folded.plan.folds


def test_a_size_that_stays_may_still_be_resampled() -> None:
    text = (
        "agraph (double[1,2,3,4] x) => (double[1,2,3,4] y) <float[4] sc={1,1,1,1.2}>"
        ' { m = MatMul (x, w) r = Resize <mode="linear"> (m, , sc) y = Mul (r, c) }'
    )
    fold(parse(text, w=random(4, 4), c=random(4)))


@pytest.mark.parametrize("forward", [False, True])
def test_an_output_that_nothing_reads_gets_a_new_name(forward: bool) -> None:
    first, last = (NORM % "x", "Conv (r, w)") if forward else ("Conv (x, w)", NORM % "r")
    text = (
        f"agraph (double[2,4,4,3] x) => (double[2,4,2,3] y) {{ m = {first} r, o = Split <axis=2> (m, halves)"
        f" y = {last} }}"
    )
    folded = fold(parse(text, w=random(4, 4, 1, 1), halves=np.array([2, 2]), **batch_norm(4)))
    assert len(folded.plan.folds) == 1


def test_an_output_of_the_model_beside_one_that_changes_keeps_its_name() -> None:
    text = (
        f"agraph ({IMAGE} x) => (double[2,2,3,3] y, double[2,2,3,3] o) {{ m = Conv (x, w) r, o = Split"
        f" <axis=1> (m, halves) y = {NORM % 'r'} }}"
    )
    folded = fold(parse(text, w=random(4, 4, 1, 1), halves=np.array([2, 2]), **batch_norm(2)))
    assert only_fold(folded)[0] is Direction.BACKWARD


def test_scale_backward_and_shift_forward() -> None:
    """A gate lets only the scale back, an Add behind it lets the shift on: each goes its own way."""
    text = (
        f"agraph ({IMAGE} x, {IMAGE} z) => ({IMAGE} y) {{ m = Conv (x, w) g = Sigmoid (z) p = Mul (m, g) b ="
        f" {NORM % 'p'} s = Sum (b, z) y = Conv (s, w) }}"
    )
    folded = fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)))
    direction, targets = only_fold(folded)
    assert direction is Direction.BOTH
    assert len(targets) == 2


def test_a_scale_goes_backward_where_it_can_though_all_could_go_forward() -> None:
    """One scale for each output costs a quantised weight nothing, and what lies between has channels of one size."""
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ m = Conv (x, w) r = Relu (m) b = {NORM % 'r'} y = Conv (b, w) }}"
    constants = {"w": random(4, 4, 1, 1), "bn_b": random(4), **plain_statistics()}
    direction, targets = only_fold(fold(parse(text, bn_g=np.array([2.0, 3, 1, 4]), **constants)))
    assert (direction, len(targets)) == (Direction.BOTH, 2)
    direction, targets = only_fold(fold(parse(text, bn_g=np.array([2.0, -3, 1, 4]), **constants)))
    assert (direction, len(targets)) == (Direction.FORWARD, 1)


def test_a_value_captured_by_a_nested_graph_stays() -> None:
    text = (
        f"agraph ({IMAGE} x, bool f) => ({IMAGE} y, {IMAGE} z) {{ m = Conv (x, w) r = Identity (m) y = {NORM % 'r'}"
        f" z = If (f) <then_branch = t () => ({IMAGE} a) {{ a = Relu (r) }},"
        f" else_branch = e () => ({IMAGE} b) {{ b = Tanh (r) }}> }}"
    )
    folded = fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)))
    assert folded.codes == ["captured"]


def test_moves_inside_a_nested_graph() -> None:
    text = (
        f"agraph ({IMAGE} x, bool f) => ({IMAGE} z) {{ z = If (f) <then_branch = t () => ({IMAGE} a) {{ m = Conv (x, w)"
        f" r = MaxPool <kernel_shape=[1,1]> (m) s = Resize (r, , one) a = {NORM % 's'} }},"
        f" else_branch = e () => ({IMAGE} b) {{ b = Tanh (x) }}> }}"
    )
    parameters = {**batch_norm(4), "bn_g": np.ones(4)}
    folded = fold(parse(text, w=random(4, 4, 1, 1), one=np.ones(4, np.float32), **parameters))
    assert only_fold(folded)[0] is Direction.BACKWARD


def test_a_zero_that_a_caller_may_override_is_no_zero() -> None:
    text = (
        f"agraph ({IMAGE} x, double v) => (double[2,4,5,5] y) {{ m = Conv (x, w) r = Pad (m, pads, v) y ="
        f" {NORM % 'r'} }}"
    )
    model = parse(text, w=random(4, 4, 1, 1), pads=np.array([0, 0, 1, 1] * 2), v=np.array(0.0), **pure_scale(4))
    assert fold(model).codes == ["no_rule"]


def test_maxpool_with_positions() -> None:
    text = (
        f"agraph ({IMAGE} x) => (double[2,4,2,2] y, int64[2,4,2,2] i) {{ m = Conv (x, w) r, i = MaxPool"
        f" <kernel_shape=[2,2]> (m) y = {NORM % 'r'} }}"
    )
    model = parse(text, w=random(4, 4, 1, 1), **{**batch_norm(4), "bn_g": np.zeros(4)})
    assert fold(model, compare=False).codes == ["no_rule"]


def test_a_position_embedding_before_several_norms() -> None:
    """The shift goes into the larger constant, and the scale scales it."""
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ m = Conv (x, w) e = Add (m, table) y = {NORM % 'e'} }}"
    folded = fold(parse(text, w=random(4, 4, 1, 1), table=random(1, 4, 3, 3), **batch_norm(4)))
    direction, targets = only_fold(folded)
    assert direction is Direction.BACKWARD
    assert folded.count("Add") == 1
    assert "Add(e)" in targets


def test_attention_and_normalisations_stay_whole() -> None:
    """The scaling of an attention and the last two steps of a spelled-out LayerNorm are no affines to take apart."""
    text = """agraph (double[2,4,4] x) => (double[2,4,4] y) {
        mean = ReduceMean <axes=[-1]> (x) d = Sub (x, mean) sq = Mul (d, d) v = ReduceMean <axes=[-1]> (sq)
        ve = Add (v, eps) sd = Sqrt (ve) n = Div (d, sd) ng = Mul (n, gamma) nb = Add (ng, beta)
        q = MatMul (nb, wq) k = MatMul (nb, wk) kt = Transpose <perm=[0,2,1]> (k) qk = MatMul (q, kt)
        s = Mul (qk, half) p = Softmax (s) a = MatMul (p, nb) y = MatMul (a, wk)
    }"""
    constants = {"gamma": random(4), "beta": random(4, seed=2), "wq": random(4, 4), "wk": random(4, 4, seed=3)}
    model = parse(text, eps=np.array(1e-5), half=np.array(0.5), **constants)
    folded = fold(model)
    assert folded.model == folded.original


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_a_model_without_anything_to_fold_comes_back_as_it_was(dtype: str) -> None:
    kind = {"float": np.float32, "double": np.float64}[dtype]
    text = (
        f"agraph ({dtype}[2,4,3,3] x) => ({dtype}[2,4,3,3] y) {{ a = Conv (x, w) b = Relu (a) c = Mul (b,"
        f" half) y = Sigmoid (c) }}"
    )
    model = parse(text, w=random(4, 4, 1, 1, dtype=kind), half=np.array(0.5, kind))
    assert fold(model, compare=False).model.SerializeToString() == model.SerializeToString()


def test_the_comparison_sees_a_dropped_shift() -> None:
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ m = Conv (x, w) y = {NORM % 'm'} }}"
    model, other = (
        parse(text, w=random(4, 4, 1, 1), **{**batch_norm(4), "bn_b": np.full(4, b)}) for b in (1, 1 + 1e-8)
    )
    with pytest.raises(AssertionError, match="off by"):
        check_values(model, other, random_feeds(model))


DIAMONDS = {
    "turned": ("a, b = Split <axis=1> (m, halves) r = Concat <axis=1> (b, a)", ["Conv"]),
    "one part goes nowhere": ("a, b = Split <axis=1> (m, halves) r = Concat <axis=1> (a, a)", None),
    "added": ("a, b = Split <axis=1> (m, halves) s = Add (b, a) r = Concat <axis=1> (s, s)", None),
    "a part of a part": (
        "a, b = Split <axis=1> (m, halves) c, d = Split <axis=1> (b, ones) r = Concat <axis=1> (d, a, c)",
        ["Conv"],
    ),
    "two in a row": (
        "a, b = Split <axis=1> (m, halves) t = Concat <axis=1> (b, a)"
        " c, d = Split <axis=1> (t, three) r = Concat <axis=1> (d, c)",
        ["Conv"],
    ),
}


@pytest.mark.parametrize("name", DIAMONDS)
def test_what_comes_to_one_map_by_two_ways(name: str) -> None:
    """Each way brings what it has for its own channels; a map that kept only the last of them would be wrong."""
    op, targets = DIAMONDS[name]
    text = f"agraph ({IMAGE} x) => ({IMAGE} y) {{ m = Conv (x, w) {op} y = {NORM % 'r'} }}"
    sizes = {"halves": [2, 2], "ones": [1, 1], "three": [3, 1]}
    integers = {key: np.array(numbers) for key, numbers in sizes.items() if key in op}
    folded = fold(parse(text, w=random(4, 4, 1, 1), **integers, **batch_norm(4)))
    if targets is None:
        assert folded.codes == ["other_consumers"]
    else:
        assert only_fold(folded)[0] is Direction.BACKWARD
        assert [target.split("(")[0] for target in only_fold(folded)[1]] == targets


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize(
    "op",
    [
        "r = Pad (m, nothing)",
        "r = AveragePool <kernel_shape = [2, 2], strides = [1, 1], ceil_mode = 1, count_include_pad = 1> (m)",
        "r = AveragePool <kernel_shape = [2, 2], count_include_pad = 1> (m)",
        "r = Tile (m, once)",
    ],
)
def test_what_pads_nothing_and_what_counts_nothing_but_its_input(op: str, forward: bool) -> None:
    """An average counts nothing else where its last window ends with its input."""
    first, last = (NORM % "x", "Conv (r, w)") if forward else ("Conv (x, w)", NORM % "r")
    text = f"agraph ({IMAGE} x) => (double[A,B,C,D] y) {{ m = {first} {op} y = {last} }}"
    numbers = {"nothing": [0] * 8, "once": [1, 1, 1, 1]}
    given = {name: np.array(listed) for name, listed in numbers.items() if name in op}
    only_fold(fold(parse(text, w=random(4, 4, 1, 1), **given, **batch_norm(4))))


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_a_pad_that_crops_is_a_cut(mode: str, forward: bool) -> None:
    """Also of channels; onnx's evaluator has no such Pad, so it is onnxruntime that says what it does."""
    first, last = (NORM % "x", "Conv (r, w)") if forward else ("Conv (x, w)", NORM % "r")
    op = f'r = Pad <mode = "{mode}"> (m, cut)'
    text = f"agraph (float[2,4,3,3] x) => (float[A,B,C,D] y) {{ m = {first} {op} y = {last} }}"
    constants = {
        "w": random(4, 2 if forward else 4, 1, 1, dtype=np.float32),
        "cut": np.array([0, -1, 0, -1, 0, -1, -1, 0]),
        **batch_norm(4 if forward else 2, dtype=np.float32),
    }
    model = parse(text, **constants)
    folded = fold(model, compare=False)
    only_fold(folded)
    feeds = {"x": random(2, 4, 3, 3, dtype=np.float32)}
    results = [
        onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for made in (model, folded.model)
    ]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def reason(body: str, shape: str = "double[2,4,H,W]", **constants: np.ndarray) -> str:
    text = f"agraph ({shape} x) => (double[A,B,C,D] y) {{ c = Conv (x, w) {body} }}"
    (left,) = fold(parse(text, w=random(4, 4, 1, 1), **constants), compare="around" not in constants).plan.left
    return left.reason


def test_reasons_are_true() -> None:
    norm = f"y = {NORM % 'r'}"
    bn = batch_norm(4)
    pool = "r = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, count_include_pad = 1> (c)"
    assert "counts zeros where its windows reach beyond its input, or may" in reason(f"{pool} {norm}", **bn)
    padded = "r = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (c)"
    assert "counts the zeros of its padding" in reason(f"{padded} {norm}", **bn)
    pad = {"around": np.array([0, 0, 1, 0, 0, 0, -1, 0]), **bn}
    assert "puts zeros beside the elements" in reason(f"r = Pad (c, around) {norm}", **pad)
    total = reason(f"r = ReduceSum (c, axes) {norm}", axes=np.array([2, 3]), **bn)
    assert "adds up as many shifts as elements" in total
    batch = reason("y = Mul (c, k)", "double[2,4,3,3]", k=random(2, 1, 1, 1))
    assert "varies along axis 0 of 4, so it does not act on the output channels of Conv" in batch
