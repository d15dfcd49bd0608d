"""Modules that other tools are known to fold wrong; each test shows that the naive fold is wrong, too."""

import pytest
import torch
from torch import Tensor, nn
from torch_modules import codes, fold, folded_names, images, inputs, is_wrong, naive, run, trained

import bnfold
from bnfold.reasons import StopCode


class Layers(nn.Module):
    """Layers that a subclass puts together."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def test_a_conv_that_is_called_twice() -> None:
    class Twice(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.bn(self.conv(x)).relu())

    module = trained(Twice(conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3)))
    result = fold(module, images())
    assert codes(result) == {"bn": StopCode.SHARED_WEIGHT}
    assert is_wrong(module, naive(module, ("conv", "bn")), images())


def test_a_conv_that_is_called_twice_with_a_bn_each() -> None:
    class Twice(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv(self.bn1(self.conv(x)).relu()))

    module = trained(Twice(conv=nn.Conv2d(3, 3, 3, padding=1), bn1=nn.BatchNorm2d(3), bn2=nn.BatchNorm2d(3)))
    result = fold(module, images())
    assert codes(result) == {"bn1": StopCode.SHARED_WEIGHT, "bn2": StopCode.SHARED_WEIGHT}
    assert is_wrong(module, naive(module, ("conv", "bn1"), ("conv", "bn2")), images())


def test_a_conv_that_is_called_twice_with_a_bn_each_of_the_same_values() -> None:
    class Twice(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv(self.bn1(self.conv(x)).relu()))

    module = trained(Twice(conv=nn.Conv2d(3, 3, 3, padding=1), bn1=nn.BatchNorm2d(3), bn2=nn.BatchNorm2d(3)))
    module.bn2.load_state_dict(module.bn1.state_dict())
    assert folded_names(fold(module, images())) == ["bn1", "bn2"]


def test_the_same_pair_called_twice() -> None:
    class Twice(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(self.bn(self.conv(x)).relu()))

    module = trained(Twice(conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3)))
    result = fold(module, images())
    (entry,) = result.plan.folds
    assert entry.nodes == ("bn",)
    assert len(entry.targets) == 2
    assert is_wrong(module, naive(module, ("conv", "bn"), ("conv", "bn")), images())


def test_a_pair_called_twice_one_of_which_cannot_fold() -> None:
    class Twice(Layers):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.bn(self.conv(x)).relu()
            second = self.conv(first)
            return self.bn(second), second

    module = trained(Twice(conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3)))
    result = fold(module, images())
    assert [*codes(result)] == ["bn"]
    assert is_wrong(module, naive(module, ("conv", "bn")), images())


def test_one_conv_with_two_bns() -> None:
    class Branches(Layers):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn1(y).relu() - self.bn2(y).relu()

    module = trained(Branches(conv=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4)))
    result = fold(module, images())
    assert set(codes(result).values()) == {StopCode.OTHER_CONSUMERS}
    assert is_wrong(module, naive(module, ("conv", "bn1"), ("conv", "bn2")), images())


def test_a_conv_output_that_is_used_elsewhere() -> None:
    class Skip(Layers):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y).relu() + y

    module = trained(Skip(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    assert codes(fold(module, images())) == {"bn": StopCode.OTHER_CONSUMERS}
    assert is_wrong(module, naive(module, ("conv", "bn")), images())


def test_a_linear_whose_features_are_as_many_as_tokens() -> None:
    """BatchNorm1d on (N, L, C) normalises axis 1, the linear maps axis 2."""
    module = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    example = inputs((2, 4, 4))
    assert codes(fold(module, example)) == {"1": StopCode.CHANNEL_AXIS}
    assert is_wrong(module, naive(module, ("0", "1")), example)
    assert folded_names(fold(module, inputs((5, 4)))) == ["1"]


def test_a_conv1d_without_batch() -> None:
    """(C, L) after the conv is (N, C) for BatchNorm1d."""
    module = trained(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)))
    example = inputs((3, 4))
    assert codes(fold(module, example)) == {"1": StopCode.CHANNEL_AXIS}
    assert is_wrong(module, naive(module, ("0", "1")), example)
    assert folded_names(fold(module, inputs((2, 3, 4)))) == ["1"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_conv_with_as_many_inputs_as_outputs(groups: int) -> None:
    module = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=groups), nn.BatchNorm2d(4)))
    example = inputs((2, 4, 5, 5))
    assert folded_names(fold(module, example)) == ["1"]
    # Depthwise the first two dimensions of the weight are alike enough for the naive way.
    assert is_wrong(module, naive(module, ("0", "1")), example) or groups == 4


def test_keyword_arguments() -> None:
    class Named(Layers):
        def forward(self, *, pixels: Tensor, scale: float) -> dict[str, Tensor]:
            return {"features": self.bn(input=self.conv(input=pixels)) * scale}

    module = trained(Named(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    (x,) = images()
    assert folded_names(fold(module, {"pixels": x, "scale": 2.0})) == ["bn"]
    assert folded_names(fold(module, ((), {"pixels": x, "scale": 2.0}))) == ["bn"]


def test_a_hook_sees_what_it_saw() -> None:
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(output)

    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    module[0].register_forward_hook(watch)
    result = fold(module, images())
    assert codes(result) == {"1": StopCode.HOOKS}
    seen.clear()
    for other in (module, result.model, naive(module, ("0", "1"))):
        run(other, images())
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2])


def test_no_gamma_and_beta() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)))
    assert folded_names(fold(module, images())) == ["1"]


def test_no_running_statistics() -> None:
    """Such a BN normalises with the statistics of its input, also in eval mode."""
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert codes(fold(module, images())) == {"1": StopCode.TRAINING_MODE}
    with_statistics = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with_statistics.load_state_dict(module.state_dict(), strict=False)
    assert is_wrong(module, with_statistics, images())


def test_training_mode() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    module[1].train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = bnfold.fold(module, images())
    assert codes(result) == {"1": StopCode.TRAINING_MODE}
    assert not result.changed
    for other in (module, result.model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
        assert other[1].training
    assert is_wrong(module, naive(module, ("0", "1")), images())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_a_conv_in_half_precision_before_a_bn_in_float32(low: torch.dtype) -> None:
    """The weight stays in its type, and is the exact product rounded once to it."""

    class Mixed(nn.BatchNorm2d):
        pass

    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Mixed(4)), dtype=torch.float32)
    module[0].to(low)
    example = images(dtype=low)
    result = bnfold.fold(module, example)
    conv, bn = result.model[0], module[1]
    assert folded_names(result) == ["1"]
    assert conv.weight.dtype == conv.bias.dtype == low
    wide = (bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()).reshape(-1, 1, 1, 1)
    exact = module[0].weight.double() * wide
    spacing = torch.finfo(low).eps * exact.abs().clamp(min=torch.finfo(low).tiny)
    assert ((conv.weight.double() - exact).abs() <= 0.5 * spacing).all()
    (ours,), (theirs,) = run(result.model, example), run(module, example)
    assert ours.dtype == theirs.dtype == low
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_a_bn_of_a_subclass_that_does_more() -> None:
    class Absolute(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).abs()

    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Absolute(4)))
    assert codes(fold(module, images())) == {"1": StopCode.NEEDS_GRAPH}
    assert is_wrong(module, naive(module, ("0", "1")), images())


def test_a_bn_of_a_subclass_that_does_no_more() -> None:
    class Renamed(nn.BatchNorm2d):
        pass

    class Wrapped(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Renamed(4), nn.Conv2d(4, 5, 1), Wrapped(5)))
    result = fold(module, images())
    assert folded_names(result) == ["1", "3"]
    assert [type(child) for child in result.model] == [nn.Conv2d, nn.Identity, nn.Conv2d, nn.Identity]
