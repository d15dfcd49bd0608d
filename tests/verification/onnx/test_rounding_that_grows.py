"""Right folds that rounding takes far: sums over images, and an order that nearly equal numbers have."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_fold import batch_norm, parse, random

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.report import Report, Verdict
from bnfold.verification.onnx.outputs.parameters import open_model

SIDES = (256, 192)
POOLS = {
    "GlobalAveragePool": "GlobalAveragePool (c)",
    "AveragePool": f"AveragePool <kernel_shape = [{SIDES[0]}, {SIDES[1]}]> (c)",
    "ReduceMean": "ReduceMean <axes = [2, 3], keepdims = 1> (c)",
}
BN = "BatchNormalization"


def single(*shape: int, seed: int = 0) -> np.ndarray:
    return random(*shape, seed=seed, dtype=np.float32)


def pooled(pool: str) -> onnx.ModelProto:
    text = (
        f"g (float[1, 3, {SIDES[0]}, {SIDES[1]}] x) => (float[1, 8, 1, 1] y)"
        f" {{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) p = {pool} y = {BN} (p, n_g, n_b, n_m, n_v) }}"
    )
    return parse(text, w=single(8, 3, 3, 3), b=single(8), **batch_norm(8, "n", dtype=np.float32))


def changed(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """A copy with a constant of that name, or of one that begins with it, times a number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name.startswith(name))
    array = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.mark.parametrize("pool", POOLS)
def test_an_average_over_a_large_image(pool: str) -> None:
    """Its rounding is that of the original in all of its copies, and another one in the folded model."""
    original = pooled(POOLS[pool])
    folded = bnfold.fold(original).model
    report = bnfold.verify(original, folded, device="cpu", samples=1)
    assert report.verdict is Verdict.PASS
    assert report.outputs[0].noise_ratio < 2
    wrong = bnfold.verify(original, changed(folded, "b", 1.001), device="cpu", samples=1)
    assert wrong.outputs[0].verdict is Verdict.FAIL


def _half(image: np.ndarray) -> np.ndarray:
    """With a blank border, as a letterbox has."""
    image[..., image.shape[-1] // 2 :] = 0.5
    return image


BLANK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "one number": lambda image: np.full_like(image, 1 / 3),
    "half": _half,
    "rows": lambda image: np.broadcast_to(image[..., :1], image.shape).copy(),
}


@pytest.mark.parametrize("image", BLANK)
@pytest.mark.parametrize("pool", POOLS)
def test_a_blank_image(pool: str, image: str) -> None:
    """All of its elements are rounded to one side, and the sums are carried to one side."""
    original = pooled(POOLS[pool])
    folded = bnfold.fold(original).model
    inputs = {"x": BLANK[image](np.abs(single(1, 3, *SIDES)))}
    report = bnfold.verify(original, folded, device="cpu", inputs=inputs)
    assert report.verdict is Verdict.PASS
    assert report.outputs[0].noise_ratio < 2
    assert report.sites[0].ratio < 2
    for name in ("b", "w"):
        wrong = bnfold.verify(original, changed(folded, name, 1.03), device="cpu", inputs=inputs)
        assert (wrong.outputs[0].verdict is Verdict.FAIL) is (name == "b" or image != "zeros")


def resized(shift: float, *, mode: str = "cubic") -> onnx.ModelProto:
    text = (
        "g (float[1, 3, 9, 8] x) => (float[n, c, h, w_] y) { c = Conv (x, w)"
        f' r = Resize <mode = "{mode}"> (c, , scales) y = {BN} (r, n_g, n_b, n_m, n_v) }}'
    )
    norm = {**batch_norm(4, "n", dtype=np.float32), "n_b": np.full(4, shift, np.float32)}
    return parse(text, w=single(4, 3, 1, 1), scales=np.array([1, 1, 1.7, 0.6], np.float32), **norm)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_weights_of_a_cubic_resize_that_do_not_quite_sum_to_one(shift: float) -> None:
    """A shift before it comes out up to 30 roundings off; the sites and the exact gate know that it is right."""
    original = resized(shift)
    result = bnfold.fold(original)
    report = result.verify(device="cpu")
    assert report.verdict is Verdict.PASS
    assert report.exact.verdict is Verdict.PASS
    assert report.sites[0].ratio < 12
    assert report.outputs[0].verdict is Verdict.PASS or shift
    for name in result.model.graph.node[0].input[1:]:
        wrong = bnfold.verify(original, changed(result.model, name, 1.01), device="cpu")
        assert wrong.sites[0].verdict is Verdict.FAIL


