"""What fuzzing found, each as a small generator: refused with a sentence, or folded as if it were not there."""

import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import original, random_layers

import bnfold
from bnfold.errors import ModelLoadError
from bnfold.onnx.lift.shapes.inference import may_follow_elements
from bnfold.onnx.lift.types import declare, shape_of
from bnfold.verification.inputs.sampling import declared_inputs


def saved(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = original(random_layers(2))
    change(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [2**31, 2**62, 2**63 - 1])
def test_an_opset_beyond_32_bits_is_one_that_nobody_knows_yet(tmp_path: Path, opset: int) -> None:
    path = saved(tmp_path / "m.onnx", lambda model: setattr(model.opset_import[0], "version", opset))
    assert len(bnfold.inspect(path).folds) == 2


@pytest.mark.parametrize("opset", [-1, 2**63 - 1])
@pytest.mark.parametrize("op_type", ["Conv", "BatchNormalization"])
def test_too_few_inputs_are_refused_in_an_opset_that_nobody_knows(tmp_path: Path, opset: int, op_type: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = opset
        del next(node for node in model.graph.node if node.op_type == op_type).input[1:]

    with pytest.raises(ModelLoadError, match="has 1 inputs, and the operator at least"):
        bnfold.fold(saved(tmp_path / "m.onnx", change))


@pytest.mark.parametrize("op_type", ["DepthToSpace", "SpaceToDepth"])
@pytest.mark.parametrize("size", [0, -2, 3])
def test_blocks_that_do_not_fit_are_no_way_for_an_affine(tmp_path: Path, op_type: str, size: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "BatchNormalization")
        node = model.graph.node[place]
        model.graph.node.insert(place, onnx.helper.make_node(op_type, [node.input[0]], ["blocks"], blocksize=size))
        model.graph.node[place + 1].input[0] = "blocks"

    with contextlib.suppress(ModelLoadError):
        bnfold.fold(saved(tmp_path / "m.onnx", change))


def test_a_scalar_has_no_axis_to_take_elements_along(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.input.append(onnx.helper.make_tensor_value_info("scalar", onnx.TensorProto.FLOAT, []))
        graph.output.append(onnx.helper.make_tensor_value_info("taken", onnx.TensorProto.FLOAT, [1]))
        graph.initializer.append(onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0]))
        graph.node.append(onnx.helper.make_node("GatherElements", ["scalar", "first"], ["taken"], axis=0))

    assert len(bnfold.inspect(saved(tmp_path / "m.onnx", change)).folds) == 2


@pytest.mark.parametrize("size", [2**31, 2**62])
def test_an_input_that_no_memory_holds_is_not_run(tmp_path: Path, size: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
            dim.dim_value = (1, 3, size, 16)[axis]

    result = bnfold.fold(saved(tmp_path / "m.onnx", change))
    assert result.check().verdict == "inconclusive"
    assert "GB of memory are left" in result.check().unproved[0].reason


def test_an_input_of_an_element_type_that_there_is_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 128))
    result = bnfold.fold(path)
    assert result.check().verdict != "fail"
    (declared,) = declared_inputs(onnx.load(path))
    assert (declared.dtype, declared.kind) == (None, "tensor of the unknown element type 128")


def exported(path: Path, change: Callable[[bytes], bytes] = bytes) -> Path:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)), file)
    path.write_bytes(change(file.getvalue()))
    return path


def test_an_archive_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = exported(
        tmp_path / "m.pt2", lambda data: data.replace(b"data/weights/weight_0", b"data/weights/weight\xe2\x28")
    )
    with pytest.raises(ModelLoadError, match=r"m\.pt2 is not a complete archive"):
        bnfold.fold(path)


@pytest.mark.parametrize("version", [b"9" * 30, b"three", b""])
def test_an_archive_with_a_version_that_is_no_number(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(exported(tmp_path / "good.pt2")) as good, zipfile.ZipFile(path, "w") as archive:
        for name in good.namelist():
            archive.writestr(name, version if name.endswith("/version") else good.read(name))
    with pytest.raises(ModelLoadError, match=r"m\.pt2 is not a complete archive"):
        bnfold.fold(path)


def written(path: Path, nodes: str, outputs: str = "float[] y") -> Path:
    """A model with a BN `b` of x, and a weight w of ones for three channels."""
    ones, twos = ",".join("1" * 12), ",".join("2" * 3)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[1,3,8,8] x) => ({outputs}) <float[4,3,1,1] w = {{{ones}}}, float[3] v = {{{twos}}}, "
        f"float[1,3,4,1] tall = {{{ones}}}> {{ b = BatchNormalization (x, v, v, v, v)\n {nodes} }}"
    )
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    return path


