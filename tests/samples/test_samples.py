"""The committed sample model is what samples/README.md says, and the sample script works."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MODEL = SAMPLES / "digits_resnet.onnx"
# A POSIX or Windows path, or the name of a source file, as exporters leave them in stack traces.
LOCAL_PATH = re.compile(rb"/(?:home|root|usr|opt|tmp|var|work|mnt|Users)/|[A-Z]:\\[\w.]+\\|site-packages|[\w/]+\.py\b")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(MODEL)


def test_model_is_valid_and_small(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert MODEL.stat().st_size < 400_000


def test_model_has_the_recorded_interface(model: onnx.ModelProto) -> None:
    (image,), (logits,) = model.graph.input, model.graph.output

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert (image.name, shape(image)) == ("image", ["batch", 1, 8, 8])
    assert (logits.name, shape(logits)) == ("logits", ["batch", 10])
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_every_batch_norm_stands_beside_a_layer_that_can_take_it_in(model: onnx.ModelProto) -> None:
    """Backward into the map that it alone reads, or forward into an unpadded map that alone reads it."""
    maps = {"Conv", "ConvTranspose", "Gemm"}
    producer = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        # CastLike reads the element type of its second input, not its values.
        for name in node.input[:1] if node.op_type == "CastLike" else node.input:
            readers.setdefault(name, []).append(node)

    def padded(node: onnx.NodeProto) -> bool:
        return any(any(attribute.ints) for attribute in node.attribute if attribute.name == "pads")

    directions: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        source = producer.get(node.input[0])
        if source is not None and source.op_type in maps and len(readers[node.input[0]]) == 1:
            directions["backward"] += 1
            continue
        (reader,) = readers[node.output[0]]
        assert reader.op_type in {"Conv", "Gemm"}, node.name
        assert not padded(reader), node.name
        directions["forward"] += 1
    assert directions == {"backward": 11, "forward": 3}


def test_model_has_all_kinds_of_layers(model: onnx.ModelProto) -> None:
    groups = [
        attribute.i
        for node in model.graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert sorted(groups) == [1] * 8 + [4, 64]
    assert Counter(node.op_type for node in model.graph.node)["ConvTranspose"] == 1


def test_model_reaches_its_recorded_accuracy(model: onnx.ModelProto) -> None:
    images = np.load(SAMPLES / "digits_test_images.npy")
    labels = np.load(SAMPLES / "digits_test_labels.npy")
    assert (images.shape, images.dtype, labels.shape) == ((360, 8, 8), np.uint8, (360,))
    assert set(labels) == set(range(10))
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images.astype(np.float32)[:, None]})
    recorded = {entry.key: entry.value for entry in model.metadata_props}["test_accuracy"]
    assert (logits.argmax(axis=1) == labels).sum() == 359
    assert float(recorded) == pytest.approx(359 / 360, abs=1e-6)


def test_model_carries_no_traces_of_the_machine(model: onnx.ModelProto) -> None:
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    for tensor in stripped.graph.initializer:
        tensor.ClearField("raw_data")  # random bytes can look like anything
    assert LOCAL_PATH.search(stripped.SerializeToString()) is None
    assert not any(node.doc_string or node.metadata_props for node in stripped.graph.node)


@pytest.mark.parametrize(
    "trace",
    [
        b"File '/home/someone/net.py', line 3",
        rb"C:\Users\someone",
        b"lib/site-packages/torch",
        b"samples/train.py",
    ],
)
def test_the_search_for_paths_finds_them(trace: bytes) -> None:
    assert LOCAL_PATH.search(b"\x0a\x12" + trace + b"\x00")


def test_fold_digits_folds_everything(tmp_path: Path) -> None:
    before = sorted(SAMPLES.iterdir())
    run = subprocess.run(
        [sys.executable, SAMPLES / "fold_digits.py", tmp_path / "folded"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith("all good")
    for name in ("digits_folded.onnx", "digits_folded_api.onnx"):
        folded = onnx.load(tmp_path / "folded" / name)
        onnx.checker.check_model(folded, full_check=True)
        assert all(node.op_type != "BatchNormalization" for node in folded.graph.node)
    assert sorted(SAMPLES.iterdir()) == before


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fold_digits", SAMPLES / "fold_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fold_digits_notices_a_batch_norm_that_is_left(script: ModuleType, tmp_path: Path) -> None:
    unfolded = tmp_path / "unfolded.onnx"
    unfolded.write_bytes(MODEL.read_bytes())
    assert not script.compare([unfolded])


def test_fold_digits_notices_other_predictions(script: ModuleType, tmp_path: Path) -> None:
    blind = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        blind (float[batch, 1, 8, 8] image) => (float[batch, 10] logits)
        { flat = Flatten (image)  first, rest = Split <axis = 1> (flat, sizes)  logits = Identity (first) }"""
    )
    blind.graph.initializer.append(onnx.numpy_helper.from_array(np.array([10, 54]), "sizes"))
    onnx.save(blind, tmp_path / "blind.onnx")
    assert not script.compare([tmp_path / "blind.onnx"])


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "skipped"])
def test_fold_digits_notices_a_verdict_that_is_not_pass(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    report = SimpleNamespace(verdict=verdict, summary_line=lambda: verdict)
    monkeypatch.setattr(script.bnfold, "verify", lambda *_: report)
    assert not script.fold_from_python(tmp_path / "folded.onnx")
    assert script.run(tmp_path) == 1


def test_fold_digits_notices_a_command_that_fails(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MODEL", tmp_path / "missing.onnx")
    assert not script.fold_from_command_line(tmp_path / "folded.onnx")
    assert script.run(tmp_path) == 1


def test_many_files_are_folded_on_processes_and_the_next_run_leaves_them(tmp_path: Path) -> None:
    for name in ("a", "deep/b"):
        path = tmp_path / "models" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MODEL, path)
    words = [sys.executable, str(SAMPLES / "fold_many.py"), "models", "folded"]
    for status in ("folded", "kept"):
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert sorted(result.stdout.splitlines()) == [
            "2 of 2 are folded",
            f"{status}: models/a.onnx: pass; 14 BatchNorms, 0 left",
            f"{status}: models/deep/b.onnx: pass; 14 BatchNorms, 0 left",
        ]
    assert (tmp_path / "folded/deep/b.onnx").is_file()
