"""What a folded module still is: its class, its attributes, its tensors, and the caller's module as it was."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_modules import EXACT, codes, distance, fingerprint, fold, folded_names, images, inputs, run, trained

import bnfold
from bnfold.errors import UnsupportedModelError
from bnfold.reasons import StopCode


class Network(nn.Module):
    """Conv, BN, ReLU twice, with things of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.conv = nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.norm.comment = "the last one"
        self.config = {"width": 4, "names": ["stem", "conv"]}
        self.register_buffer("offset", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.stem(x).relu())) + self.offset

    def width(self) -> int:
        return self.config["width"]


def network(dtype: torch.dtype = torch.float64) -> Network:
    module = trained(Network(), dtype=dtype)
    assert isinstance(module, Network)
    return module


def test_everything_else_is_as_it_was() -> None:
    module = network()
    module.conv.weight.requires_grad_(False)
    folded = fold(module, images()).model
    assert folded.width() == 4
    assert folded.config == module.config
    assert folded.config is not module.config
    assert [*dict(folded.named_modules())] == [*dict(module.named_modules())]
    assert type(folded.norm) is nn.Identity
    assert folded.norm.comment == "the last one"
    assert folded.norm.num_features == 6
    assert not folded.training
    assert not folded.conv.weight.requires_grad
    assert folded.conv.bias.requires_grad
    assert folded.stem[0].weight.requires_grad
    assert folded.stem[0].bias.requires_grad
    assert [*folded.state_dict()] == ["stem.0.weight", "stem.0.bias", "conv.weight", "conv.bias"]


def test_the_result_can_be_copied_pickled_exported_and_folded_again() -> None:
    module = network()
    folded = fold(module, images()).model
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), bnfold.fold(folded, images()).model):
        assert type(other) is Network
        assert distance(run(other, images()), run(folded, images())) == 0
    assert not bnfold.fold(folded, images()).changed
    program = torch.export.export(folded, images())
    assert distance(run(program.module(), images()), run(folded, images())) < EXACT


def test_the_parameters_of_the_result_are_its_own() -> None:
    module = network()
    result = bnfold.fold(module, images())
    before = fingerprint(module)
    with torch.no_grad():
        for tensor in [*result.model.parameters(), *result.model.buffers()]:
            tensor.add_(1)
    assert fingerprint(module) == before


def test_nothing_to_fold_gives_a_copy() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    result = fold(module, images())
    assert not result.changed
    assert result.model is not module


def test_in_place() -> None:
    module = network()
    reference = run(module, images())
    weights = {name: (id(parameter), parameter.data_ptr()) for name, parameter in module.named_parameters()}
    optimiser = torch.optim.SGD(module.parameters())
    norm = module.norm
    result = bnfold.fold(module, images(), inplace=True)
    assert result.model is module
    assert module.norm is norm
    assert type(norm) is nn.Identity
    for name, parameter in module.named_parameters():
        if name != "stem.0.bias":  # the conv had none
            assert (id(parameter), parameter.data_ptr()) == weights[name]
    assert distance(run(module, images()), reference) < EXACT
    assert any(module.conv.weight is parameter for group in optimiser.param_groups for parameter in group["params"])


def test_a_refused_fold_in_place_changes_nothing() -> None:
    module = network()
    before = fingerprint(module)
    with pytest.raises(bnfold.UsageError, match="matches no BatchNorm"):
        bnfold.fold(module, images(), inplace=True, skip=("nothing*",))
    with pytest.raises(bnfold.UsageError):
        bnfold.fold(module, inputs((2, 5, 7, 6)), inplace=True)
    assert fingerprint(module) == before


def test_inspect_changes_nothing() -> None:
    module = network()
    before = fingerprint(module)
    plan = bnfold.inspect(module, images())
    assert (plan.batch_norms, plan.batch_norms_folded) == (2, 2)
    assert fingerprint(module) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_are_kept_and_weights_rounded_once(dtype: torch.dtype) -> None:
    module = network(dtype)
    folded = bnfold.fold(module, images(dtype=dtype)).model
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    scale = module.norm.weight.double() / (module.norm.running_var.double() + module.norm.eps).sqrt()
    exact = module.conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((folded.conv.weight.double() - exact).abs() <= 0.5 * spacing).all()


def test_memory_format_is_kept() -> None:
    module = network().to(memory_format=torch.channels_last)
    stem = module.stem[0].weight.stride()
    for folded in (fold(module, images()).model, bnfold.fold(module, images(), inplace=True).model):
        assert folded.stem[0].weight.stride() == stem
        assert folded.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        module = network()
        reference = run(module, images())
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["stem.1", "norm"]
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert distance(run(result.model, images()), reference) < EXACT
    bnfold.fold(module, images(), inplace=True)
    with torch.inference_mode():
        assert distance([module(*images())], reference) < EXACT


def test_a_fold_inside_inference_mode() -> None:
    module = network()
    with torch.inference_mode():
        folded = bnfold.fold(module, images()).model
    assert not any(parameter.is_inference() for parameter in folded.parameters())
    assert distance(run(folded, images()), run(module, images())) < EXACT


