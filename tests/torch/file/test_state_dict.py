"""Weights from files: what fits, what is unwrapped, what is refused."""

import os
import pickle
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from bnfold.errors import ModelLoadError, UnsafeModelError, UnsupportedModelError  # noqa: E402
from bnfold.torch.file.state_dict import load_weights  # noqa: E402


class Net(nn.Module):
    def __init__(self, width=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.model = nn.Linear(width, 2)  # a name that is also a prefix of wrappers

    def forward(self, x):
        return self.model(self.bn(self.conv(x)).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def source():
    return {name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor
            for name, tensor in Net(seed=7).state_dict().items()}  # fmt: skip


def same(module, state):
    loaded = module.state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "legacy.pt"])
def test_formats(tmp_path, suffix):
    state, path, module = source(), tmp_path / f"w.{suffix}", Net()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == "pt")
    loaded = load_weights(module, path)
    assert same(module, state)
    assert (loaded.nest, loaded.prefix, str(loaded)) == ((), "", str(path))


@pytest.mark.parametrize(
    ("wrap", "nest", "prefix"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, ("state_dict",), ""),
        (lambda state: {"model": state}, ("model",), ""),
        (lambda state: {"model_state_dict": prefixed(state, "module.")}, ("model_state_dict",), "module."),
        (lambda state: {"model": {"state_dict": state}}, ("model", "state_dict"), ""),
        (lambda state: prefixed(state, "module."), (), "module."),
        (lambda state: prefixed(state, "_orig_mod."), (), "_orig_mod."),
        (lambda state: prefixed(state, "module._orig_mod."), (), "module._orig_mod."),
        (lambda state: {"state_dict": prefixed(state, "model.")}, ("state_dict",), "model."),
        (lambda state: {"model": prefixed(state, "other."), "ema": state}, ("ema",), ""),
        (lambda state: {"ema": {name: tensor * 0 for name, tensor in state.items()}, "model": state}, ("model",), ""),
    ],
)
def test_nests_and_prefixes(tmp_path, wrap, nest, prefix):
    state, module = source(), Net()
    torch.save(wrap(state), tmp_path / "w.pt")
    loaded = load_weights(module, tmp_path / "w.pt")
    assert same(module, state)
    assert (loaded.nest, loaded.prefix) == (nest, prefix)


def test_a_compiled_part_inside(tmp_path):
    state, module = source(), Net()
    torch.save({name.replace("conv.", "conv._orig_mod."): tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt")
    assert same(module, state)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    state, module = source(), Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del state["conv.weight"], state["bn.bias"]
    state |= {f"extra.{index}": torch.ones(1) for index in range(5)}
    state["model.weight"] = torch.ones(3, 3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelLoadError) as caught:
        load_weights(module, tmp_path / "w.pt")
    words = str(caught.value)
    assert "2 missing (conv.weight, bn.bias)" in words
    assert "5 unexpected (extra.0, extra.1, extra.2 and 2 more)" in words
    assert "1 of another shape (model.weight is 3x3, not 2x4)" in words
    assert same(module, before)


def test_weights_of_another_width(tmp_path):
    torch.save(Net(8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelLoadError, match=r"conv.weight is 8x3x3x3, not 4x3x3x3"):
        load_weights(Net(), tmp_path / "w.pt")


def test_old_checkpoints_have_no_counter(tmp_path):
    state = source()
    del state["bn.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pt")
    module = Net()
    load_weights(module, tmp_path / "w.pt")
    assert same(module, state)


@pytest.mark.parametrize("dropped", ["first.weight", "second.weight"])
def test_one_name_of_tied_weights_is_enough(tmp_path, dropped):
    state = {name: tensor.clone() for name, tensor in Tied(seed=3).state_dict().items() if name != dropped}
    save_file(state, tmp_path / "w.safetensors")
    module = Tied()
    load_weights(module, tmp_path / "w.safetensors")
    assert same(module, state)
    assert module.first.weight is module.second.weight


def test_a_module_on_the_meta_device_takes_them(tmp_path):
    state = source()
    torch.save(state, tmp_path / "w.pt")
    with torch.device("meta"):
        module = Net()
    load_weights(module, tmp_path / "w.pt")
    assert same(module, state)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("made_by_a_pickle",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": source(), "args": Hostile()}, "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeModelError, match="would run code when loaded") as caught:
        load_weights(Net(), "w.pt")
    assert "--trust-pickle" in caught.value.hint
    assert caught.value.exit_code == 3
    assert not (tmp_path / "made_by_a_pickle").exists()
    load_weights(Net(), "w.pt", trust_pickle=True)
    assert (tmp_path / "made_by_a_pickle").exists()


def test_whole_modules_need_trust(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, Net.__module__, sys.modules.get(Net.__module__) or type(sys)(Net.__module__))
    monkeypatch.setattr(sys.modules[Net.__module__], "Net", Net, raising=False)
    whole, module = Net(seed=5), Net()
    torch.save(whole, tmp_path / "w.pt")
    with pytest.raises(UnsafeModelError, match=r"\(.*Net\)"):
        load_weights(module, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt", trust_pickle=True)
    assert same(module, whole.state_dict())


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    for trusted in (False, True):
        with pytest.raises(UnsupportedModelError, match="TorchScript"):
            load_weights(nn.Linear(2, 2), tmp_path / "w.pt", trust_pickle=trusted)


def damaged_files(folder):
    save_file(source(), folder / "good.safetensors")
    torch.save(source(), folder / "good.pt")
    good, tensors = (folder / "good.pt").read_bytes(), (folder / "good.safetensors").read_bytes()
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("these are not weights\n" * 9)
    (folder / "truncated.pt").write_bytes(good[: len(good) // 2])
    (folder / "truncated.safetensors").write_bytes(tensors[: len(tensors) // 2])
    (folder / "short.safetensors").write_bytes(b"abc")
    (folder / "huge.safetensors").write_bytes(b"\xff" * 100)
    (folder / "number.pt").write_bytes(pickle.dumps(3))
    (folder / "zip.pt").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "folder.pt").mkdir()
    torch.save([1, 2], folder / "list.pt")
    torch.save({"epoch": 3}, folder / "no_tensors.pt")
    return [
        *("missing.pt", "empty.pt", "text.pt", "truncated.pt", "truncated.safetensors", "short.safetensors"),
        *("huge.safetensors", "number.pt", "zip.pt", "folder.pt", "list.pt", "no_tensors.pt"),
    ]


def test_damaged_files_get_one_sentence(tmp_path):
    for name in damaged_files(tmp_path):
        with pytest.raises(ModelLoadError) as caught:
            load_weights(Net(), tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
