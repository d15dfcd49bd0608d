"""Loading as a skeleton: the same model as onnx.load gives, and a sentence for what is no model."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from bnfold.errors import ModelLoadError, UnsafeModelError, UnsupportedModelError
from bnfold.onnx.file.load import from_proto, load, skeleton_for_inference
from bnfold.onnx.file.tensors import FileRange
from bnfold.onnx.file.wire import header
from bnfold.onnx.lift.check import check

BACKEND_DATA = Path(onnx.backend.test.__file__).parent / "data"
LIGHT = sorted((BACKEND_DATA / "light").glob("*.onnx"))
OTHERS = sorted(path for path in BACKEND_DATA.rglob("*.onnx") if path not in LIGHT)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def constant(name: str, seed: int = 0) -> onnx.NodeProto:
    return oh.make_node("Constant", [], [name], value=onh.from_array(weights(32, 32, seed=seed)))


def image(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def conv_model(
    *, ir_version: int = 8, opset: int = 17, weight_shape: tuple[int, ...] = (8, 16, 3, 3)
) -> onnx.ModelProto:
    weight = onh.from_array(weights(*weight_shape), "w")
    inputs = [image("x", 1, 16, 9, 9)]
    if ir_version < 4:
        inputs.append(image("w", *weight_shape))
    graph = oh.make_graph([oh.make_node("Conv", ["x", "w"], ["y"])], "g", inputs, [image("y", 1, 8, 7, 7)], [weight])
    return oh.make_model(graph, ir_version=ir_version, opset_imports=[oh.make_opsetid("", opset)])


def nested_model() -> onnx.ModelProto:
    """Large tensors in the branches of If, in the body of Loop and in a function."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [constant(f"{name}_k", seed), oh.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_m"])]
        nodes.append(oh.make_node("Add", [f"{name}_m", f"{name}_k"], [f"{name}_y"]))
        initializer = onh.from_array(weights(32, 32, seed=seed + 1), f"{name}_w")
        return oh.make_graph(nodes, name, [], [image(f"{name}_y", 32, 32)], [initializer])

    body = oh.make_graph(
        [
            constant("body_k", 5),
            oh.make_node("Add", ["state", "body_k"], ["next"]),
            oh.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            oh.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            oh.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            image("state", 32, 32),
        ],
        [oh.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []), image("next", 32, 32)],
    )
    function = oh.make_function(
        "local",
        "shift",
        ["a"],
        ["b"],
        [constant("fk", 6), oh.make_node("Add", ["a", "fk"], ["b"])],
        [oh.make_opsetid("", 17)],
    )
    nodes = [
        oh.make_node("If", ["c"], ["picked"], then_branch=branch("then", 1), else_branch=branch("else", 3)),
        oh.make_node("Loop", ["n", "c", "picked"], ["looped"], body=body),
        oh.make_node("shift", ["looped"], ["y"], domain="local"),
    ]
    graph = oh.make_graph(
        nodes,
        "g",
        [
            image("x", 32, 32),
            oh.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
            oh.make_tensor_value_info("n", onnx.TensorProto.INT64, []),
        ],
        [image("y", 32, 32)],
    )
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("local", 1)]
    return oh.make_model(graph, ir_version=8, opset_imports=opsets, functions=[function])


def write(folder: Path, proto: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


# --- the same model -------------------------------------------------------------------------------------------------


def test_there_are_models_to_try() -> None:
    assert len(LIGHT) == 9
    assert len(OTHERS) > 100


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_models_load_as_with_onnx(path: Path) -> None:
    model = load(path)
    assert model.materialize() == onnx.load(path)
    check(model)


def test_backend_models_load_as_with_onnx() -> None:
    for path in OTHERS:
        assert load(path).materialize() == onnx.load(path), path


@pytest.mark.parametrize("build", [conv_model, nested_model])
def test_large_tensors_stay_in_the_file(build, tmp_path) -> None:
    proto = build()
    path = write(tmp_path, proto)
    model = load(path)
    assert model.proto.ByteSize() < 2000 < proto.ByteSize()
    assert model.materialize() == proto
    assert model.path == path
    assert not model.has_external_data
    check(model)


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, conv_model())
    monkeypatch.chdir(tmp_path)
    assert load("m.onnx").path == tmp_path / "m.onnx"