def test_a_batch_norm_that_somebody_holds_elsewhere() -> None:
    """The layers run from a plain list and a closure, which no module knows of."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.steps = [self.conv, self.norm]

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return x

    module = trained(Listed())
    assert codes(fold(module, images())) == {"head": StopCode.NOT_REACHED}


def test_one_module_under_two_names() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.same, self.blocks = self.norm, nn.ModuleList([self.conv])

        def forward(self, x: Tensor) -> Tensor:
            return self.same(self.blocks[0](x))

    result = fold(trained(Alias()), images())
    assert len(result.plan.folds) == 1
    assert type(result.model.norm) is nn.Identity
    assert result.model.norm is result.model.same


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")])
def test_wrappers_are_taken_off(wrap: type) -> None:
    module = network()
    result = bnfold.fold(wrap(module), images())
    assert type(result.model) is Network
    assert folded_names(result) == ["stem.1", "norm"]
    assert distance(run(result.model, images()), run(module, images())) < EXACT


def test_a_part_that_is_compiled() -> None:
    module = network()
    module.stem = torch.compile(module.stem, backend="eager")
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["stem._orig_mod.1", "norm"]


def test_script_modules_are_refused() -> None:
    module = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = [torch.jit.script(module), torch.jit.trace(module, images())]
    for other in scripted:
        with pytest.raises(UnsupportedModelError) as caught:
            bnfold.fold(other, images())
        assert "torch.jit" in caught.value.hint


@pytest.mark.parametrize("dynamic", [True, False])
def test_quantised_modules_are_refused(dynamic: bool) -> None:
    from torch.ao import quantization as ao

    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(168, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamic:
            module = ao.quantize_dynamic(module.eval(), {nn.Linear})
        else:
            module.train().qconfig = ao.get_default_qat_qconfig("x86")
            module = ao.prepare_qat(module)
    with pytest.raises(UnsupportedModelError, match="quantisation") as caught:
        bnfold.fold(module, images(dtype=torch.float32))
    assert "float" in caught.value.hint


def test_modules_fused_in_float_are_none_of_these() -> None:
    from torch.ao.nn.intrinsic import ConvReLU2d

    module = trained(nn.Sequential(ConvReLU2d(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert folded_names(fold(module, images())) == ["2"]


@pytest.mark.parametrize("build", [nn.LazyBatchNorm2d, lambda: nn.BatchNorm2d(4, device="meta")])
def test_parameters_without_values_are_refused(build: type) -> None:
    with pytest.raises(UnsupportedModelError, match="without values"):
        bnfold.fold(nn.Sequential(nn.Conv2d(3, 4, 1), build()).eval(), images(dtype=torch.float32))


def test_a_lazy_module_that_has_been_run() -> None:
    module = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).double().eval()
    with torch.no_grad():
        module(*images())
    assert folded_names(fold(trained(module), images())) == ["1"]


def test_an_attribute_that_cannot_be_copied_is_shared() -> None:
    module = network()
    module.lock = threading.Lock()
    folded = fold(module, images()).model
    assert folded.lock is module.lock
    assert type(folded.norm) is nn.Identity


def _itself(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    return module


def _another(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    made = type(module)().double().eval()
    made.load_state_dict(module.state_dict())
    return made


def _fails(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    raise TypeError("no copies of me")


def _other_modules(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    return nn.Sequential()


@pytest.mark.parametrize(
    ("copies", "says"),
    [
        (_itself, "the same object"),
        (_another, "tensors of its own"),
        (_fails, "no copies of me"),
        (_other_modules, "other submodules"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_does_not_copy_as_others_do(copies: Callable[..., nn.Module], says: str, inplace: bool) -> None:
    class Stubborn(Network):
        __deepcopy__ = copies

    module = trained(Stubborn())
    state = fingerprint(module)
    with pytest.raises(UnsupportedModelError, match=says):
        bnfold.fold(module, images(), inplace=inplace)
    assert fingerprint(module) == state


def test_tensors_with_a_history_are_copied_without_it() -> None:
    module = network()
    module.cache = {"last": [module.conv.weight * 2]}
    folded = bnfold.fold(module, images()).model
    assert not folded.cache["last"][0].requires_grad
    assert torch.equal(folded.cache["last"][0], module.cache["last"][0])


def test_sharded_modules_are_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    module = network()
    module.stem = FullyShardedDataParallel()
    with pytest.raises(UnsupportedModelError, match="shard"):
        bnfold.fold(module, images())


def test_a_norm_before_code_that_reads_memory_in_its_order_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x).transpose(2, 3)).as_strided((2, 4, 5, 5), (100, 25, 5, 1))

    module, x = Net().double().eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    nn.init.normal_(module.bn.running_mean)
    result = bnfold.fold(module, (x,))
    assert [left.code for left in result.plan.left] == [StopCode.NO_RULE]
    assert torch.equal(result.model(x), module(x))
