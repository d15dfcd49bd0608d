"""What a run takes: counted by hand, and not at all where something is not known."""

import numpy as np
import pytest
from onnx_fold import parse, random

from bnfold.onnx.costs import run_costs
from bnfold.onnx.file.load import from_proto

FOUR = {name: np.ones(4, np.float32) for name in "gbmv"}


def costs(body, **constants):
    weights = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    return run_costs(from_proto(parse(body, **weights)))


@pytest.mark.parametrize("batch", ["batch", "1"])
def test_a_convolution_and_its_batch_norm_with_batch_1(batch):
    body = f"""net (float[{batch}, 3, 8, 8] x) => (float[{batch}, 4, 6, 6] y)
    {{ c = Conv (x, w)  n = BatchNormalization (c, g, b, m, v)  y = Relu (n) }}"""
    output = 4 * 6 * 6
    # Most is alive while the Conv runs: the input is larger than what the others make.
    assert costs(body, w=random(4, 3, 3, 3), **FOUR) == (output * 3 * 9 + output, 4 * (3 * 64 + output))


def test_products_and_a_transposed_convolution():
    body = """net (float[2, 3, 5] x, float[1, 4, 2, 2] z) => (float[2, 3, 6] y, float[7, 2] q, float[1, 3, 3, 3] t)
    { y = MatMul (x, w)  f = Flatten (x)  q = Gemm <transA = 1> (r, f2)  t = ConvTranspose (z, k)
      r = Slice (f, zero, seven, one)  f2 = Identity (f3)  f3 = Slice (f, zero, two, one) }"""
    constants = {"zero": np.array([0, 0]), "seven": np.array([2, 7]), "two": np.array([2, 2]), "one": np.array([0, 1])}
    weights = {"w": random(5, 6, dtype=np.float32), "k": random(4, 3, 2, 2, dtype=np.float32)}
    found = run_costs(from_proto(parse(body, **constants, **weights)))
    assert found is not None
    assert found[0] == 2 * 3 * 6 * 5 + 7 * 2 * 2 + 4 * 2 * 2 * (3 * 2 * 2)


def test_a_value_lives_until_its_last_use():
    body = """net (float[1, 8] x) => (float[1, 8] y)
    { a = Relu (x)  b = Relu (a)  c = Relu (b)  y = Add (a, c) }"""
    # While the third Relu runs, a waits for the Add; x is gone.
    assert costs(body) == (0, 3 * 8 * 4)


def test_constants_and_what_follows_from_them_are_weights():
    body = """net (float[1, 2] x) => (float[1, 2] y)
    { big = Relu (w)  s = ReduceSum (big)  y = Mul (x, s) }"""
    assert costs(body, w=np.ones(1000)) == (2, 2 * 2 * 4)


@pytest.mark.parametrize(
    "body",
    [
        "net (float[1, 4, H, W] x) => (float[1, 4, H, W] y) { y = Relu (x) }",
        "net (float[1, 4] x) => (float[N, 4] y) { i = NonZero (x)  j = Transpose (i)  y = GatherND (x, j) }",
        'net (float[2, 2] x) => (float[2, 2] y) { y = Einsum <equation = "ij,jk->ik"> (x, x) }',
        """net (float[2] x, bool c) => (float[2] y)
        { y = If (c) <then_branch = a () => (float[2] p) { p = Relu (x) }, else_branch = b () => (float[2] q)
          { q = Neg (x) }> }""",
        "net (string[2] x) => (string[2] y) { y = Identity (x) }",
    ],
    ids=["open sizes", "sizes of the data", "uncounted", "nested", "strings"],
)
def test_what_is_not_known_is_not_guessed(body):
    assert costs(body) is None
