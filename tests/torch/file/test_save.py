"""Writing state dicts and exported programs: complete, in place at once, or not at all."""

import os
import stat

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from bnfold.errors import OutputError, UnsupportedModelError  # noqa: E402
from bnfold.torch.file import save as save_module  # noqa: E402
from bnfold.torch.file.load import load_program  # noqa: E402
from bnfold.torch.file.save import stage_module, stage_program  # noqa: E402


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3)
        self.small = nn.Linear(4, 4).to(torch.bfloat16)
        self.tied = nn.Linear(4, 4).to(torch.bfloat16)
        self.tied.weight = self.small.weight
        whole = torch.randn(6, 4)
        self.register_buffer("part", whole[2:4])
        self.register_buffer("turned", whole.t())
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        y = self.conv(x).mean((2, 3)).to(torch.bfloat16)
        return self.tied(self.small(y)).float() @ self.turned + self.part.sum()


@pytest.fixture(scope="module")
def program():
    return torch.export.export(Net().eval(), (torch.ones(1, 3, 5, 5),))


def write(context):
    with context as staged:
        staged.commit()


def same(module, state):
    return all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "SAFETENSORS"])
def test_a_state_dict_loads_back(tmp_path, suffix):
    module, path = Net(seed=3), tmp_path / f"w.{suffix}"
    write(stage_module(module, path))
    state = torch.load(path, weights_only=True) if suffix == "pt" else load_file(path)
    other = Net(seed=4)
    other.load_state_dict(state)
    assert same(module, state)
    assert same(other, state)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_program_s_state_dict(tmp_path, program, suffix):
    path = tmp_path / f"w.{suffix}"
    write(stage_program(program, path))
    Net().load_state_dict(torch.load(path, weights_only=True) if suffix == "pt" else load_file(path))


def test_a_program_loads_back(tmp_path, program):
    write(stage_program(program, tmp_path / "m.pt2"))
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(load_program(tmp_path / "m.pt2").module()(x), program.module()(x))
    assert names(tmp_path) == ["m.pt2"]


def test_a_program_as_onnx(tmp_path, program):
    onnx = pytest.importorskip("onnx")
    write(stage_program(program, tmp_path / "m.onnx"))
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["output"]
    assert names(tmp_path) == ["m.onnx"]


def test_a_program_that_calls_more_than_operators_is_refused_by_name(tmp_path):
    class Mapped(nn.Module):
        def forward(self, x):
            return torch.vmap(torch.relu)(x)

    path = tmp_path / "mapped.pt2"
    with pytest.raises(UnsupportedModelError, match="cannot be written as a") as caught:
        write(stage_program(torch.export.export(Mapped(), (torch.ones(2, 3),)), path))
    assert f"{path} would call 'torch._functorch" in str(caught.value)
    assert names(tmp_path) == []


def test_what_torch_onnx_cannot_do_is_said(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x)

    odd = torch.export.export(Odd(), (torch.ones(4, 4),))
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx cannot export") as caught:
        write(stage_program(odd, tmp_path / "m.onnx"))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pt2"])
def test_modes(tmp_path, program, suffix):
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path = tmp_path / f"m.{suffix}"
    write(stage_program(program, path))
    assert stat.S_IMODE(path.stat().st_mode) == usual
    path.chmod(0o640)
    write(stage_program(program, path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pt2", "onnx"])
def test_nothing_is_left_of_what_is_not_committed(tmp_path, program, suffix):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(b"what was there")
    with stage_program(program, path) as staged:
        assert staged.path.stat().st_size > 100
        assert staged.destination == path
    assert path.read_bytes() == b"what was there"
    assert names(tmp_path) == [path.name]


def test_links_are_followed(tmp_path, program):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real" / "w.pt")
    write(stage_program(program, tmp_path / "link.pt"))
    assert names(tmp_path / "real") == ["w.pt"]


@pytest.mark.parametrize("name", ["nowhere/m.pt", "folder.pt", "m.txt", "m", "m.ONN"])
def test_unfit_destinations(tmp_path, program, name):
    (tmp_path / "folder.pt").mkdir()
    for context in (stage_program, stage_module):
        with pytest.raises(OutputError):
            write(context(program if context is stage_program else Net(), tmp_path / name))
    assert names(tmp_path) == ["folder.pt"]


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_a_module_alone_has_no_graph(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.safetensors or \.pt") as caught:
        write(stage_module(Net(), tmp_path / name))
    assert "torch.export.export" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path, program):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        write(stage_program(program, tmp_path / "m.pt"))
    tmp_path.chmod(0o700)


def test_the_source_needs_force(tmp_path, program):
    path = tmp_path / "m.pt2"
    write(stage_program(program, path))
    (tmp_path / "link.pt2").symlink_to(path)
    for target in (path, tmp_path / "link.pt2"):
        with pytest.raises(OutputError, match="read from") as caught:
            write(stage_program(program, target, path))
        assert "--force" in caught.value.hint
        write(stage_program(program, target, path, force=True))


def test_a_full_disk_is_noticed(tmp_path, program, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write(stage_program(program, tmp_path / "m.pt"))
    assert names(tmp_path) == []


def test_a_torn_file_is_noticed(tmp_path, program):
    for suffix in ("pt", "pt2", "safetensors"):
        with stage_program(program, tmp_path / f"m.{suffix}") as staged:
            data = staged.path.read_bytes()
            staged.path.write_bytes(data[: len(data) // 2])
            with pytest.raises(OutputError, match="does not read back"):
                staged.commit()
    assert names(tmp_path) == []


def test_a_lost_tensor_is_noticed(tmp_path, monkeypatch):
    real = save_module._write_safetensors

    def lossy(tensors, target, metadata):
        real({name: tensor for name, tensor in tensors.items() if name != "conv.bias"}, target, metadata)

    monkeypatch.setattr(save_module, "_write_safetensors", lossy)
    with pytest.raises(OutputError, match="lacks tensors"):
        write(stage_module(Net(), tmp_path / "m.safetensors"))


def test_state_that_is_no_tensor_goes_to_pt_only(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    with pytest.raises(OutputError, match="_extra_state"):
        write(stage_module(Extra(2, 2), tmp_path / "m.safetensors"))
    write(stage_module(Extra(2, 2), tmp_path / "m.pt"))
    Extra(2, 2).load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))


@pytest.mark.parametrize("fails", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_failing_rename_leaves_the_old_file(tmp_path, program, monkeypatch, fails):
    path = tmp_path / "m.pt"
    path.write_bytes(b"what was there")

    def refuse(*_):
        raise fails

    with stage_program(program, path) as staged:
        monkeypatch.setattr(save_module.os, "replace", refuse)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            staged.commit()
    monkeypatch.undo()
    assert path.read_bytes() == b"what was there"
    assert names(tmp_path) == ["m.pt"]
