"""Models that are run a part at a time give what they give as a whole, and hold the weights of one part."""

import weakref
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
import random_models
from onnx_fold import to_single
from small_networks import original, random_layers

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.system import memory
from bnfold.verification.runtime import parts, source
from bnfold.verification.runtime.devices import cpu_device
from bnfold.verification.runtime.parts import InParts
from bnfold.verification.runtime.sessions import Session
from bnfold.verification.runtime.source import LargeModel

WEIGHTS = ",".join(["0.5"] * 9)


def model_of(body: str, outputs: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[n,3] x) => ({outputs}) '
        f"<float[3,3] a = {{{WEIGHTS}}}, float[3,3] b = {{{WEIGHTS}}}, float[3,3] c = {{{WEIGHTS}}}> {{ {body} }}"
    )
    assert isinstance(model, onnx.ModelProto)
    return model


def run_both(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], *, inputs: bool
) -> tuple[list[dict[str, object]], list[dict[str, object]], InParts]:
    """A model whose three weights are read when they are needed, as inputs or as initializers; and as a whole."""
    whole = Session(model.SerializeToString(), cpu_device())
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    cut = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in cut.graph.initializer:
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given")
    if inputs:
        cut.graph.input.extend(onnx.helper.make_tensor_value_info(name, 1, [3, 3]) for name in values)
        del cut.graph.initializer[:]
    made = InParts(cut, {name: array.nbytes for name, array in values.items()}, cpu_device())
    return [whole.run(feed) for feed in feeds], made.run(feeds, values.__getitem__), made


BODIES = {
    "a chain": ("h = MatMul (x, a) i = MatMul (h, b) y = MatMul (i, c)", "float[n,3] y", True),
    "an output that is read": (
        "h = MatMul (x, a) i = MatMul (h, b) y = MatMul (h, c)",
        "float[n,3] y, float[n,3] h",
        True,
    ),
    "a weight that is read twice": ("h = MatMul (x, a) i = MatMul (h, b) y = MatMul (i, a)", "float[n,3] y", True),
    "an output that nothing computes": ("h = MatMul (x, a) y = MatMul (h, b)", "float[n,3] y, float[3,3] c", True),
    "nodes that nobody needs": ("h = MatMul (x, a) y = MatMul (x, b) z = MatMul (y, c)", "float[n,3] y", False),
    "a graph that reads from around it": (
        "h = MatMul (x, a) s = Constant <value_int = 1> () t = Cast <to = 9> (s) i = MatMul (h, b) "
        "y = If <then_branch = f () => (float[n,3] p) { p = MatMul (h, c) }, "
        "else_branch = e () => (float[n,3] q) { q = Identity (i) }> (t)",
        "float[n,3] y",
        True,
    ),
    "a sequence": (
        "h = MatMul (x, a) s = SequenceConstruct (h, x) j = MatMul (x, b) i = MatMul (j, c) "
        "t = SequenceInsert (s, i) y = ConcatFromSequence <axis = 0> (t)",
        "float[m,3] y",
        False,
    ),
}


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("limit", ["PART_NBYTES", "PART_NODES"])
@pytest.mark.parametrize(("body", "outputs", "in_parts"), BODIES.values(), ids=BODIES)
def test_parts_give_what_the_whole_gives(
    body: str, outputs: str, in_parts: bool, limit: str, inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, limit, 1)
    draw = np.random.default_rng(0)
    feeds = [{"x": draw.standard_normal((size, 3)).astype(np.float32)} for size in (2, 5)]
    expected, found, made = run_both(model_of(body, outputs), feeds, inputs=inputs)
    assert [*map(set, found)] == [*map(set, expected)]
    for result, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(np.asarray(result[name]), np.asarray(wanted[name])) for name in wanted)
    assert (len(made._parts) > 1) == in_parts


def test_the_weights_of_one_part_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_NBYTES", 2 * 36)
    body, previous = "", "x"
    for index in range(7):
        body += f"h{index} = MatMul ({previous}, w{index}) "
        previous = f"h{index}"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[n,3] x) => (float[n,3] {previous}) {{ {body} }}'
    )
    names = [f"w{index}" for index in range(7)]
    model.graph.input.extend(onnx.helper.make_tensor_value_info(name, 1, [3, 3]) for name in names)
    alive: weakref.WeakSet[np.ndarray] = weakref.WeakSet()
    most = []

    def read(_: str) -> np.ndarray:
        array = np.ones((3, 3), np.float32).view(Tracked)
        alive.add(array)
        most.append(len(alive))
        return array

    InParts(model, dict.fromkeys(names, 36), cpu_device()).run([{"x": np.ones((1, 3), np.float32)}], read)
    assert len(most) == 7
    assert max(most) == 2


class Tracked(np.ndarray):
    """Weak references to it are by identity."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def told(report: bnfold.Report) -> list[object]:
    """What two verifications of one model have to say alike."""
    return [report.verdict, report.reason, report.sites_note, *report.outputs, *report.sites]


def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "memory_left", lambda: 0)


def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_NBYTES", 1)


@pytest.mark.parametrize("limit", [in_small_parts, without_memory])
@pytest.mark.parametrize("seed", [5, 8])
def test_a_verification_in_parts_finds_the_same(
    seed: int, limit: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = to_single(random_models.of_seed(seed))
    folded = bnfold.fold(model).model
    whole = bnfold.verify(model, folded, device="cpu", samples=2)
    limit(monkeypatch)
    assert told(bnfold.verify(model, folded, device="cpu", samples=2)) == told(whole)


def test_a_wrong_fold_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_parts(monkeypatch)
    without_memory(monkeypatch)
    model = original(random_layers(4))
    folded = bnfold.fold(model).model
    tensor = next(tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4)
    tensor.raw_data = (onnx.numpy_helper.to_array(tensor) * np.float32(1.001)).tobytes()
    assert bnfold.verify(model, folded, device="cpu").verdict == "fail"


def test_a_large_constant_of_a_node_is_given_as_well() -> None:
    value = onnx.numpy_helper.from_array(np.full((3, 300), 2.0, np.float32))
    nodes = [
        onnx.helper.make_node("Constant", [], ["w"], value=value),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 3), ("y", 300))]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    result = LargeModel(from_proto(proto), cpu_device()).run({"x": np.ones((1, 3), np.float32)})
    assert np.array_equal(np.asarray(result["y"]), np.full((1, 300), 6.0))


def test_pages_of_files_are_no_memory_in_use(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "950\n",
        "memory.stat": "anon 50\ninactive_file 600\nactive_file 200\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.memory_left() == 850