def test_an_explicit_default_location_is_kept(tmp_path) -> None:
    proto = conv_model()
    proto.graph.initializer[0].data_location = onnx.TensorProto.DEFAULT
    model = load(write(tmp_path, proto))
    assert not model.proto.graph.initializer[0].HasField("raw_data")
    assert model.materialize() == proto


def test_stale_external_entries_beside_raw_data_are_kept(tmp_path) -> None:
    proto = conv_model()
    proto.graph.initializer[0].external_data.add(key="location", value="../gone")
    model = load(write(tmp_path, proto))
    assert model.materialize() == proto
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), weights(8, 16, 3, 3))


def test_raw_data_given_twice_is_read_as_protobuf_does(tmp_path) -> None:
    first, second = (onh.from_array(weights(300, seed=s), "w").SerializeToString() for s in (1, 2))
    graph = b"\x12\x01g" + header(5, len(first + second)) + first + second
    data = b"\x08\x08" + header(7, len(graph)) + graph
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    expected = onnx.ModelProto.FromString(data)
    assert len(expected.graph.initializer[0].dims) == 2  # merged: what a naive reader would get wrong
    assert load(path).materialize() == expected


def test_copies_share_values_but_not_the_skeleton(tmp_path) -> None:
    model = load(write(tmp_path, conv_model()))
    copy = model.copy()
    copy.proto.graph.node[0].name = "other"
    assert model.proto.graph.node[0].name == ""
    assert np.array_equal(copy.array(copy.proto.graph.initializer[0]), weights(8, 16, 3, 3))


def test_a_model_in_memory_is_neither_copied_nor_changed() -> None:
    for build in (conv_model, nested_model):
        proto = build()
        before = proto.SerializeToString()
        model = from_proto(proto)
        assert model.path is None
        assert model.materialize() == proto
        model.proto.graph.node[0].name = "other"
        assert proto.SerializeToString() == before
        check(model)
    assert not from_proto(conv_model()).proto.graph.initializer[0].HasField("raw_data")


def test_all_fields_of_a_model_in_memory_are_taken() -> None:
    for path in LIGHT:
        proto = onnx.load(path)
        proto.metadata_props.add(key="k", value="v")
        proto.graph.metadata_props.add(key="k", value="v")
        proto.graph.initializer[0].doc_string = "doc"
        assert from_proto(proto).materialize() == proto


