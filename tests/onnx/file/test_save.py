"""Writing: the same bytes as onnx would write, all or nothing, and only where that is wanted."""

import errno
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from bnfold.errors import ModelLoadError, OutputError
from bnfold.onnx.file import output as output_module
from bnfold.onnx.file import save as save_module
from bnfold.onnx.file.load import OnnxModel, from_proto, load
from bnfold.onnx.file.save import Staged, save, stage
from bnfold.onnx.file.tensors import FileRange
from bnfold.onnx.lift.check import check

BACKEND_DATA = Path(onnx.backend.test.__file__).parent / "data"


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matmul_model() -> onnx.ModelProto:
    """Two large weights, a small one, a large Constant and one in a branch."""
    constant = oh.make_node("Constant", [], ["k"], value=onh.from_array(weights(40, 40, seed=5), "k_value"))
    branch = oh.make_graph(
        [oh.make_node("MatMul", ["b", "inner"], ["out"])],
        "branch",
        [],
        [oh.make_tensor_value_info("out", 1, [40, 40])],
        [onh.from_array(weights(40, 40, seed=6), "inner")],
    )
    nodes = [
        constant,
        oh.make_node("MatMul", ["x", "w0"], ["a"]),
        oh.make_node("MatMul", ["a", "w1"], ["b0"]),
        oh.make_node("Add", ["b0", "bias"], ["b1"]),
        oh.make_node("Add", ["b1", "k"], ["b"]),
        oh.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    initializers = [
        onh.from_array(weights(40, 40, seed=1), "w0"),
        onh.from_array(weights(40, 40, seed=2), "w1"),
        onh.from_array(weights(40, seed=3), "bias"),
    ]
    inputs = [oh.make_tensor_value_info("x", 1, [40, 40]), oh.make_tensor_value_info("c", 9, [])]
    graph = oh.make_graph(nodes, "g", inputs, [oh.make_tensor_value_info("y", 1, [40, 40])], initializers)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(matmul_model(), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.fixture
def external_source(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(matmul_model(), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return folder / "m.onnx"


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def data_of(folder: Path) -> Path:
    """The data file that was written into a folder."""
    (path,) = folder.glob("*.data")
    return path


def edited(path: Path) -> tuple[OnnxModel, onnx.ModelProto]:
    """A model with one deferred weight, and what it should be once written."""
    model = load(path)
    new = weights(40, 40, seed=9)
    initializer = model.proto.graph.initializer[1]
    initializer.CopyFrom(model.store.defer("w1", [40, 40], 1, lambda: new))
    expected = matmul_model()
    expected.graph.initializer[1].CopyFrom(onh.from_array(new, "w1"))
    return model, expected


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is written ------------------------------------------------------------------------------------------------


def test_an_edited_model_is_written_as_onnx_would(source: Path, out: Path) -> None:
    model, expected = edited(source)
    save(model, out / "m.onnx")
    assert (out / "m.onnx").read_bytes() == expected.SerializeToString()
    assert os.listdir(out) == ["m.onnx"]


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_two_threads_write_a_large_file(failing: int | None, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "_WORTH_A_THREAD_NBYTES", 0)
    both = threading.Barrier(2, timeout=60)
    arrays = [weights(90, 90, seed=seed) for seed in range(6)]
    model = from_proto(oh.make_model(oh.make_graph([], "g", [], [])))

    def compute(index: int) -> np.ndarray:
        if index < 2:
            both.wait()  # each of the threads computes one of these
        if index == failing:
            raise ZeroDivisionError
        return arrays[index]

    for index in range(6):
        tensor = model.store.defer(f"w{index}", [90, 90], 1, lambda index=index: compute(index))
        model.proto.graph.initializer.append(tensor)
    if failing is None:
        save(model, out / "m.onnx")
        written = onnx.load(out / "m.onnx").graph.initializer
        assert all(map(np.array_equal, map(onh.to_array, written), arrays))
    else:
        with pytest.raises(ZeroDivisionError):
            save(model, out / "m.onnx")
        assert snapshot(out) == {}


def test_every_backend_model_is_written_as_onnx_would(out: Path) -> None:
    paths = sorted(BACKEND_DATA.rglob("*.onnx"))
    assert len(paths) > 100
    for path in paths:
        model = load(path)
        save(model, out / "copy.onnx")
        assert (out / "copy.onnx").read_bytes() == path.read_bytes(), path
        model.proto.doc_string += "edited"
        save(model, out / "edited.onnx")
        expected = onnx.load(path)
        expected.doc_string += "edited"
        assert (out / "edited.onnx").read_bytes() == expected.SerializeToString(), path


def test_an_unchanged_model_is_copied_byte_for_byte(source: Path, out: Path) -> None:
    # fields in an order that protobuf would not write
    data = source.read_bytes()
    odd = onnx.ModelProto(producer_name="last").SerializeToString()
    source.write_bytes(data + odd)
    assert onnx.load(source).SerializeToString() != data + odd
    model = load(source)
    save(model.copy(), out / "m.onnx")
    assert (out / "m.onnx").read_bytes() == data + odd
    model.proto.doc_string = "edited"
    assert model.unchanged_file is None
    save(model, out / "n.onnx")
    assert (out / "n.onnx").read_bytes() != data + odd
    model.proto.doc_string = ""
    model.proto.ClearField("doc_string")
    assert model.unchanged_file is not None


def test_a_source_that_changed_is_not_copied(source: Path, out: Path) -> None:
    model = load(source)
    source.write_bytes(source.read_bytes() + b"\x12\x01x")
    with pytest.raises(ModelLoadError, match="has changed"):
        save(model, out / "m.onnx")
    assert snapshot(out) == {}


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("fixture", ["source", "external_source"])
def test_a_source_that_is_rewritten_meanwhile_is_noticed(
    fixture: str, is_open: bool, out: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, with its times set back, before it is read once more or in the middle of that."""
    source = request.getfixturevalue(fixture)
    model = edited(source)[0]
    read = source.with_name("m.onnx.data") if model.has_external_data else source
    copy = output_module.Output._copy

    def rewritten(output: output_module.Output, run: FileRange) -> None:
        if is_open:
            copy(output, run)
        before = read.stat()
        data = read.read_bytes()
        with read.open("r+b") as file:
            file.write(data[:-8] + bytes(8))
        os.utime(read, ns=(before.st_atime_ns, before.st_mtime_ns))
        if not is_open:
            copy(output, run)

    monkeypatch.setattr(output_module.Output, "_copy", rewritten)
    with pytest.raises(ModelLoadError, match="has changed since it was loaded"):
        save(model, out / "m.onnx")
    assert snapshot(out) == {}


def test_a_model_in_memory_is_written(out: Path) -> None:
    save(from_proto(matmul_model()), out / "m.onnx")
    assert (out / "m.onnx").read_bytes() == matmul_model().SerializeToString()


@pytest.mark.parametrize("how", ["missing", "failing", "stopping", "partial"])
def test_without_help_of_the_kernel(how: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(os, "copy_file_range", None)

    def failing(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    def partial(src: int, dst: int, count: int, offset: int) -> int:
        if real is None:
            return 0
        calls.append(count)
        return real(src, dst, min(count, 1000), offset) if len(calls) % 3 else 0

    calls: list[int] = []
    if how == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        replacement = {"failing": failing, "stopping": lambda *_: 0, "partial": partial}[how]
        monkeypatch.setattr(os, "copy_file_range", replacement, raising=False)
    monkeypatch.setattr(output_module, "_CHUNK_NBYTES", 777)
    model, expected = edited(source)
    save(model, out / "m.onnx")
    assert (out / "m.onnx").read_bytes() == expected.SerializeToString()
    save(load(source), out / "n.onnx")
    assert (out / "n.onnx").read_bytes() == source.read_bytes()


def test_external_data_goes_to_a_data_file(external_source: Path, out: Path) -> None:
    model, expected = edited(external_source)
    files = save(model, out / "n.onnx").files
    data = data_of(out)
    assert files == (out / "n.onnx", data)
    assert sorted(os.listdir(out)) == ["n.onnx", data.name]
    assert re.fullmatch(r"n\.onnx\.[0-9a-f]{32}\.data", data.name)
    written = onnx.load(out / "n.onnx", load_external_data=False)
    places = {}
    for tensor in written.graph.initializer:
        places[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
    assert places["bias"] == {}  # small
    for name in ("w0", "w1"):
        offset = int(places[name].pop("offset"))
        assert offset % 4096 == 0
        assert places[name] == {"location": data.name, "length": "6400"}
    onnx.checker.check_model(str(out / "n.onnx"), full_check=True)
    whole = onnx.load(out / "n.onnx")
    for tensor in whole.graph.initializer:
        tensor.ClearField("data_location")
    for branch in whole.graph.node[5].attribute:
        for tensor in branch.g.initializer:
            tensor.ClearField("data_location")
    assert whole == expected
    again = load(out / "n.onnx")
    assert again.has_external_data
    check(again)
    assert again.materialize() == expected


def test_a_model_past_two_gib_gets_a_data_file(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module.wire, "LENGTH_LIMIT", 20000)
    model, expected = edited(source)
    save(model, out / "m.onnx")
    assert sorted(os.listdir(out)) == ["m.onnx", data_of(out).name]
    # a Constant cannot be kept outside by every runtime, so it stays
    inline = onnx.load(out / "m.onnx", load_external_data=False).graph.node[0].attribute[0].t
    assert inline.HasField("raw_data")
    monkeypatch.undo()
    assert load(out / "m.onnx").materialize() == expected


def test_a_model_past_two_gib_without_initializers_is_refused(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module.wire, "LENGTH_LIMIT", 5000)
    with pytest.raises(OutputError, match="2 GiB"):
        save(edited(source)[0], out / "m.onnx")
    assert snapshot(out) == {}


def test_data_past_four_gib_is_reached(tmp_path, out: Path) -> None:
    with (tmp_path / "data").open("wb") as file:
        file.truncate(5 << 30)  # a hole: takes no space
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    proto = oh.make_model(oh.make_graph([], "g", [], []))
    weight = proto.graph.initializer.add(name="w", dims=[4096], data_type=1, data_location=1)
    weight.external_data.add(key="location", value="data")
    weight.external_data.add(key="offset", value=str((5 << 30) - 16384))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    save(model, out / "m.onnx")
    assert data_of(out).read_bytes()[-4:] == b"last"
    assert data_of(out).stat().st_size == 16384


def test_many_data_files_need_one_handle_at_a_time(tmp_path, out: Path) -> None:
    proto = oh.make_model(oh.make_graph([], "g", [], []))
    for index in range(300):
        proto.graph.initializer.append(onh.from_array(np.full(300, index, np.float32), f"w{index}"))
    expected = proto.SerializeToString()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        save(model, out / "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert load(out / "m.onnx").materialize().SerializeToString() == expected


# --- where it may be written ----------------------------------------------------------------------------------------


def refusal(model: OnnxModel, path: Path, words: str) -> OutputError:
    with pytest.raises(OutputError, match=words) as caught:
        save(model, path)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_folder(source: Path, tmp_path) -> None:
    error = refusal(load(source), tmp_path / "gone" / "m.onnx", "does not exist")
    assert error.hint


def test_a_folder_that_is_a_file(source: Path) -> None:
    refusal(load(source), source / "m.onnx", "does not exist")


def test_a_destination_that_is_a_folder(source: Path, out: Path) -> None:
    (out / "m.onnx").mkdir()
    refusal(load(source), out / "m.onnx", "is a folder")
    refusal(load(source), out, "is a folder")


def test_special_files(source: Path, out: Path) -> None:
    refusal(load(source), Path(os.devnull), "not a regular file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(out / "m.onnx")
        refusal(load(source), out / "m.onnx", "not a regular file")


def test_a_wrong_extension(source: Path, out: Path) -> None:
    refusal(load(source), out / "m.pt", "does not end in .onnx")
    refusal(load(source), out / "m", "does not end in .onnx")


def test_a_write_protected_file(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "m.onnx").write_bytes(b"old")
    (out / "m.onnx").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o222))  # root may write
    refusal(load(source), out / "m.onnx", "write-protected")
    assert snapshot(out) == {"m.onnx": b"old"}


def test_a_folder_that_cannot_be_written_to(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    refusal(load(source), out / "m.onnx", "cannot be written to: Permission denied")


def test_a_folder_in_the_way_of_the_data_file(external_source: Path, out: Path) -> None:
    save(load(external_source), out / "m.onnx")
    data = data_of(out)
    for path in (data, out / "m.onnx"):
        path.unlink()
    data.mkdir()
    (data / "precious").write_bytes(b"1")
    _, written = save(load(external_source), out / "m.onnx").files
    assert written != data
    assert values(out / "m.onnx") == values(external_source)
    assert (data / "precious").read_bytes() == b"1"


def values(path: Path) -> list[bytes]:
    """What the initializers of a model hold."""
    return [onh.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer]


def alike(folder: Path, byte: int) -> OnnxModel:
    """A model whose data differ in one byte, which is none of those that names are made of."""
    folder.mkdir()
    data = bytearray(np.ones(1 << 20, np.float32).tobytes())
    data[100_000] = byte
    tensor = onh.from_array(np.frombuffer(data, np.float32).reshape(1 << 10, 1 << 10), "w")
    ends = [oh.make_tensor_value_info(name, 1, [1, 1 << 10]) for name in "xy"]
    graph = oh.make_graph([oh.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    proto = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return load(folder / "m.onnx")


def test_data_that_would_have_the_same_name_do_not_mix(tmp_path: Path, out: Path) -> None:
    first, second = (alike(tmp_path / str(byte), byte) for byte in (1, 2))
    (tmp_path / "apart").mkdir()
    names = {save(model, tmp_path / "apart" / "m.onnx").files[1].name for model in (first, second, second)}
    assert len(names) == 2
    save(first, out / "m.onnx")
    before = snapshot(out)
    with stage(second, out / "m.onnx") as staged:
        assert {name: data for name, data in snapshot(out).items() if ".bnfold-" not in name} == before
        staged.commit()
    assert second.path is not None
    assert values(out / "m.onnx") == values(second.path)
    assert len(os.listdir(out)) == 2
    assert save(first, out / "m.onnx").files[1].name in before


def test_another_process_takes_the_same_name_meanwhile(tmp_path: Path, out: Path) -> None:
    first, second = (alike(tmp_path / str(byte), byte) for byte in (1, 2))
    with stage(second, out / "m.onnx") as staged:
        save(first, out / "m.onnx")
        before = {name: data for name, data in snapshot(out).items() if ".bnfold-" not in name}
        with pytest.raises(OutputError, match="Another process has just written other data"):
            staged.commit()
    assert snapshot(out) == before


@pytest.mark.parametrize("how", ["same", "dotted", "symlink", "hard link", "linked folder"])
def test_the_input_is_not_replaced_unless_forced(how: str, source: Path, out: Path) -> None:
    path = {
        "same": source,
        "dotted": source.parent / ".." / source.parent.name / source.name,
        "symlink": out / "m.onnx",
        "hard link": out / "m.onnx",
        "linked folder": out / "link" / "m.onnx",
    }[how]
    if how == "symlink":
        path.symlink_to(source)
    elif how == "hard link":
        path.hardlink_to(source)
    elif how == "linked folder":
        (out / "link").symlink_to(source.parent)
    before = source.read_bytes()
    model, expected = edited(source)
    error = refusal(model, path, "is what the model was read from")
    assert "--force" in error.hint
    assert source.read_bytes() == before
    save(model, path, force=True)
    assert path.read_bytes() == expected.SerializeToString()
    assert (source.read_bytes() == before) is (how == "hard link")


def test_the_data_of_the_input_is_not_replaced(external_source: Path) -> None:
    # another model of the same folder, whose data file has the name that was once given to that of m.onnx
    other = external_source.with_name("other.onnx")
    external_source.rename(other)
    model = load(other)
    before = snapshot(other.parent)
    save(model, other.with_name("m.onnx"))
    assert {name: snapshot(other.parent)[name] for name in before} == before
    assert load(other.with_name("m.onnx")).materialize() == matmul_model()
    assert load(other).materialize() == matmul_model()


def test_in_place_with_external_data(external_source: Path) -> None:
    model, expected = edited(external_source)
    written = save(model, external_source, force=True)
    assert sorted(os.listdir(external_source.parent)) == sorted(["m.onnx", "m.onnx.data", written.files[1].name])
    assert written.notes == (f"{external_source}.data, the data of the model that was replaced, is still there",)
    assert load(external_source).materialize() == expected


def test_a_link_is_written_through(source: Path, out: Path) -> None:
    (out / "real.onnx").write_bytes(b"old")
    (out / "link.onnx").symlink_to("real.onnx")
    (out / "dangling.onnx").symlink_to("new.onnx")
    model, expected = edited(source)
    save(model, out / "link.onnx")
    save(model, out / "dangling.onnx")
    assert (out / "link.onnx").is_symlink()
    assert (out / "dangling.onnx").is_symlink()
    for name in ("real.onnx", "new.onnx"):
        assert (out / name).read_bytes() == expected.SerializeToString()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755])
def test_the_mode_of_a_replaced_file_is_kept(mode: int, external_source: Path, out: Path) -> None:
    (out / "m.onnx").write_bytes(b"old")
    (out / "m.onnx").chmod(mode)
    for path in save(load(external_source), out / "m.onnx").files:
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_owner_and_extended_attributes_of_a_replaced_file_are_kept_or_named(
    external_source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = out / "m.onnx"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"here")
        os.chown(path, 12345, 12345)
    except (OSError, AttributeError):
        pytest.skip("no extended attributes, or no right to give files away")
    written = save(load(external_source), path)
    assert written.notes == ()
    for file in written.files:
        assert os.getxattr(file, "user.origin") == b"here"
        assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12345)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    notes = save(load(external_source), path).notes
    assert notes == (f"{path} could not keep its owner and its extended attribute user.origin",)


def test_a_new_file_gets_the_usual_mode(source: Path, out: Path) -> None:
    (out / "usual").write_bytes(b"")
    save(edited(source)[0], out / "m.onnx")
    assert (out / "m.onnx").stat().st_mode == (out / "usual").stat().st_mode


# --- all or nothing -------------------------------------------------------------------------------------------------


def old_files(out: Path) -> dict[str, bytes]:
    (out / "m.onnx").write_bytes(b"old model")
    (out / "m.onnx.data").write_bytes(b"old data")
    return snapshot(out)


def test_a_staged_model_is_complete_and_goes_if_not_committed(source: Path, out: Path) -> None:
    before = old_files(out)
    model, expected = edited(source)
    with stage(model, out / "m.onnx") as staged:
        assert staged.path.suffix == ".onnx"
        assert staged.path.parent.parent == out
        assert onnx.load(staged.path) == expected
        assert (out / "m.onnx").read_bytes() == b"old model"
    assert snapshot(out) == before
    assert sorted(os.listdir(out)) == ["m.onnx", "m.onnx.data"]


def test_a_staged_model_finds_its_external_data(external_source: Path, out: Path) -> None:
    model, expected = edited(external_source)
    with stage(model, out / "m.onnx") as staged:
        assert load(staged.path).materialize() == expected
        onnx.load(staged.path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_leaving_by_an_exception_leaves_nothing(error: type[BaseException], source: Path, out: Path) -> None:
    before = old_files(out)
    with pytest.raises(error), stage(edited(source)[0], out / "m.onnx"):
        raise error
    assert snapshot(out) == before
    assert sorted(os.listdir(out)) == ["m.onnx", "m.onnx.data"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
@pytest.mark.parametrize("fixture", ["source", "external_source"])
def test_a_computation_that_fails_leaves_nothing(
    error: type[BaseException], fixture: str, out: Path, request: pytest.FixtureRequest
) -> None:
    model = load(request.getfixturevalue(fixture))
    before = old_files(out)

    def compute() -> np.ndarray:
        assert len(list(out.iterdir())) == 3  # in the middle of writing
        raise error

    model.proto.graph.initializer[1].CopyFrom(model.store.defer("w1", [40, 40], 1, compute))
    with pytest.raises(error):
        save(model, out / "m.onnx")
    assert snapshot(out) == before
    assert sorted(os.listdir(out)) == ["m.onnx", "m.onnx.data"]


def test_a_full_disk_leaves_nothing(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old_files(out)
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails, as on a full disk
    model = edited(source)[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            save(model, out / "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert snapshot(out) == before
    assert sorted(os.listdir(out)) == ["m.onnx", "m.onnx.data"]


def failing(function: Callable[..., object], fails_at: int, error: BaseException) -> Callable[..., object]:
    """A function that fails at one call."""
    calls = []

    def call(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise error
        return function(*arguments)

    return call


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "in use"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("function", "fails_at"), [("replace", 1), ("replace", 2), ("fsync", 1), ("fsync", 2), ("fsync", 3)]
)
def test_both_files_get_their_names_or_none(
    function: str,
    fails_at: int,
    error: BaseException,
    external_source: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = old_files(out)
    model = edited(external_source)[0]
    monkeypatch.setattr(os, function, failing(getattr(os, function), fails_at, error))
    with pytest.raises((OutputError, KeyboardInterrupt)):
        save(model, out / "m.onnx")
    assert snapshot(out) == before
    assert sorted(os.listdir(out)) == sorted(before)


def test_the_last_sync_fails_after_the_fact(external_source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = edited(external_source)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 4, OSError(errno.EIO, "no disk")))
    notes = save(model, out / "m.onnx").notes
    assert notes == (f"{out / 'm.onnx'} is in place, but the disk has not confirmed it: no disk",)
    assert load(out / "m.onnx").materialize() == expected


def damage(staged: Staged, how: str) -> None:
    data = staged.path.read_bytes()
    if how == "truncated":
        staged.path.write_bytes(data[:-1])
    elif how == "longer":
        staged.path.write_bytes(data + b"\x12\x01x")
    elif how == "gone":
        staged.path.unlink()
    elif how == "another model":
        proto = onnx.ModelProto.FromString(data)
        proto.graph.doc_string = "x" * 2000
        missing = proto.graph.initializer.pop()
        proto.graph.doc_string = "x" * (len(data) - proto.ByteSize() + 2000)
        assert missing.name
        staged.path.write_bytes(proto.SerializeToString())
        assert staged.path.stat().st_size == len(data)


@pytest.mark.parametrize("how", ["truncated", "longer", "gone", "another model"])
def test_what_does_not_read_back_is_not_committed(how: str, source: Path, out: Path) -> None:
    before = old_files(out)
    with stage(edited(source)[0], out / "m.onnx") as staged:
        damage(staged, how)
        with pytest.raises(OutputError, match="does not read back"):
            staged.commit()
    assert snapshot(out) == before


def test_truncated_data_does_not_read_back(external_source: Path, out: Path) -> None:
    before = old_files(out)
    with stage(edited(external_source)[0], out / "m.onnx") as staged:
        data = data_of(staged.path.parent)
        data.write_bytes(data.read_bytes()[:-1])
        with pytest.raises(OutputError, match="does not read back"):
            staged.commit()
    assert snapshot(out) == before


def test_a_source_that_is_cut_while_writing_leaves_nothing(source: Path, out: Path) -> None:
    before = old_files(out)
    model = load(source)

    def compute() -> np.ndarray:
        os.truncate(source, 100)
        return weights(40, 40)

    model.proto.graph.initializer[0].CopyFrom(model.store.defer("w0", [40, 40], 1, compute))
    with pytest.raises(ModelLoadError, match="ends at byte"):
        save(model, out / "m.onnx")
    assert snapshot(out) == before


def test_an_interruption_right_behind_mkdir_leaves_no_folder(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def interrupted(path: Path, mode: int = 0o777) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(load(source), out / "m.onnx")
    assert snapshot(out) == {}
