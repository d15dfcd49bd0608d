"""Paths that are URLs: folded through a folder of this machine, with the data that a model keeps beside it."""

import sys

import onnx
import pytest
from small_networks import original, random_layers

import bnfold
from bnfold.files.remote import local_path

fsspec = pytest.importorskip("fsspec", reason="fsspec comes with the extra urls")

FAST = {"device": "cpu", "samples": 1}


@pytest.fixture
def store(tmp_path):
    store = fsspec.filesystem("memory")
    store.rm("/", recursive=True)
    models = tmp_path / "models"
    models.mkdir()
    onnx.save(original(random_layers(2)), models / "a.onnx")
    onnx.save(
        original(random_layers(3, channels=16)),
        models / "b.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    for path in models.iterdir():
        store.put_file(str(path), f"/in/sub/{path.name}")
    yield store
    store.rm("/", recursive=True)


def test_a_store_is_read_and_written(store):
    outcomes = bnfold.fold_files("memory://in", "memory://out", recursive=True, **FAST)
    assert [(outcome.source, outcome.destination, outcome.status) for outcome in outcomes] == [
        ("memory://in/sub/a.onnx", "memory://out/sub/a.onnx", "folded"),
        ("memory://in/sub/b.onnx", "memory://out/sub/b.onnx", "folded"),
    ]
    names = sorted(path.rpartition("/")[2] for path in store.find("/out"))
    data = outcomes[1].report.output.data_files
    assert names == sorted(["a.onnx", "a.onnx.bnfold.json", "b.onnx", "b.onnx.bnfold.json", *data])
    assert [outcome.report.output.path for outcome in outcomes] == [outcome.destination for outcome in outcomes]
    again = bnfold.fold_files("memory://in", "memory://out", recursive=True, resume=True, **FAST)
    assert [outcome.status for outcome in again] == ["kept", "kept"]
    store.pipe_file("/out/sub/a.onnx", store.cat_file("/out/sub/a.onnx") + b"\n\0")
    again = bnfold.fold_files("memory://in", "memory://out", recursive=True, resume=True, **FAST)
    assert [outcome.status for outcome in again] == ["folded", "kept"]


def test_to_this_machine_and_from_it(store, tmp_path):
    (outcome,) = bnfold.fold_files("memory://in/sub/b.onnx", tmp_path / "here", **FAST)
    assert outcome.status == "folded"
    assert bnfold.inspect(tmp_path / "here/b.onnx").batch_norms == 0
    (outcome,) = bnfold.fold_files(f"file://{tmp_path}/models/a.onnx", f"file://{tmp_path}/there", **FAST)
    assert outcome.destination == str(tmp_path / "there/a.onnx")
    assert bnfold.inspect(outcome.destination).batch_norms == 0
    assert local_path("memory://in") is None


def test_what_is_missing_or_wrong_there_is_said_by_its_url(store):
    store.rm("/in/sub/weights")
    store.pipe_file("/in/sub/a.onnx", b"damaged")
    paths = [f"memory://in/sub/{name}.onnx" for name in ("a", "b", "none")]
    damaged, without_data, missing = bnfold.fold_files(paths, "memory://out", **FAST)
    assert damaged.headline().startswith("memory://in/sub/a.onnx is not a complete ONNX model")
    assert "memory://in/sub" in without_data.headline()
    assert missing.headline().startswith("memory://in/sub/none.onnx cannot be read: FileNotFoundError")
    assert not store.exists("/out")


def test_data_outside_the_folder_of_a_model_is_not_fetched(store, tmp_path):
    model = onnx.load(tmp_path / "models/b.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../secret"
    store.pipe_file("/in/secret", b"\0" * 100_000)
    store.pipe_file("/in/sub/b.onnx", model.SerializeToString())
    (outcome,) = bnfold.fold_files("memory://in/sub/b.onnx", "memory://out", **FAST)
    assert isinstance(outcome.error, bnfold.UnsafeModelError)


def test_two_urls_that_would_go_to_one_place_are_refused(store):
    store.cp_file("/in/sub/a.onnx", "/in/a.onnx")
    with pytest.raises(bnfold.UsageError, match=r"would both go to memory://out/a\.onnx"):
        bnfold.fold_files(["memory://in/a.onnx", "memory://in/sub/a.onnx"], "memory://out")
    with pytest.raises(bnfold.UsageError, match=r"would replace memory://in/a\.onnx"):
        bnfold.fold_files("memory://in/a.onnx", "memory://in")


def test_an_unknown_store_and_a_missing_package_are_said(tmp_path, monkeypatch):
    with pytest.raises(bnfold.ModelLoadError, match=r"nowhere://x/a\.onnx cannot be opened: ValueError"):
        bnfold.fold_files("nowhere://x/a.onnx", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(bnfold.DeviceError, match="a URL, needs fsspec, which is not installed") as caught:
        bnfold.fold_files("memory://in/a.onnx", tmp_path)
    assert "pip install 'bnfold[urls]'" in caught.value.hint