def test_loading_and_saving_import_no_runtime() -> None:
    code = """
import sys
import bnfold.onnx.file.load, bnfold.onnx.file.save
print([name for name in ("torch", "onnxruntime", "onnx_ir") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.strip() == b"[]"


# --- what can be understood --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ir_version", "opset"), [(3, 8), (4, 9), (8, 17)])
def test_valid_models_pass_the_check(ir_version: int, opset: int, tmp_path) -> None:
    check(load(write(tmp_path, conv_model(ir_version=ir_version, opset=opset))))


def test_what_contradicts_itself_is_refused_by_name(tmp_path) -> None:
    proto = conv_model()
    proto.graph.node[0].input[0] = "no_such_value"
    with pytest.raises(
        ModelLoadError, match=r"m.onnx is not a valid ONNX model: Conv '.*' reads 'no_such_value', which nothing gives"
    ) as caught:
        check(load(write(tmp_path, proto)))
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_declared_shape_that_contradicts_the_weight_is_stale(tmp_path) -> None:
    check(load(write(tmp_path, conv_model(weight_shape=(9, 16, 3, 3)))))


@pytest.mark.parametrize("where", ["then_branch", "body", "function", "constant"])
def test_faults_anywhere_are_found(where: str, tmp_path) -> None:
    proto = nested_model()
    if where == "then_branch":
        proto.graph.node[0].attribute[0].g.node[1].input[0] = "no_such_value"
    elif where == "body":
        proto.graph.node[1].attribute[0].g.node[1].input[1] = "no_such_value"
    elif where == "function":
        proto.functions[0].node[1].input[1] = "no_such_value"
    else:
        proto.graph.node[0].attribute[0].g.node[0].attribute[0].t.ClearField("data_type")
        proto.graph.node[0].attribute[0].g.node[0].attribute[0].t.ClearField("raw_data")
    with pytest.raises(ModelLoadError, match="not a valid ONNX model"):
        check(load(write(tmp_path, proto)))


def test_unknown_domains_pass_the_check(tmp_path) -> None:
    proto = conv_model()
    proto.graph.node[0].domain = "com.microsoft"
    proto.graph.node[0].op_type = "FusedConv"
    proto.opset_import.add(domain="com.microsoft", version=1)
    check(load(write(tmp_path, proto)))


def test_the_check_does_not_print(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    proto = nested_model()
    branch = proto.graph.node[0].attribute[0].g
    branch.node.append(oh.make_node("ImageScaler", [branch.output[0].name], ["scaled"], scale=1.0))
    proto.functions[0].node.append(oh.make_node("Affine", ["b"], ["s"], alpha=1.0))
    path = write(tmp_path, proto)
    check(load(path))
    assert capfd.readouterr() == ("", "")
    assert load(path).materialize() == proto


def test_inference_sees_shapes_but_not_weights(tmp_path) -> None:
    target = np.ones(200, np.int64)  # 1600 bytes: by reference, and yet it is a shape
    target[-1] = 144
    nodes = [oh.make_node("Reshape", ["w", "shape"], ["y"])]
    graph = oh.make_graph(
        nodes,
        "g",
        [],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onh.from_array(weights(12, 12), "w"), onh.from_array(target, "shape"), onh.from_array(weights(99999), "v")],
    )
    model = load(write(tmp_path, oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)))
    bones = skeleton_for_inference(model)
    assert bones.ByteSize() < 3000
    inferred = onnx.shape_inference.infer_shapes(bones, data_prop=True, strict_mode=True)
    shape = inferred.graph.output[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == target.tolist()


# --- what is no model -----------------------------------------------------------------------------------------------


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x" * 100)


def a_fifo(path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no fifos")
    os.mkfifo(path)


NOT_MODELS = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "random": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "not a complete ONNX model"),
    "text": (lambda p: p.write_text("hello, this is a text file\n" * 99), "not a complete ONNX model"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "not a complete ONNX model"),
    "png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "PNG image"),
    "zip": (a_zip, "zip archive"),
    "ort": (lambda p: p.write_bytes(b"\x00\x01\x00\x00ORTM" + bytes(99)), r"\.ort file"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "Git LFS"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><html></html>"), "HTML"),
    "tensor": (lambda p: p.write_bytes(onh.from_array(weights(40)).SerializeToString()), "not a complete ONNX"),
    "no graph": (lambda p: p.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "missing": (lambda p: None, "does not exist"),
    "fifo": (a_fifo, "not a regular file"),
    "loop": (lambda p: p.symlink_to(p), "cannot be read"),
}


@pytest.mark.parametrize(("make", "words"), NOT_MODELS.values(), ids=NOT_MODELS.keys())
def test_what_is_no_model_is_refused(make, words: str, tmp_path) -> None:
    path = tmp_path / "m.onnx"
    make(path)
    with pytest.raises(ModelLoadError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m.ort", "m.pt", "m.pb", "m", "m.onnx.zip"])
def test_other_extensions_are_refused(name: str, tmp_path) -> None:
    path = write(tmp_path, conv_model(), name)
    with pytest.raises(ModelLoadError, match="onnx") as caught:
        load(path)
    assert ".onnx" in caught.value.hint


def test_a_capital_extension_is_accepted(tmp_path) -> None:
    load(write(tmp_path, conv_model(), "M.ONNX"))


def test_truncated_models_are_refused(tmp_path) -> None:
    data = conv_model().SerializeToString()
    path = tmp_path / "m.onnx"
    for stop in range(1, len(data), 97):
        path.write_bytes(data[:stop])
        with pytest.raises(ModelLoadError, match="complete ONNX model"):
            load(path)


@pytest.mark.parametrize("dims", [(8, 16, 3, 4), (8, 16, 3, 2), (8, 16, 3, -3), (2**62, 2**62)])
def test_raw_data_that_contradicts_its_shape_is_refused(dims: tuple[int, ...], tmp_path) -> None:
    proto = conv_model()
    proto.graph.initializer[0].dims[:] = dims
    with pytest.raises(ModelLoadError, match=r"m\.onnx: the tensor 'w'"):
        load(write(tmp_path, proto))
    with pytest.raises(ModelLoadError, match="the tensor 'w'"):
        from_proto(proto)


@pytest.mark.parametrize("data_type", [0, 8, 77])
def test_raw_data_of_unknown_type_is_refused(data_type: int, tmp_path) -> None:
    proto = conv_model()
    proto.graph.initializer[0].data_type = data_type
    with pytest.raises(ModelLoadError, match=r"m\.onnx: the tensor 'w' has raw data of the unknown type"):
        load(write(tmp_path, proto))


@pytest.mark.parametrize("where", ["node", "input", "initializer", "attribute", "branch", "function"])
def test_names_that_are_no_text_are_refused(where: str, tmp_path) -> None:
    proto = nested_model()
    proto.graph.initializer.append(onh.from_array(weights(2), "initializer"))
    target = {
        "node": b"\x22\x04Loop",
        "input": b"\x06picked",
        "initializer": b"initializer",
        "attribute": b"then_branch",
        "branch": b"then_m",
        "function": b"\x05shift",
    }[where]
    data = proto.SerializeToString()
    assert target in data
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(target, target[:-1] + b"\xff"))
    assert onnx.ModelProto.FromString(path.read_bytes()).HasField("graph")
    with pytest.raises(ModelLoadError, match="UTF-8"):
        load(path)


def test_a_proto_without_graph_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="no graph"):
        from_proto(onnx.ModelProto())


# --- external data --------------------------------------------------------------------------------------------------


def external_model(folder: Path, proto: onnx.ModelProto, location: str = "m.onnx.data") -> Path:
    path = folder / "m.onnx"
    onnx.save_model(
        proto,
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=0,
        convert_attribute=True,
    )
    return path


@pytest.mark.parametrize("build", [conv_model, nested_model])
def test_external_data_is_found(build, tmp_path) -> None:
    proto = build()
    functions = [onnx.FunctionProto.FromString(f.SerializeToString()) for f in proto.functions]
    path = external_model(tmp_path, proto)
    model = load(path)
    assert model.has_external_data
    expected = build()
    del expected.functions[:]
    expected.functions.extend(functions)
    assert model.materialize() == expected
    check(model)


def pointing(folder: Path, **entries: str) -> Path:
    """A model whose weight points to the given place."""
    proto = conv_model()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return write(folder, proto)


NBYTES = 8 * 16 * 9 * 4


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for a model, with a secret beside it."""
    inner = tmp_path / "models"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(bytes(NBYTES))
    (inner / "data").write_bytes(weights(8, 16, 3, 3).tobytes())
    return inner


