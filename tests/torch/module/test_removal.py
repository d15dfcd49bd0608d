"""What a module becomes when its batch norm goes: frozen ones, those with an activation, functional ones, hooks."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as nn_module
from torch_modules import codes, fold, folded_names, images, inputs, is_wrong, naive, run, trained

import bnfold
from bnfold.reasons import StopCode


class Activated(nn.BatchNorm2d):
    """A BatchNorm as timm writes it: dropout and activation are in it."""

    def __init__(self, channels: int, act: nn.Module | None = None, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop = drop or nn.Identity()
        self.act = act or nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


def test_a_batch_norm_with_an_activation_leaves_it() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4), nn.Conv2d(4, 5, 1, bias=False), Activated(5)))
    result = fold(module, images())
    assert folded_names(result) == ["1", "3"]
    left = result.model[1]
    assert type(left) is nn.Sequential
    assert [(name, type(child)) for name, child in left.named_children()] == [("drop", nn.Identity), ("act", nn.ReLU)]
    assert is_wrong(module, naive(module, ("0", "1")), images())


def test_activations_of_all_kinds() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sigmoid()

    for act in (nn.Identity(), nn.SiLU(), nn.PReLU(), Swish(), nn.Sequential(nn.Tanh(), nn.LeakyReLU())):
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4, act, nn.Dropout(0.5))))
        assert folded_names(fold(module, images())) == ["1"]


def test_one_activation_for_several_batch_norms() -> None:
    act = nn.SiLU()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4, act), nn.Conv2d(4, 4, 1), Activated(4, act))
    result = fold(trained(module), images())
    assert folded_names(result) == ["1", "3"]
    assert result.model[1].act is result.model[3].act


def test_an_activated_batch_norm_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), Activated(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm(self.conv(x))))

    assert folded_names(fold(trained(Twice()), images())) == ["norm"]


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class WithInput(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Pair(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y, y.mean()


class TakesMore(nn.BatchNorm2d):
    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().forward(x)


class ActsTwice(Activated):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Skipping(Activated):
    """The activation works on something else."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, x) + self.act(x.clone())


class Stashing(Activated):
    """Somebody else reads the value before the activation."""

    def forward(self, x: Tensor) -> Tensor:
        self.stash = nn.BatchNorm2d.forward(self, x)
        return self.act(self.stash.clone())


class Network(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = y[0] + y[1] if isinstance(y, tuple) else y
        return y + self.norm.stash if isinstance(self.norm, Stashing) else y


class NetworkOfTwo(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), None)


@pytest.mark.parametrize("kind", [Doubled, WithInput, Pair, ActsTwice, Skipping, Stashing])
def test_a_batch_norm_that_does_more(kind: type[nn.BatchNorm2d]) -> None:
    assert codes(fold(trained(Network(kind(4))), images())) == {"norm": StopCode.NEEDS_GRAPH}


def test_a_batch_norm_that_takes_more() -> None:
    result = fold(trained(NetworkOfTwo(TakesMore(4))), images())
    assert codes(result) == {"norm": StopCode.NEEDS_GRAPH}
    assert "not called with one tensor" in result.plan.left[0].reason


def test_a_batch_norm_called_by_a_name_of_its_own() -> None:
    class Named(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class ByName(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x=self.conv(x))

    assert codes(fold(trained(ByName(Named(4))), images())) == {"norm": StopCode.NEEDS_GRAPH}


def test_a_batch_norm_that_is_called_in_two_ways() -> None:
    """torch.export cannot record that, and the fold goes on without a record."""

    class Twice(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x), None) + self.norm(self.conv(x), mask=None)

    assert codes(fold(trained(Twice(TakesMore(4))), images())) == {"norm": StopCode.NEEDS_GRAPH}


