"""What fuzzing found, each as a small generator: refused with a sentence, or folded as if it were not there."""

import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_networks import original, random_layers

import bnfold
from bnfold.errors import ModelLoadError
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
