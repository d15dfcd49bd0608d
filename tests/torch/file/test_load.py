"""Loading .pt2 files: good ones load, and nothing in a bad one is run, evaluated or unpickled."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

from bnfold.errors import BnfoldError, ModelLoadError, UnsafeModelError, UnsupportedModelError  # noqa: E402
from bnfold.torch.file.load import load_program  # noqa: E402
from bnfold.torch.file.pt2.archive import check_archive  # noqa: E402

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x, scale):
        y = self.bn(self.conv(x)).relu_()
        left, right = torch.split(y * scale[:, None, None, None], 2, dim=1)
        return {"sum": left + right, "flat": left.reshape(left.shape[0], -1)}


class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    batch, height = Dim("batch"), Dim("height", min=4, max=64)
    shapes = {"x": {0: batch, 2: 2 * height}, "scale": {0: batch}}
    return torch.export.export(Net().eval(), (torch.ones(2, 3, 16, 8), torch.ones(2)), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def archive(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return path


def records(path):
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def write(path, entries, *, root="net", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(f"{root}/{name}" if root else name, data)
    return path


def changed(archive, path, change):
    """The archive with its model document edited."""
    entries = records(archive)
    document = json.loads(entries[MODEL])
    change(document)
    return write(path, {**entries, MODEL: json.dumps(document).encode()})


def first_node(document):
    return document["graph_module"]["graph"]["nodes"][0]


def test_a_program_loads_and_runs(archive, program):
    loaded = load_program(archive)
    args = (torch.randn(3, 3, 20, 8), torch.randn(3))
    expected, found = program.module()(*args), loaded.module()(*args)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.range_constraints


def test_readers_without_sizes(archive, tmp_path, monkeypatch):
    """Those of torch before 2.13."""

    class Reader(torch._C.PyTorchFileReader):
        @property
        def get_record_size(self):
            raise AttributeError

    monkeypatch.setattr("bnfold.torch.file.pt2.archive.torch._C.PyTorchFileReader", Reader)
    with archive.open("rb") as file:
        check_archive(file, archive)
    empty = write(tmp_path / "empty.pt2", {**records(archive), "data/weights/weight_0": b""})
    with empty.open("rb") as file, pytest.raises(ModelLoadError, match="no values"):
        check_archive(file, empty)


def test_programs_of_many_kinds_pass(tmp_path):
    """Nested graphs, lifted constants, half precision, tied weights, named tuples of inputs."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3).half()
            self.other = self.linear
            self.blocks = nn.ModuleDict({"3x3": nn.Linear(3, 3), "down-sample": nn.Linear(3, 3)})

        def forward(self, x, *, extra):
            y = self.other(self.linear(x.half())).float() + torch.tensor([1.0, 2.0, 3.0]) * float("inf")
            with torch.autocast("cpu", torch.bfloat16):
                y = y @ extra["matrix"]
            return self.blocks["3x3"](self.blocks["down-sample"](y)), [y, (extra["matrix"],)]

    cases = [
        (Cond(), (torch.ones(3),), {}),
        (Half(), (torch.ones(2, 3),), {"extra": {"matrix": torch.ones(3, 3)}}),
    ]
    for number, (module, args, kwargs) in enumerate(cases):
        path = tmp_path / f"{number}.pt2"
        torch.export.save(torch.export.export(module.eval(), args, kwargs), path)
        assert load_program(path).graph_signature.user_outputs


def test_rewriting_changes_nothing(archive, tmp_path):
    """The tests below rely on it: an archive written by zipfile loads as well."""
    load_program(changed(archive, tmp_path / "same.pt2", lambda document: None))