def test_a_size_beyond_64_bits_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path = written(path, "f = Constant <value_ints = [-1, 8]> ()\n y = Reshape (big, f)")
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("big", 1, [2**62, 2, 8, "n"]))
    onnx.save(model, path)
    assert len(bnfold.fold(path).plan.left) == 1
    value = onnx.ValueInfoProto()
    declare(value, (2**63, 3))
    assert shape_of(value.type.tensor_type) == (None, 3)


def test_a_dropout_with_a_mask_that_nobody_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", "d, mask = Dropout (b)\n y = Conv (d, w)")
    result = bnfold.fold(path, check=True)
    assert len(result.plan.folds) == 1
    assert result.check().verdict == "pass"


@pytest.mark.parametrize("axes", ["2, 1, 3", "0, 1, 2", "0, 1, 1, 3", "0, 1, 2, 4"])
def test_a_transpose_of_other_axes_than_there_are(tmp_path: Path, axes: str) -> None:
    path = written(tmp_path / "m.onnx", f"t = Transpose <perm = [{axes}]> (b)\n y = Conv (t, w)")
    with contextlib.suppress(ModelLoadError):  # of another rank, it is no input of a Conv
        assert len(bnfold.fold(path, leftover="keep").plan.left) == 1


def test_a_window_that_is_larger_than_what_it_slides_over(tmp_path: Path) -> None:
    nodes = (
        "s = Conv (tall, x)\n n = BatchNormalization (b, v, v, v, v)\n c = Concat <axis = 2> (s, n)\n y = Conv (c, w)"
    )
    assert len(bnfold.fold(written(tmp_path / "m.onnx", nodes), leftover="keep").plan.left) >= 1


FIELDS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "nodes": lambda model: model.graph.node,
    "sparse initializers": lambda model: model.graph.sparse_initializer,
    "initializers": lambda model: model.graph.initializer,
    "functions": lambda model: model.functions,
    "nodes of a function": lambda model: model.functions.add(name="f", domain="d").node,
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_thousand_times_nothing(tmp_path: Path, field: Callable[[onnx.ModelProto], list]) -> None:
    def change(model: onnx.ModelProto) -> None:
        entries = field(model)
        for _ in range(1000):
            entries.add()

    with pytest.raises(ModelLoadError, match="is not a valid ONNX model"):
        bnfold.fold(saved(tmp_path / "m.onnx", change))


@pytest.mark.parametrize("in_function", [True, False])
@pytest.mark.parametrize("node", ["Add (q, q)", "Concat <axis = 0> (q, q)", "Gather (q, q)", "Cast <to = 6> (q)"])
def test_long_vectors_are_not_written_out(tmp_path: Path, node: str, in_function: bool) -> None:
    for length, is_short in ((16, True), (1 << 28, False)):
        body = (
            f"s = Constant <value = int64[1] {{{length}}}> () q = ConstantOfShape <value = int64[1] {{1}}> (s) "
            f"r = {node} z = Shape (r) k = Cast <to = 1> (z) m = ReduceMax <keepdims = 0> (k) o = Mul (a, m)"
        )
        path = written(tmp_path / "m.onnx", f"a = Relu (b) {'y = l.f (a)' if in_function else f'{body} y = Neg (o)'}")
        model = onnx.load(path)
        if in_function:
            model.opset_import.add(domain="l", version=1)
            header = '<domain: "l", opset_import: ["": 17]>'
            model.functions.append(onnx.parser.parse_function(f"{header} f (a) => (o) {{ {body} }}"))
            onnx.save(model, path)
        assert may_follow_elements(model) == is_short
        assert bnfold.fold(path, check=True).check().verdict != "fail"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_is_no_parameter(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from bnfold.torch.file.state_dict import load_weights

    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    torch.save({"weight": nested, "bias": torch.zeros(2)}, tmp_path / "m.pt")
    with pytest.raises(ModelLoadError):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "m.pt")


@pytest.mark.parametrize(
    "nodes",
    [
        "p = Pad <mode = 'constant'> (b, pads)\n y = Conv (p, w)",
        "s = Slice (big, none, half, three)\n a = Add (s, tall)\n y = Conv (a, w)",
        "h, k = Split <axis = 3> (big)\n a = Concat <axis = 3> (h, k)\n y = Conv (a, w)",
        "a = Add (big, tall)\n e = Mul (huge, wide)\n c = Concat <axis = 0> (a, e)\n y = Conv (c, w)",
    ],
)
def test_sizes_that_no_memory_holds_are_not_written_out(tmp_path: Path, nodes: str) -> None:
    path = written(tmp_path / "m.onnx", nodes.replace("'", '"'))
    model = onnx.load(path)
    for name in ("big", "huge"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, [2**40, 3, 4, 2**42]))
    integers = {"pads": [0, 0, 0, -(2**40), 0, 0, 0, 0], "none": [0], "half": [2**41], "three": [3]}
    for name, numbers in integers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(numbers, np.int64), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "wide"))
    onnx.save(model, path)
    bnfold.inspect(path)