def test_plain_external_data_loads(folder: Path) -> None:
    model = load(pointing(folder, location="data"))
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), weights(8, 16, 3, 3))


def test_external_data_in_a_folder_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "data").rename(folder / "sub" / "data")
    assert load(pointing(folder, location="sub/data", offset="0", length=str(NBYTES))).has_external_data


@pytest.mark.parametrize("location", ["sub/../data", "./sub/.././data"])
def test_external_data_down_and_up_again(folder: Path, location: str) -> None:
    (folder / "sub").mkdir()
    assert load(pointing(folder, location=location)).has_external_data
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    (folder / "data").rename(folder.parent / "data")
    with pytest.raises(UnsafeModelError, match="link"):
        load(pointing(folder, location=location))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "sub/../../secret",
        "sub/../../sub/data",
        "sub\\..\\..\\secret",
        "{secret}",
        "..",
        "..\\secret",
        "C:\\secret",
        "\\\\host\\secret",
        "/dev/zero",
        "a\0b",
    ],
)
def test_locations_outside_are_refused(location: str, folder: Path) -> None:
    location = location.replace("{secret}", str(folder.parent / "secret"))
    with pytest.raises(UnsafeModelError, match=r"m\.onnx") as caught:
        load(pointing(folder, location=location))
    assert caught.value.exit_code == 3