def test_not_an_archive(archive, tmp_path):
    good = archive.read_bytes()
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt2")
    (tmp_path / "empty.pt2").write_bytes(b"")
    (tmp_path / "text.pt2").write_text("not a model\n" * 20)
    (tmp_path / "truncated.pt2").write_bytes(good[: len(good) // 2])
    (tmp_path / "tail.pt2").write_bytes(good[:-30])
    (tmp_path / "zip.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    (tmp_path / "model.onnx").write_bytes(good)
    (tmp_path / "folder.pt2").mkdir()
    write(tmp_path / "flat.pt2", records(archive), root="")
    write(tmp_path / "bomb.pt2", {**records(archive), "extra/x": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    for name in ("missing", "state", "empty", "text", "truncated", "tail", "zip", "folder", "flat", "bomb"):
        with pytest.raises(ModelLoadError) as caught:
            load_program(tmp_path / f"{name}.pt2")
        assert f"{name}.pt2" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelLoadError, match=r"does not end in \.pt2"):
        load_program(tmp_path / "model.onnx")


@pytest.mark.parametrize("missing", [MODEL, WEIGHTS, CONSTANTS, SAMPLES, "data/weights/weight_0", "archive_version"])
def test_missing_entries(archive, tmp_path, missing):
    entries = records(archive)
    del entries[missing]
    with pytest.raises(ModelLoadError):
        load_program(write(tmp_path / "m.pt2", entries))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data/constants/custom_obj_0", "custom objects"),
        ("data/constants/opaque_obj_0", "custom objects"),
        ("data/aotinductor/model/a.so", "compiled code"),
        ("data/weights/model.pt", "pickled weights"),
        ("data/something_else", "does not know"),
        ("../escape", "leads out"),
        ("extra/../../escape", "leads out"),
        ("C:\\escape", "leads out"),
    ],
)
def test_entries_that_are_refused(archive, tmp_path, name, words):
    with pytest.raises(UnsafeModelError, match=words):
        load_program(write(tmp_path / "m.pt2", {**records(archive), name: b"x"}))


def test_other_models_and_older_formats(archive, tmp_path):
    with pytest.raises(UnsupportedModelError):
        load_program(write(tmp_path / "two.pt2", {**records(archive), "models/other.json": records(archive)[MODEL]}))
    with pytest.raises(UnsupportedModelError, match=r"torch 2\.7 and older"):
        load_program(write(tmp_path / "old.pt2", {"serialized_exported_program.json": b"{}"}, root=""))


class Hostile:
    """Makes a folder when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("made_by_a_pickle",))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def refused(path, monkeypatch, words=".", error=UnsafeModelError):
    """Loading is refused, and nothing that the file asks for happened."""
    monkeypatch.chdir(path.parent)
    with pytest.raises(error, match=words):
        load_program(path)
    assert not (path.parent / "made_by_a_pickle").exists()


@pytest.mark.parametrize("data", [saved(((Hostile(),), {})), pickle.dumps(Hostile()), b"junk"])
def test_sample_inputs_are_not_unpickled(archive, tmp_path, monkeypatch, data):
    path = write(tmp_path / "m.pt2", {**records(archive), SAMPLES: data})
    refused(path, monkeypatch, "sample inputs")


def test_torch_itself_would_unpickle_them(archive, tmp_path, monkeypatch):
    """What the test above guards against is real."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "m.pt2", {**records(archive), SAMPLES: saved(((Hostile(),), {}))})
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert (tmp_path / "made_by_a_pickle").exists()


@pytest.mark.parametrize("config", [WEIGHTS, CONSTANTS])
def test_pickled_tensors_are_refused(archive, tmp_path, monkeypatch, config):
    entries = records(archive)
    document = json.loads(entries[config])
    record = "weight_0" if config == WEIGHTS else "tensor_0"
    document["config"]["hostile"] = {"path_name": record, "is_param": False, "use_pickle": True, "tensor_meta": None}
    folder = config.rpartition("/")[0]
    entries |= {config: json.dumps(document).encode(), f"{folder}/{record}": saved(Hostile())}
    refused(write(tmp_path / "m.pt2", entries), monkeypatch, "unpickled")


@pytest.mark.parametrize("path_name", ["../models/model.json", "weight_99", "", None, 3])
def test_payloads_that_are_not_there(archive, tmp_path, path_name):
    entries = records(archive)
    document = json.loads(entries[WEIGHTS])
    next(iter(document["config"].values()))["path_name"] = path_name
    with pytest.raises(ModelLoadError):
        load_program(write(tmp_path / "m.pt2", {**entries, WEIGHTS: json.dumps(document).encode()}))


def test_a_tensor_without_values_does_not_fill_the_memory(archive, tmp_path):
    entries = records(archive)
    document = json.loads(entries[WEIGHTS])
    payload = document["config"]["conv.weight"]
    payload["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]
    payload["path_name"] = "weight_77"
    entries |= {WEIGHTS: json.dumps(document).encode(), "data/weights/weight_77": b""}
    with pytest.raises(ModelLoadError, match="no values"):
        load_program(write(tmp_path / "m.pt2", entries))


def test_a_shape_beyond_the_values_is_an_error(archive, tmp_path):
    entries = records(archive)
    document = json.loads(entries[WEIGHTS])
    document["config"]["conv.weight"]["tensor_meta"]["sizes"][0] = {"as_int": 4000}
    with pytest.raises(ModelLoadError):
        load_program(write(tmp_path / "m.pt2", {**entries, WEIGHTS: json.dumps(document).encode()}))


@pytest.mark.parametrize(
    "meta",
    [
        {"sizes": [{"as_int": 1 << 40}, {"as_int": 3}, {"as_int": 3}, {"as_int": 3}], "strides": [{"as_int": 0}] * 4},
        {"sizes": [{"as_int": 1}, {"as_int": 3}, {"as_int": 3}, {"as_int": 3}]},
        {"dtype": 4},
    ],
    ids=["endless by a stride of zero", "too small", "integers"],
)
def test_a_tensor_is_stored_as_it_is_read(archive, tmp_path, meta):
    entries = records(archive)
    document = json.loads(entries[WEIGHTS])
    document["config"]["conv.weight"]["tensor_meta"].update(meta)
    with pytest.raises(ModelLoadError, match=r"conv\.weight|cannot load"):
        load_program(write(tmp_path / "m.pt2", {**entries, WEIGHTS: json.dumps(document).encode()}))


RUN = "__import__('os').mkdir('made_by_a_pickle')"


def set_expression(document):
    for value in document["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = RUN


def set_guard(document):
    document["guards_code"] = [f"{RUN} is None"]


def set_guard_in_text(document):
    document["guards_code"] = [f"L['x'].size()[0] == \"' + {RUN} + '\""]


def set_argument_name(document):
    for entry in document["graph_module"]["module_call_graph"]:
        if entry.get("signature"):
            entry["signature"]["forward_arg_names"] = ["x", f"scale={RUN}"]


def set_placeholder_name(document):
    graph = document["graph_module"]["graph"]
    name = f"x={RUN}"
    text = json.dumps(graph).replace('"x"', json.dumps(name))
    document["graph_module"]["graph"] = json.loads(text)


def set_parameter_name(document):
    for spec in document["graph_module"]["signature"]["input_specs"]:
        if "parameter" in spec:
            spec["parameter"]["parameter_name"] = f'conv.a" if {RUN} else "b'


def set_input_spec(document):
    for entry in document["graph_module"]["module_call_graph"]:
        if entry.get("signature"):
            spec = json.loads(entry["signature"]["in_spec"])
            spec[1]["children_spec"][1]["context"] = json.dumps([f"x={RUN}"])
            entry["signature"]["in_spec"] = json.dumps(spec)


def set_keyword(document):
    first_node(document)["inputs"][0]["name"] = f"input={RUN}, b"


def set_target(target):
    def change(document):
        first_node(document)["target"] = target

    return change


def add_custom_object(document):
    first_node(document)["inputs"][0]["arg"] = {"as_custom_obj": {"name": "a", "class_fqn": "b"}}


@pytest.mark.parametrize(
    "change",
    [
        set_expression,
        set_guard,
        set_guard_in_text,
        set_argument_name,
        set_placeholder_name,
        set_parameter_name,
        set_input_spec,
        set_keyword,
        add_custom_object,
        set_target("torch.os.mkdir"),
        set_target("torch.load"),
        set_target("torch.ops.load_library"),
        set_target("torch.ops.import_module"),
        set_target("torch.ops.aten.from_file.default"),
        set_target("torch.ops.aten.save.default"),
        set_target("torch.ops.debugprims.load_tensor.default"),
        set_target("torch.ops.aten.conv2d.default.decompose"),
        set_target("_operator.methodcaller"),
        set_target("_operator.attrgetter"),
        set_target("math.__loader__.load_module"),
        set_target("#triton:kernel"),
        set_target("os.mkdir"),
    ],
)
def test_no_text_of_the_model_is_run(archive, tmp_path, monkeypatch, change):
    refused(changed(archive, tmp_path / "m.pt2", change), monkeypatch)


def test_torch_itself_would_evaluate_a_size(archive, tmp_path, monkeypatch):
    """What the test above guards against is real."""
    monkeypatch.chdir(tmp_path)
    path = changed(archive, tmp_path / "m.pt2", set_expression)
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert (tmp_path / "made_by_a_pickle").exists()


def test_an_unknown_operator_is_named(archive, tmp_path):
    path = changed(archive, tmp_path / "m.pt2", set_target("torch.ops.nobody.knows.default"))
    with pytest.raises(UnsupportedModelError, match=r"torch\.ops\.nobody\.knows\.default"):
        load_program(path)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100000, b'{"graph_module": {}}', b'{"graph_module": 3}'],
)
def test_documents_that_are_none(archive, tmp_path, document):
    with pytest.raises(ModelLoadError):
        load_program(write(tmp_path / "m.pt2", {**records(archive), MODEL: document}))


@pytest.mark.slow
def test_flipped_bytes_never_crash(archive, tmp_path):
    """Either the file loads all the same, or one of bnfold's errors says why not."""
    import random

    rng = random.Random(0)
    good = archive.read_bytes()
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "m.pt2").write_bytes(data)
        with contextlib.suppress(BnfoldError):
            load_program(tmp_path / "m.pt2")
