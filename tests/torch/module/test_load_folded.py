"""A folded state dict shapes a fresh module and loads; a file of another module is refused, with the difference."""

import json

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402


class Net(nn.Module):
    """Everything that a fold changes in structure: gone BNs, new biases, a parametrization, and a BN that stays."""

    def __init__(self, width=4, *, flat=False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.flat = nn.BatchNorm2d(width, affine=False) if flat else nn.Identity()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(width, width, 1))
        self.second = nn.BatchNorm2d(width)
        self.last = nn.BatchNorm2d(width)

    def forward(self, image):
        return self.last(torch.relu(self.second(self.normed(self.flat(self.bn(self.conv(image)))))))


def make(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    module = Net(*args, **kwargs)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.uniform_(-1, 1)
            child.running_var.uniform_(0.5, 2)
            if child.affine:
                nn.init.uniform_(child.weight, 0.5, 2)
                nn.init.uniform_(child.bias, 0.1, 1)
    return module.eval()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "folded.safetensors"
    result = bnfold.fold(make(), (IMAGE,))
    result.save(path)
    return path, result


def structure(module):
    return [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]


def test_a_fresh_module_becomes_the_folded_one(saved):
    path, result = saved
    fresh = make(seed=7).train()
    loaded = bnfold.load_folded(fresh, path)
    assert loaded is fresh
    assert not loaded.training
    out = result.model(IMAGE)
    assert out.std() > 0.1
    assert torch.equal(loaded(IMAGE), out)
    assert structure(loaded) == structure(result.model)
    assert isinstance(loaded.bn, nn.Identity)
    assert loaded.conv.bias is not None
    assert not nn.utils.parametrize.is_parametrized(loaded.normed)
    assert isinstance(loaded.last, nn.BatchNorm2d)
    torch.testing.assert_close(out, make()(IMAGE), rtol=1e-4, atol=1e-5)


def test_a_plain_load_state_dict_would_not_do(saved):
    with pytest.raises(RuntimeError):
        make().load_state_dict(load_file(saved[0]))


def test_a_module_without_memory_and_one_in_a_wrapper(saved):
    path, result = saved
    with torch.device("meta"):
        fresh = Net()
    assert torch.equal(bnfold.load_folded(fresh, path)(IMAGE), result.model(IMAGE))
    wrapped = nn.DataParallel(make(seed=3))
    assert torch.equal(bnfold.load_folded(wrapped, path)(IMAGE), result.model(IMAGE))


def test_the_file_says_what_it_is(saved):
    path, result = saved
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["bnfold"])
    assert document["schema"] == "bnfold.state/1"
    assert document["version"] == bnfold.__version__
    assert document["class"] == "Net"
    assert [entry["nodes"] for entry in document["plan"]["folds"]] == [list(fold.nodes) for fold in result.plan.folds]
    assert document["plan"]["left"][0]["nodes"] == ["last"]


@pytest.mark.parametrize(
    ("build", "difference"),
    [
        (lambda: make(8), "conv.weight is 8x3x3x3, not 4x3x3x3"),
        (lambda: make(flat=True), "it has besides flat.running_mean"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "the module lacks conv.weight, bn.weight, bn.bias and"),
    ],
)
def test_another_module_is_refused_with_the_difference(saved, build, difference):
    module = build()
    before = str(module), structure(module)
    with pytest.raises(bnfold.ModelLoadError) as caught:
        bnfold.load_folded(module, saved[0])
    assert difference in str(caught.value)
    assert "It is of a Net" in caught.value.hint
    assert (str(module), structure(module)) == before


class InstanceNormed(Net):
    """Names and shapes are those of Net, and the class of a layer is not."""

    def __init__(self):
        super().__init__()
        self.bn = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)


def test_a_layer_of_another_class_is_refused(saved):
    module = InstanceNormed()
    with pytest.raises(bnfold.ModelLoadError, match="bn is a InstanceNorm2d, not a BatchNorm2d"):
        bnfold.load_folded(module, saved[0])


def rewritten(path, target, change):
    """The file with other tensors or metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    document, state = json.loads(metadata["bnfold"]), load_file(path)
    change(document, state)
    save_file(state, target, {"format": "pt", "bnfold": json.dumps(document)})
    return target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda document, state: state.pop("conv.bias"), "does not have it"),
        (lambda document, state: state.pop("last.weight"), "the file lacks last.weight"),
        (lambda document, state: state.update(more=torch.ones(1)), "it has besides more"),
        (lambda document, state: state.update({"last.bias": torch.ones(3)}), "last.bias is 3, not 4"),
        (lambda document, state: document["structure"]["removed"].pop("bn"), "the file lacks bn.weight"),
        (lambda document, state: document["structure"].pop("added"), "metadata that cannot be read"),
        (lambda document, state: document["structure"].update(removed=[1]), "metadata that cannot be read"),
        (lambda document, state: document.update(schema="bnfold.state/9"), "is of schema bnfold.state/9"),
        (lambda document, state: document.pop("schema"), "metadata that cannot be read"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(saved, tmp_path, change, says):
    path = rewritten(saved[0], tmp_path / "w.safetensors", change)
    module = make()
    before = str(module)
    with pytest.raises(bnfold.ModelLoadError, match=says):
        bnfold.load_folded(module, path)
    assert str(module) == before


def test_files_of_another_kind(saved, tmp_path):
    save_file(make().state_dict(), tmp_path / "plain.safetensors")
    torch.save(make().state_dict(), tmp_path / "plain.pt")
    for name, says in (("plain.safetensors", "was not written of a module"), ("plain.pt", "not a .safetensors file")):
        with pytest.raises(bnfold.ModelLoadError, match=says):
            bnfold.load_folded(make(), tmp_path / name)
    with pytest.raises(bnfold.ModelLoadError, match="does not exist"):
        bnfold.load_folded(make(), tmp_path / "nothing.safetensors")
