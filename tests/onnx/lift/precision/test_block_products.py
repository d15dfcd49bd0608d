"""MatMulNBits, as onnxruntime's weight-only quantisation writes it: folds and refusals, on onnxruntime unoptimised."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_fold import batch_norm, random, run_unoptimised, scale_and_shift

import bnfold
from bnfold.result import FoldResult

ROWS, COLUMNS, BLOCK = 5, 40, 16
BLOCKS = 3


def integers(bits: int, *, low: int = 0) -> np.ndarray:
    return np.random.default_rng(bits).integers(low, 1 << bits, (ROWS, BLOCKS * BLOCK)).astype(np.uint8)


def zero_points(bits: int) -> np.ndarray:
    return np.random.default_rng(bits + 1).integers(0, 1 << bits, (ROWS, BLOCKS)).astype(np.uint8)


def packed(rows: np.ndarray, bits: int) -> np.ndarray:
    """Low bits first, each row in bytes of its own."""
    per_byte = 8 // bits
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % per_byte))).reshape(len(rows), -1, per_byte)
    return sum(padded[..., place].astype(int) << (place * bits) for place in range(per_byte)).astype(np.uint8)


def steps() -> np.ndarray:
    return np.random.default_rng(9).uniform(0.01, 0.1, (ROWS, BLOCKS)).astype(np.float32)


def model(
    bits: int, inputs: str = "q s", nodes: Sequence[onnx.NodeProto] = (), **constants: np.ndarray
) -> onnx.ModelProto:
    """A MatMulNBits, between BNs or other nodes if given, else before a BN."""
    reads = "a" if any("a" in other.output for other in nodes) else "x"
    sizes = {"K": COLUMNS, "N": ROWS, "bits": bits, "block_size": BLOCK}
    product = helper.make_node(
        "MatMulNBits", [reads, *inputs.replace("-", "").split(" ")], ["p"], domain="com.microsoft", **sizes
    )
    before = [other for other in nodes if "a" in other.output]
    after = [other for other in nodes if "y" in other.output] or [norm("p", "y")]
    channels = COLUMNS if before else ROWS
    given = {
        "q": packed(integers(bits), bits).reshape(ROWS, BLOCKS, -1),
        "s": steps(),
        **batch_norm(channels, dtype=np.float32),
        **constants,
    }
    chain = [*before, product, *(other for other in nodes if "z" in other.output), *after]
    read = {name for node in chain for name in node.input}
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, c]) for n, c in (("x", COLUMNS), ("y", ROWS))
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in given.items() if name in read]
    graph = helper.make_graph(chain, "product", values[:1], values[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def norm(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, "bn_g", "bn_b", "bn_m", "bn_v"], [result])


def fold(original: onnx.ModelProto) -> FoldResult:
    result = bnfold.fold(original, leftover="keep")
    assert result.check().verdict == "pass", result.check().reason
    x = random(2, COLUMNS, dtype=np.float32)
    before, after = (run_unoptimised(proto, {"x": x}) for proto in (original, result.model))
    np.testing.assert_allclose(after, before, rtol=2e-6, atol=2e-6 * np.abs(before).max())
    return result


def node(proto: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(found for found in proto.graph.node if found.op_type == op_type)


def stored(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == name)


def weight(proto: onnx.ModelProto, bits: int) -> np.ndarray:
    """What the definition of the operator gives, in float64."""
    names = node(proto, "MatMulNBits").input
    q, s = stored(proto, names[1]).reshape(ROWS, -1), stored(proto, names[2]).astype(float).reshape(ROWS, BLOCKS)
    numbers = unpacked(q, bits)
    zero = np.full((ROWS, BLOCKS), 1 << (bits - 1), float)
    if len(names) > 3 and names[3]:
        z = stored(proto, names[3])
        zero = z.reshape(ROWS, BLOCKS) if z.dtype == np.float32 else unpacked(z.reshape(ROWS, -1), bits)[:, :BLOCKS]
    return np.repeat(s, BLOCK, 1)[:, :COLUMNS] * (numbers[:, :COLUMNS] - np.repeat(zero, BLOCK, 1)[:, :COLUMNS])


def unpacked(rows: np.ndarray, bits: int) -> np.ndarray:
    parts = [(rows.astype(int) >> low) % (1 << bits) for low in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(len(rows), -1).astype(float)


CASES = {
    "4 bits": (4, {}),
    "8 bits": (8, {}),
    "4 bits that can be turned about the middle": (4, {"q": packed(integers(4, low=1), 4).reshape(ROWS, BLOCKS, -1)}),
    "zero points": (4, {"z": packed(zero_points(4), 4)}),
    "zero points in one row, as the scales": (
        4,
        {"z": packed(zero_points(4), 4).reshape(-1), "s": steps().reshape(-1)},
    ),
    "zero points of 8 bits": (8, {"z": zero_points(8)}),
    "zero points that are floats": (4, {"z": zero_points(4).astype(np.float32) + np.float32(0.25)}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_row_is_scaled_and_no_integer_leaves_its_range(name: str) -> None:
    bits, constants = CASES[name]
    original = model(bits, inputs="q s z" if "z" in constants else "q s", **constants)
    result = fold(original)
    assert result.plan.batch_norms_left == 0
    assert [found.op_type for found in result.model.graph.node] == ["MatMulNBits", "Add"]
    scale, shift = scale_and_shift(batch_norm(ROWS, dtype=np.float32))
    exact = scale[:, None] * weight(original, bits)
    np.testing.assert_allclose(weight(result.model, bits), exact, rtol=2**-23, atol=0)
    np.testing.assert_array_equal(stored(result.model, node(result.model, "Add").input[1]), shift.astype(np.float32))
    old, new = (node(proto, "MatMulNBits").input for proto in (original, result.model))
    for before, after in zip(old[1:3], new[1:3], strict=True):
        assert stored(result.model, after).shape == stored(original, before).shape
    beyond_reach = unpacked(stored(original, "q").reshape(ROWS, -1), bits)[scale < 0, :COLUMNS] == 0
    assert (len(new) > 3) == ("z" in constants or beyond_reach.any())


@pytest.mark.parametrize("own", [True, False])
def test_the_shift_goes_into_the_bias_that_is_there(own: bool) -> None:
    bias = random(ROWS, dtype=np.float32)
    add = [helper.make_node("Add", ["p", "b"], ["z"]), norm("z", "y")]
    original = model(4, "q s - - b", b=bias) if own else model(4, "q s", add, b=bias)
    result = fold(original)
    assert result.plan.batch_norms_left == 0
    kinds = [found.op_type for found in result.model.graph.node]
    assert kinds == ["MatMulNBits"] if own else ["MatMulNBits", "Add"]
    scale, shift = scale_and_shift(batch_norm(ROWS, dtype=np.float32))
    holder = result.model.graph.node[-1]
    np.testing.assert_array_equal(stored(result.model, holder.input[-1]), (scale * bias + shift).astype(np.float32))


def test_a_shift_goes_forward_and_a_scale_for_each_input_does_not() -> None:
    shifted = model(8, nodes=[helper.make_node("Add", ["x", "t"], ["a"]), helper.make_node("Relu", ["p"], ["y"])])
    shifted.graph.initializer.append(numpy_helper.from_array(random(COLUMNS, dtype=np.float32), "t"))
    assert [found.op_type for found in fold(shifted).model.graph.node] == ["Add", "MatMulNBits", "Relu"]


REFUSED = {
    "a scale along the blocks": ({"before": True}, "along which the scale varies"),
    "an order of its own": ({"inputs": "q s - g", "g": np.arange(COLUMNS).astype(np.int32)}, "g_idx"),
    "other bits": ({"bits": 3}, "not understood"),
    "scales of another size": ({"s": steps()[:, :2]}, "not understood"),
    "nothing left of a row between two integers": (
        {"inputs": "q s z", "z": zero_points(4) + np.float32(0.3), "bn_g": np.zeros(ROWS, np.float32)},
        "out of the range",
    ),
    "a scale beyond float32": ({"bn_g": np.full(ROWS, 3e38, np.float32), "s": steps() * 99}, "leaves the range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_hold_stays_with_the_reason(name: str) -> None:
    given, words = REFUSED[name]
    options = {"bits": 4, **given}
    nodes = [norm("x", "a"), helper.make_node("Relu", ["p"], ["y"])] if options.pop("before", False) else []
    result = bnfold.fold(model(nodes=nodes, **options), leftover="keep")
    assert [left.code for left in result.plan.left] == ["quantized_weight"]
    assert words in result.plan.left[0].reason
    assert not result.changed


def test_an_input_that_is_rounded_to_integers_takes_no_shift() -> None:
    nodes = [norm("x", "a"), helper.make_node("Relu", ["p"], ["y"])]
    shift_only = {"bn_g": np.ones(COLUMNS, np.float32), "bn_v": np.ones(COLUMNS, np.float32) - np.float32(1e-5)}
    original = model(8, nodes=nodes, **shift_only)
    assert fold(original).plan.batch_norms_left == 0
    node(original, "MatMulNBits").attribute.append(helper.make_attribute("accuracy_level", 4))
    result = bnfold.fold(original, leftover="keep")
    assert [left.code for left in result.plan.left] == ["padded_shift"]
    assert "rounds its input to integers by itself" in result.plan.left[0].reason


def test_an_input_that_is_rounded_to_integers_is_proved_around() -> None:
    """The exact gate's own numbers meet the same reason, and its sums are not rounded to integers."""
    scales = {"bn_g": np.full(COLUMNS, 2, np.float32), "bn_v": np.full(COLUMNS, 3, np.float32)}
    original = model(8, nodes=[norm("x", "a"), helper.make_node("Relu", ["p"], ["y"])], **scales)
    node(original, "MatMulNBits").attribute.append(helper.make_attribute("accuracy_level", 4))
    result = bnfold.fold(original)
    assert [left.code for left in result.plan.left] == ["padded_shift"]
    assert result.check().verdict == "pass", result.check().reason
