"""What fuzzing found, each as a small generator: refused with a sentence, or folded as if it were not there."""

import io
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


def test_an_archive_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)), file)
    path = tmp_path / "m.pt2"
    path.write_bytes(file.getvalue().replace(b"data/weights/weight_0", b"data/weights/weight\xe2\x28"))
    with pytest.raises(ModelLoadError, match=r"m\.pt2 is not a complete archive"):
        bnfold.fold(path)