class TorchvisionFrozenBatchNorm2d(nn.Module):
    """As in torchvision.ops."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        rv, rm = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + self.eps).rsqrt()
        return x * scale + (b - rm * scale)


class Detectron2FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """As in detectron2.layers, without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class TransformersFrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """As in transformers' models of the DETR family."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        running_var = self.running_var.reshape(1, -1, 1, 1)
        running_mean = self.running_mean.reshape(1, -1, 1, 1)
        epsilon = 1e-5
        scale = weight * (running_var + epsilon).rsqrt()
        bias = bias - running_mean * scale
        return x * scale + bias


@pytest.mark.parametrize(
    "frozen", [TorchvisionFrozenBatchNorm2d, Detectron2FrozenBatchNorm2d, TransformersFrozenBatchNorm2d]
)
def test_frozen_batch_norms(frozen: type[nn.Module]) -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), frozen(4), nn.ReLU(), nn.Conv2d(4, 4, 1), frozen(4)))
    result = fold(module, images())
    assert folded_names(result) == ["1", "4"]
    assert result.plan.batch_norms_folded == 2
    assert type(result.model[1]) is nn.Identity


def test_sync_batch_norm() -> None:
    module = trained(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    assert type(module[1]) is nn.SyncBatchNorm
    assert folded_names(fold(module, images())) == ["1"]


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
        ((nn.Conv3d(3, 4, 3, padding="same"), nn.BatchNorm3d(4)), (2, 3, 5, 5, 5)),
        ((nn.ConvTranspose1d(3, 4, 3, stride=2), nn.BatchNorm1d(4)), (2, 3, 9)),
        ((nn.ConvTranspose3d(4, 4, 2, groups=2), nn.BatchNorm3d(4)), (2, 4, 3, 3, 3)),
        ((nn.Linear(5, 4), nn.BatchNorm1d(4)), (6, 5)),
        ((nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)), (2, 3, 5, 5)),
        ((nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False)), (2, 3, 5, 5)),
        ((nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.BatchNorm1d(16)), (2, 3, 5, 5)),
    ],
)
def test_ranks_and_directions(layers: tuple[nn.Module, ...], shape: tuple[int, ...]) -> None:
    result = fold(trained(nn.Sequential(*copy.deepcopy(layers))), inputs(shape))
    # The spelled-out channels of a flattened image are one BN for all positions, or none.
    assert len(result.plan.folds) == (0 if isinstance(layers[-1], nn.BatchNorm1d) and len(layers) == 5 else 1)


def test_a_functional_batch_norm_with_the_parameters_of_a_module() -> None:
    class Functional(Network):
        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            return functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)

    result = bnfold.fold(trained(Functional(nn.BatchNorm2d(4))), images())
    assert codes(result) == {"norm": StopCode.NEEDS_GRAPH}
    assert "torch.export.export" in result.plan.left[0].reason
    assert not result.changed


def test_a_batch_norm_that_is_called_with_and_without_its_hooks_is_one_entry() -> None:
    class Directly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm.forward(self.conv(x)).relu()))

    plan = fold(trained(Directly()), images()).plan
    assert [entry.nodes for entry in (*plan.folds, *plan.left)] == [("norm",)]


def test_a_functional_batch_norm_with_parameters_of_its_own() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gamma, self.beta = (
                nn.Conv2d(3, 4, 3),
                nn.Parameter(torch.ones(4)),
                nn.Parameter(torch.ones(4)),
            )
            self.register_buffer("mean", torch.ones(4))
            self.register_buffer("variance", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.batch_norm(self.conv(x), self.mean, self.variance, self.gamma, self.beta)

    module = Functional().double().eval()
    result = bnfold.fold(module, images())
    assert [left.code for left in result.plan.left] == [StopCode.NEEDS_GRAPH]
    program = bnfold.fold(torch.export.export(module, images()))
    assert program.plan.batch_norms_folded == 1


def test_a_module_that_is_a_functional_batch_norm_and_nothing_else() -> None:
    class Home(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("gamma", "beta", "mean", "variance"):
                self.register_buffer(name, torch.ones(4) + torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.batch_norm(x, self.mean, self.variance, self.gamma, self.beta)

    result = fold(nn.Sequential(nn.Conv2d(3, 4, 3), Home()).double().eval(), images())
    assert result.plan.batch_norms_folded == 1
    assert type(result.model[1]) is nn.Identity


def test_parameters_that_something_else_reads() -> None:
    class Regularised(Network):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(self.conv(x)), self.norm.weight.abs().sum()

    assert codes(fold(trained(Regularised(nn.BatchNorm2d(4))), images())) == {"norm": StopCode.SHARED_WEIGHT}


def test_a_batch_norm_that_also_normalises_a_constant() -> None:
    class Token(Network):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__(norm)
            self.token = nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.norm(self.token)

    assert [*codes(fold(trained(Token(nn.BatchNorm2d(4))), images()))] == ["norm"]


def test_parameters_that_two_batch_norms_share() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    module[3].weight = module[1].weight
    result = fold(module, images())
    assert folded_names(result) == ["1"]
    assert result.model[3].weight is not None


def test_skip_and_only() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert codes(fold(module, images(), skip=("1",))) == {"1": StopCode.SKIPPED}
    assert codes(fold(module, images(), only=("1",))) == {"3": StopCode.SKIPPED}


def watch(module: nn.Module, *_: object) -> None:
    """A hook that does nothing."""


REGISTER = {
    "forward": lambda module: module.register_forward_hook(watch),
    "forward pre": lambda module: module.register_forward_pre_hook(watch),
    "backward": lambda module: module.register_full_backward_hook(watch),
    "backward pre": lambda module: module.register_full_backward_pre_hook(watch),
}


@pytest.mark.parametrize("kind", REGISTER)
@pytest.mark.parametrize(("at", "stays"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_hooks_where_a_value_changes(kind: str, at: int, stays: bool) -> None:
    """Conv, an Identity, BN: the two values in between change; that in front of the ReLU does not."""
    layers = (nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    module = trained(nn.Sequential(*layers))
    REGISTER[kind](module[at])
    result = fold(module, images())
    assert codes(result) == ({"2": StopCode.HOOKS} if stays else {})


def test_a_hook_on_a_block_around_the_pair() -> None:
    module = trained(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()))
    module[0].register_forward_hook(watch)
    assert folded_names(fold(module, images())) == ["0.1"]


@pytest.mark.parametrize("kind", REGISTER)
def test_a_hook_on_the_module_itself(kind: str) -> None:
    """Its inputs and outputs are the same after a fold."""
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    REGISTER[kind](module)
    assert folded_names(fold(module, images())) == ["1"]


def test_a_hook_on_a_block_between_the_pair() -> None:
    module = trained(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    module[0].register_forward_hook(watch)
    assert codes(fold(module, images())) == {"1": StopCode.HOOKS}


def test_a_hook_that_changes_what_it_sees_is_part_of_the_computation() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    module[1].register_forward_hook(lambda module, args, output: output * 2)
    assert codes(fold(module, images())) == {"1": StopCode.HOOKS}


def test_hooks_for_all_modules() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    handle = nn_module.register_module_forward_hook(watch)
    try:
        assert codes(fold(module, images())) == {"1": StopCode.HOOKS}
    finally:
        handle.remove()
    assert codes(fold(module, images())) == {}


class Repeated(nn.Module):
    """One value for all positions, normalised; the BN writes them out, without it they stay one in memory."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), end

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3), keepdim=True)).expand(-1, -1, 3, 3)
        return self.end(self.norm(y))


