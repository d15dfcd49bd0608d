"""Which data files are removed: those that were written for a model, and that no model of the folder names any more."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from bnfold.errors import OutputError
from bnfold.onnx.file.data_files import data_files, data_name
from bnfold.onnx.file.load import load
from bnfold.onnx.file.save import save, stage
from bnfold.system import locking


def model(seed: int) -> onnx.ModelProto:
    weight = onh.from_array(np.random.default_rng(seed).standard_normal((40, 40)).astype(np.float32), "w")
    return oh.make_model(oh.make_graph([], "g", [], [], [weight]))


def external(folder: Path, seed: int) -> Path:
    """A model with a data file in a folder of its own."""
    source = folder / f"in{seed}"
    source.mkdir(exist_ok=True)
    onnx.save(model(seed), source / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return source / "m.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def write(out: Path, seed: int, name: str = "m.onnx") -> Path:
    """Write a model; its data file."""
    files = save(load(external(out.parent, seed)), out / name).files
    return files[1]


def test_the_data_of_a_replaced_model_goes(out: Path) -> None:
    old, new = write(out, 1), write(out, 2)
    assert sorted(os.listdir(out)) == sorted(["m.onnx", new.name])
    assert old != new
    assert load(out / "m.onnx").materialize() == model(2)


def test_the_same_model_again_keeps_its_data(out: Path) -> None:
    assert write(out, 1) == write(out, 1)
    assert load(out / "m.onnx").materialize() == model(1)


@pytest.mark.parametrize("name", ["other.onnx", "m.onnx.old", "m (copy).onnx"])
def test_data_that_another_model_names_stays(name: str, out: Path) -> None:
    old = write(out, 1)
    (out / name).write_bytes((out / "m.onnx").read_bytes())
    new = write(out, 2)
    assert sorted(os.listdir(out)) == sorted(["m.onnx", name, old.name, new.name])


def test_data_stays_beside_a_model_that_cannot_be_read(out: Path) -> None:
    old = write(out, 1)
    (out / "damaged.onnx").write_bytes(b"\x3a\xff\xff\xff\x07")
    write(out, 2)
    assert old.exists()


def test_what_was_not_written_for_the_model_stays(out: Path) -> None:
    digest = "0" * 32
    names = [
        "m.onnx.data",
        f"other.onnx.{digest}.data",
        f"m.onnx.{digest[1:]}.data",
        f"m.onnx.{digest}.data.bak",
        f"xm.onnx.{digest}.data",
        f"m.onnx.{digest.replace('0', 'g')}.data",
    ]
    for name in names:
        (out / name).write_bytes(b"my thesis")
    (out / f"m.onnx.{'1' * 32}.data").mkdir()
    (out / f"m.onnx.{'2' * 32}.data").symlink_to("m.onnx.data")
    (out / f"m.onnx.{'3' * 32}.data").write_bytes(b"of a write that was killed")
    write(out, 1)
    kept = {*names, f"m.onnx.{'1' * 32}.data", f"m.onnx.{'2' * 32}.data"}
    assert kept < set(os.listdir(out))
    assert len(os.listdir(out)) == len(kept) + 2


def test_without_locks_nothing_that_may_be_in_use_is_removed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write(out, 1)
    abandoned = out / (".bnfold-" + "ab" * 16)
    abandoned.mkdir()
    monkeypatch.setattr(locking, "fcntl", None)
    new = write(out, 2)
    assert sorted(os.listdir(out)) == sorted([abandoned.name, "m.onnx", old.name, new.name])


def test_a_long_name_is_shortened_for_the_data(out: Path) -> None:
    name = "ä" * 120 + "long" + ".onnx"
    data = write(out, 1, name)
    assert len(os.fsencode(data.name)) <= 255
    assert load(out / name).materialize() == model(1)
    assert write(out, 2, name) != data
    assert not data.exists()


def test_the_name_depends_on_the_content_alone(out: Path) -> None:
    first = write(out, 1)
    first_bytes = (out / "m.onnx").read_bytes()
    (out / "elsewhere").mkdir()
    assert write(out / "elsewhere", 1).name == first.name
    assert (out / "elsewhere" / "m.onnx").read_bytes() == first_bytes
    assert first.name == data_name("m.onnx", first.name.split(".")[2])


def test_data_files_of_a_model(out: Path) -> None:
    data = write(out, 1)
    assert data_files(out / "m.onnx") == (data,)
    onnx.save(model(1), out / "n.onnx")
    assert data_files(out / "n.onnx") == ()
    assert data_files(out / "missing.onnx") == ()


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(out: Path) -> None:
    abandoned = out / (".bnfold-" + "ab" * 16)
    abandoned.mkdir()
    (abandoned / "m.onnx").write_bytes(b"half a mod")
    precious = out / (".bnfold-" + "ab" * 15)  # one letter less than a private folder has would do as well
    precious.mkdir()
    (precious / "nested").mkdir()
    with stage(load(external(out.parent, 1)), out / "other.onnx") as living:
        write(out, 2)
        assert living.path.exists()
        assert not abandoned.exists()
        living.commit()
    assert load(out / "other.onnx").materialize() == model(1)
    assert load(out / "m.onnx").materialize() == model(2)


def test_a_folder_that_another_process_keeps_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_PATIENCE_S", 0.1)
    source = load(external(out.parent, 1))
    with locking.locked(out), pytest.raises(OutputError, match="Another process has been writing"):
        save(source, out / "m.onnx")
    assert os.listdir(out) == []


def test_a_lock_ends_with_its_process(out: Path) -> None:
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_lock_and_die, args=(out,))
    child.start()
    child.join()
    with locking.locked(out) as has_locks:
        assert has_locks


def _lock_and_die(folder: Path) -> None:
    locking.take(folder)
    os._exit(0)