def test_a_bare_file_name_is_contained_as_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointing(folder, location="../secret")
    monkeypatch.chdir(folder)
    with pytest.raises(UnsafeModelError):
        load("m.onnx")


@pytest.mark.parametrize("target", ["../secret", "/dev/zero", "/etc/passwd"])
def test_links_out_of_the_folder_are_refused(target: str, folder: Path) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(UnsafeModelError, match="link"):
        load(pointing(folder, location="link"))


def test_a_linked_folder_is_refused(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)
    with pytest.raises(UnsafeModelError, match="link"):
        load(pointing(folder, location="sub/secret"))


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "link").symlink_to("data")
    assert load(pointing(folder, location="link")).has_external_data


def test_a_download_cache_of_links_is_followed(folder: Path, tmp_path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    pointing(folder, location="data").rename(blobs / "1")
    (folder / "data").rename(blobs / "2")
    (snapshot / "m.onnx").symlink_to("../blobs/1")
    (snapshot / "data").symlink_to("../blobs/2")
    assert load(snapshot / "m.onnx").has_external_data


@pytest.mark.parametrize("kind", ["folder", "fifo", "."])
def test_what_is_no_file_is_refused(kind: str, folder: Path) -> None:
    if kind == "folder":
        (folder / kind).mkdir()
    elif kind == "fifo":
        a_fifo(folder / kind)
    with pytest.raises(UnsafeModelError, match="not a regular file"):
        load(pointing(folder, location=kind))


WRONG_RANGES = {
    "missing file": {"location": "gone"},
    "a name too long": {"location": "x" * 5000},
    "no location": {"offset": "0"},
    "empty location": {"location": ""},
    "offset past the end": {"location": "data", "offset": "1"},
    "offset far past the end": {"location": "data", "offset": str(2**63), "length": str(NBYTES)},
    "length past the end": {"location": "data", "length": str(NBYTES + 4)},
    "length too small": {"location": "data", "length": "4"},
    "negative offset": {"location": "data", "offset": "-4"},
    "no number": {"location": "data", "offset": "four"},
    "an endless number": {"location": "data", "offset": "9" * 5000},
    "digits of another script": {"location": "data", "offset": "\u0664"},
}


@pytest.mark.parametrize("entries", WRONG_RANGES.values(), ids=WRONG_RANGES.keys())
def test_wrong_ranges_are_refused(entries: dict[str, str], folder: Path) -> None:
    path = pointing(folder, **entries)
    with pytest.raises(ModelLoadError) as caught:
        check(load(path))
    assert "m.onnx" in str(caught.value)


def test_locations_that_are_no_text_are_refused(folder: Path) -> None:
    path = pointing(folder, location="data")
    path.write_bytes(path.read_bytes().replace(b"\x04data", b"\x04da\xff\xff"))
    with pytest.raises(ModelLoadError, match="UTF-8"):
        load(path)


@pytest.mark.parametrize("location", ["#" + "0" * 32 + "/0", "#/0", "#data"])
def test_a_reference_made_up_by_a_file_is_not_taken_for_ours(location: str, folder: Path) -> None:
    proto = conv_model()
    proto.graph.initializer.append(proto.graph.initializer[0])  # something that reference 0 could stand for
    proto.graph.initializer[1].name = "v"
    forged = proto.graph.initializer[1]
    forged.ClearField("raw_data")
    forged.data_location = onnx.TensorProto.EXTERNAL
    forged.external_data.add(key="location", value=location)
    path = write(folder, proto)
    with pytest.raises(ModelLoadError, match="cannot be found"):
        load(path)


def test_external_data_of_a_sparse_tensor_is_refused(folder: Path) -> None:
    values = onnx.TensorProto(name="s", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    values.external_data.add(key="location", value="data")
    proto = conv_model()
    proto.graph.sparse_initializer.append(oh.make_sparse_tensor(values, onh.from_array(np.zeros(1, np.int64)), [4]))
    with pytest.raises(UnsupportedModelError, match=r"m\.onnx: a sparse tensor"):
        load(write(folder, proto))


def test_external_data_of_a_proto_in_memory_is_refused(folder: Path) -> None:
    proto = onnx.load(pointing(folder, location="data"), load_external_data=False)
    with pytest.raises(ModelLoadError, match="'w' in an external file"):
        from_proto(proto)
    proto = nested_model()
    tensor = proto.functions[0].node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ModelLoadError, match="external file"):
        from_proto(proto)


def test_metadata_called_location_is_no_external_data(tmp_path) -> None:
    proto = conv_model()
    proto.metadata_props.add(key="location", value="../secret")
    proto.graph.node[0].doc_string = "location"
    model = load(write(tmp_path, proto))
    assert not model.has_external_data
    assert model.materialize() == proto


def test_a_file_full_of_something_else_is_not_read(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        for position in range(2):  # two doc strings of 2 GiB less a byte, as holes
            file.seek(position * (2**31 + 5))
            file.write(header(6, 2**31 - 1))
        file.truncate(2 * (2**31 + 5))
    with pytest.raises(ModelLoadError, match="2 GiB besides its weights"):
        load(path)


def test_materialize_refuses_what_no_protobuf_can_hold(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "data").open("wb") as file:
        file.truncate(3 << 30)  # a hole: takes no space
    proto = oh.make_model(oh.make_graph([], "g", [], []))
    weight = proto.graph.initializer.add(name="w", dims=[3 << 28], data_type=1, data_location=1)
    weight.external_data.add(key="location", value="data")
    model = load(write(tmp_path, proto))
    assert model.store.nbytes(model.proto.graph.initializer[0]) == 3 << 30
    with pytest.raises(UnsupportedModelError, match="2 GiB"):
        model.materialize()


def test_large_sparse_tensors_stay_in_the_skeleton(tmp_path) -> None:
    proto = conv_model()
    values = onh.from_array(weights(500), "s")
    indices = onh.from_array(np.arange(500), "i")
    proto.graph.sparse_initializer.append(oh.make_sparse_tensor(values, indices, [500]))
    model = load(write(tmp_path, proto))
    assert model.materialize() == proto
    check(model)
    assert all(isinstance(blob, FileRange) for blob in model.store._blobs.values())


def test_an_output_of_undeclared_shape_is_no_reason_to_refuse(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    check(load(tmp_path / "m.onnx"))


def test_a_vocabulary_of_millions_of_words_is_no_attack(tmp_path) -> None:
    words = [b"word%d" % number for number in range(1_300_000)]
    proto = oh.make_model(oh.make_graph([], "g", [], [], [oh.make_tensor("words", 8, [len(words)], words)]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").proto == proto