def test_what_moves_is_long_and_of_float32() -> None:
    def signs(text: str, opset: int = 17) -> int:
        model = parse(f"g ({text}", opset=opset, w=np.ones((4, 4, 1, 1), np.float32))
        return len(open_model(from_proto(model)).signs)

    conv = "=> (float[a,b,c,d] y) { c = Conv (x, w)"
    assert signs(f"float[1,4,9,9] x) {conv} y = GlobalAveragePool (c) }}") == 1
    assert signs(f"float[1,4,9,9] x) {conv} y = AveragePool <kernel_shape = [3, 3]> (c) }}") == 0
    assert signs(f"float[1,4,99,99] x) {conv} y = AveragePool <kernel_shape = [33, 33]> (c) }}") == 1
    size = 'Resize <mode = "{}"> (c, , w)'
    assert [signs(f"float[1,4,9,9] x) {conv} y = {size.format(mode)} }}") for mode in ("cubic", "linear")] == [1, 0]
    half = "=> (float16[a,b,c,d] y) { c = Conv (x, w) h = Cast <to = 10> (c)"
    assert signs(f"float[1,4,9,9] x) {half} y = GlobalAveragePool (h) }}") == 0
    assert signs(f"float[1,4,9,9] x) {conv} y = GlobalAveragePool (c) }}", opset=6) == 0


ORDERS = {
    "TopK": ("f = Reshape (sn, two) v, i = TopK (f, one)", "u = Reshape (t, boxes) y = Gather (u, i)"),
    "NonMaxSuppression": (
        "f = Reshape (sn, row) b = Reshape (t, batch) z = NonMaxSuppression (b, f, one)"
        " i = Gather <axis = 1> (z, last)",
        "u = Reshape (t, boxes) y = Gather (u, i)",
    ),
    "ArgMax": ("i = ArgMax <axis = 3, keepdims = 0> (sn)", "u = Reshape (t, boxes) y = Gather (u, i)"),
}
SIZES = {"two": [2], "row": [1, 1, 2], "batch": [1, 2, 4], "boxes": [2, 4], "one": [1]}


def detector(order: str) -> onnx.ModelProto:
    """Two places with a score and a box each; the box of the better one comes out, and which it is."""
    body = " ".join(ORDERS[order])
    rank = 3 if order == "ArgMax" else 1
    found = f"float[{', '.join('ABCL'[-rank - 1 :])}] y, int64[{', '.join('ABCL'[-rank - 1 : -1])}] i"
    text = (
        f"g (float[1, 8, 1, 2] x) => ({found}) {{"
        f" s = Conv (x, sw) sn = {BN} (s, s_g, s_b, s_m, s_v) o = Conv (x, ow) on = {BN} (o, o_g, o_b, o_m, o_v)"
        f" t = Transpose <perm = [0, 2, 3, 1]> (on) {body} }}"
    )
    weights = {"sw": single(1, 8, 1, 1), "ow": single(4, 8, 1, 1, seed=1)}
    norms = {**batch_norm(1, "s", dtype=np.float32), **batch_norm(4, "o", dtype=np.float32)}
    norms["s_g"] = np.abs(norms["s_g"])
    sizes = {name: np.array(size) for name, size in SIZES.items() if f"{name})" in body}
    last = {"last": np.array(2)} if "last" in body else {}
    return parse(text, **weights, **norms, **sizes, **last)


def nearly_equal(seed: int) -> np.ndarray:
    """Two places whose scores differ by a rounding or less."""
    draw = np.random.default_rng(seed)
    weight = single(1, 8, 1, 1).reshape(8).astype(np.float64)
    one, other = draw.standard_normal((2, 8)).astype(np.float32)
    other[7] = (weight @ one - weight[:7] @ other[:7]) / weight[7]
    return np.stack([one, other], -1).reshape(1, 8, 1, 2)


def reports(order: str) -> list[tuple[Report, np.ndarray]]:
    original = detector(order)
    result = bnfold.fold(original)
    assert len(result.plan.folds) == 2
    feeds = [nearly_equal(seed) for seed in range(4)]
    return [(result.verify(device="cpu", inputs={"x": feed}), feed) for feed in feeds]


@pytest.mark.parametrize("order", ORDERS)
def test_boxes_that_change_places(order: str) -> None:
    """Where the order is that of noise the outputs tell nothing, and the other gates prove the fold."""
    found = reports(order)
    assert all(report.verdict is Verdict.PASS for report, _ in found)
    swapped = [feed for report, feed in found if any(output.max_abs for output in report.outputs if output.name == "i")]
    assert swapped
    original = detector(order)
    folded = bnfold.fold(original).model
    alone = bnfold.verify(original, folded, device="cpu", inputs={"x": swapped[0]})
    assert alone.verdict is Verdict.INCONCLUSIVE
    for name in ("sw", "ow"):
        wrong = bnfold.verify(original, changed(folded, name, 1.1), device="cpu", inputs={"x": swapped[0]})
        assert wrong.verdict is Verdict.FAIL
        assert wrong.sites[0].verdict is Verdict.FAIL