@pytest.mark.parametrize("end", [lambda y: y.view(2, 36).tanh(), lambda y: y, lambda y: (y + 1, y)])
def test_what_needs_the_layout_that_a_batch_norm_makes(end: Callable[[Tensor], Tensor]) -> None:
    assert codes(fold(trained(Repeated(end)), images())) == {"norm": StopCode.NEEDS_GRAPH}


@pytest.mark.parametrize(
    "end", [lambda y: y.flatten(1).tanh(), lambda y: y.relu().view(2, 36), lambda y: y.contiguous() + 1]
)
def test_what_does_not_mind_another_layout(end: Callable[[Tensor], Tensor]) -> None:
    assert folded_names(fold(trained(Repeated(end)), images())) == ["norm"]


def test_an_activation_in_place_behind_a_batch_norm_of_an_input() -> None:
    """Without the BN the activation would write into the caller's tensor."""
    module = trained(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)))
    with torch.no_grad():
        module[0].weight.abs_()
        module[0].bias.zero_()
        module[0].running_mean.zero_()
    result = fold(module, images())
    (x,) = images()
    before = x.clone()
    run(result.model, (x,))
    with torch.no_grad():
        result.model(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("norm", "code"), [(nn.BatchNorm2d(4), None), (Activated(4), StopCode.NEEDS_GRAPH)], ids=["torch", "activated"]
)
def test_a_region_of_autocast_that_ends_with_a_batch_norm(norm: nn.Module, code: StopCode | None) -> None:
    class Region(Network):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                y = self.norm(self.conv(x))
            return y * 2

    assert codes(fold(trained(Region(norm)), images())) == ({} if code is None else {"norm": code})


def test_a_hook_inside_a_region_of_autocast() -> None:
    """torch.export does not record what the hook sees there."""

    class Region(Network):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                y = self.norm(self.conv(x))
            return y * 2

    module = trained(Region(nn.BatchNorm2d(4)))
    module.conv.register_forward_hook(watch)
    assert codes(fold(module, images())) == {"norm": StopCode.HOOKS}


def test_branches_that_a_graph_could_merge() -> None:
    class RepVgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
            self.wide_norm, self.narrow_norm, self.norm = (nn.BatchNorm2d(3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.wide_norm(self.wide(x)) + self.narrow_norm(self.narrow(x)) + self.norm(x)).relu()

    result = fold(trained(RepVgg()), images())
    assert folded_names(result) == ["wide_norm", "narrow_norm"]
    assert codes(result) == {"norm": StopCode.NEEDS_GRAPH}
    assert "'wide'" in result.plan.left[0].reason
