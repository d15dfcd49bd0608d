"""What is computed from constants alone, in graphs, functions, branches and sequences, against the size of a file."""

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

import bnfold
from bnfold.errors import UnsupportedModelError
from bnfold.latency import benchmark
from bnfold.onnx.constant_costs import require_small_constants
from bnfold.onnx.file.load import OnnxModel, from_proto

FEW, MANY = 1 << 10, 1 << 28
FILL = "q = ConstantOfShape (s)"

BODIES = {
    "an expression": f"{FILL} c = ReduceMean <keepdims = 0> (q)",
    "nobody reads it": f"{FILL} c = ReduceMean <keepdims = 0> (w)",
    "concatenations": "n = Constant <value_int = 1> () "
    + " ".join(f"k{i + 1} = Concat <axis = 0> (k{i}, k{i})" for i in range(30))
    .replace("k0,", "s,")
    .replace("k0)", "s)")
    + " f = Cast <to = 1> (k30) c = ReduceMean <keepdims = 0> (f)",
    "strings": "q = Tile (t, s) c = ReduceMean <keepdims = 0> (w) z = Shape (q)",
    "an outer product": f"{FILL} a = Unsqueeze (q, i) b = MatMul (a, w) c = ReduceMean <keepdims = 0> (b)",
    "numbers at random": "q = RandomNormal <shape = [SIZE]> () c = ReduceMean <keepdims = 0> (q)",
    "a branch": "e = Constant <value_int = 1> () g = Cast <to = 9> (e) c = If (g) <"
    f"then_branch = h () => (float o) {{ {FILL} o = ReduceMean <keepdims = 0> (q) }}, "
    "else_branch = h () => (float o) { o = Constant <value_float = 1.0> () }>",
}


def model(body: str, size: int) -> onnx.ModelProto:
    """A Conv and a BN, and a number c that is added to what they give."""
    text = body.replace("SIZE", str(size))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,1,4,4] x) => (float[1,1,4,4] y) '
        f"<float[1,1,1,1] w = {{2}}, float[1] v = {{2}}, int64[1] s = {{{size}}}, int64[1] i = {{1}}> "
        f"{{ d = Conv (x, w) b0 = BatchNormalization (d, v, v, v, v) {text} y = Add (b0, c) }}"
    )
    proto.graph.initializer.append(oh.make_tensor("t", onnx.TensorProto.STRING, [1], [b"word"]))
    return proto


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same, with ConstantOfShape in a function."""
    proto.functions.append(
        onnx.parser.parse_function('<domain: "l", opset_import: ["": 17]> f (s) => (q) { q = ConstantOfShape (s) }')
    )
    proto.opset_import.add(domain="l", version=1)
    for node in proto.graph.node:
        if node.op_type == "ConstantOfShape":
            node.op_type, node.domain = "f", "l"
    return proto


def sparse(size: int) -> onnx.ModelProto:
    proto = model("c = ReduceMean <keepdims = 0> (p)", FEW)
    held = proto.graph.sparse_initializer.add(dims=[size])
    held.values.CopyFrom(onh.from_array(np.ones(1, np.float32), "p"))
    held.indices.CopyFrom(onh.from_array(np.zeros(1, np.int64), "places"))
    return proto


def refused(proto: onnx.ModelProto) -> bool:
    try:
        require_small_constants(OnnxModel(proto, from_proto(proto).store))
    except UnsupportedModelError as error:
        return error.exit_code == 3 and "from constants alone" in str(error)
    return False


@pytest.mark.parametrize("name", BODIES)
def test_only_what_is_out_of_proportion_is_refused(name: str) -> None:
    assert refused(model(BODIES[name], MANY))
    assert refused(model(BODIES[name], FEW)) == (name == "concatenations")


def test_functions_sequences_and_sparse_tensors_count() -> None:
    fill = BODIES["an expression"]
    assert [refused(in_function(model(fill, size))) for size in (FEW, MANY)] == [False, True]
    assert [refused(sparse(size)) for size in (FEW, MANY)] == [False, True]
    many = ", ".join(["q"] * 64)
    text = f"{FILL} l = SequenceConstruct ({many}) r = SequenceAt (l, s) c = ReduceMean <keepdims = 0> (w)"
    assert [refused(model(text, size)) for size in (FEW, 1 << 20)] == [False, True]


def test_one_after_the_other_is_more_than_at_a_time() -> None:
    """Each of 40 fills is small enough, and gone before the next."""
    steps = [f"q{i} = ConstantOfShape (s) r{i} = ReduceMean <keepdims = 0> (q{i})" for i in range(40)]
    text = " ".join(steps) + " c = Sum (" + ", ".join(f"r{i}" for i in range(40)) + ")"
    assert [refused(model(text, size)) for size in (1 << 23, 1 << 24)] == [False, True]


def test_it_is_neither_verified_nor_measured(tmp_path: Path) -> None:
    onnx.save(model(BODIES["an expression"], MANY), tmp_path / "m.onnx")
    result = bnfold.fold(tmp_path / "m.onnx")
    assert "from constants alone" in result.check().reason
    result.save(tmp_path / "o.onnx")
    for run in (bnfold.verify, benchmark):
        with pytest.raises(UnsupportedModelError, match=r"\d GB from constants alone, .* its [\d.]+ k?B, "):
            run(tmp_path / "m.onnx", tmp_path / "o.onnx", device="cpu")
