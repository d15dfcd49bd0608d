"""What a second fold could merge, the first has to: a BN that stays is a depthwise convolution to the second."""

from onnx_fold import batch_norm, fold, parse, random, to_single

from bnfold.reasons import StopCode

BN = "BatchNormalization (x, bn_g, bn_b, bn_m, bn_v)"
PADDED, TRANSPOSED = "Conv <pads = [1, 1, 1, 1]>", "ConvTranspose <pads = [1, 1, 1, 1]>"
WEIGHTS = {"w": random(4, 4, 3, 3), "v": random(4, 4, 3, 3, seed=1), "d": random(4, 1, 1, 1), "p": random(4, 4, 1, 1)}


def folded(body: str, more_outputs: str = ""):
    """Folds in float64, where the values are compared, and in float32, where a BN that stays becomes a convolution."""
    text = f"g (double[N, 4, H, W] x, double[1, 4, 1, 1] z) => (double[A, B, C, D] y {more_outputs}) {{ {body} }}"
    constants = {name: array for name, array in {**WEIGHTS, **batch_norm(4)}.items() if f" {name}" in body}
    model = parse(text, **constants)
    fold(to_single(model), compare=False, merge=True)
    return fold(model, feeds={"x": random(2, 4, 6, 5), "z": random(1, 4, 1, 1)}, merge=True)


def test_a_bn_joins_the_convolution_beside_a_transposed_one() -> None:
    result = folded(f"t = {TRANSPOSED} (x, w) c = {PADDED} (x, v) n = {BN} s = Add (n, c) y = Add (s, t)")
    assert (result.count("Conv"), result.count("ConvTranspose"), result.codes) == (1, 1, [])


def test_a_bn_takes_a_depthwise_convolution_that_cannot_take_it() -> None:
    """Without the BN, what is subtracted from it would have to be negated."""
    result = folded(f"r = Relu (x) c = Conv <group = 4> (x, d) n = {BN} q = Sub (n, r) y = Add (c, q)")
    merge = result.plan.merges[0]
    assert (merge.target, merge.nodes) == ("BatchNormalization(n)", ("Conv(c)",))


def test_a_branch_whose_shape_is_read_does_not_keep_the_others_apart() -> None:
    body = (
        f"a = {PADDED} (x, w) b = {PADDED} (x, v) i = Conv (x, p) h = Shape (i)"
        f" k = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (i)"
        " s = Add (a, b) y = Add (s, k)"
    )
    result = folded(body, ", int64[4] h")
    assert result.count("Conv") == 2
    assert result.plan.apart[0].code is StopCode.SHAPE_IS_READ


def test_maps_of_other_axes_of_one_value() -> None:
    """A MatMul acts on the last axis of an image, and a convolution has two axes behind its channels."""
    text = (
        "g (double[N, 4, 6, 6] x) => (double[A, B, C, D] y) { a = MatMul (x, w) b = MatMul (x, v)"
        " c = Conv <pads = [1, 1, 1, 1]> (x, k) s = Add (a, b) y = Add (s, c) }"
    )
    constants = {"w": random(6, 6), "v": random(6, 6, seed=1), "k": random(4, 4, 3, 3)}
    assert fold(parse(text, **constants), feeds={"x": random(2, 4, 6, 6)}, merge=True).count("MatMul") == 1
