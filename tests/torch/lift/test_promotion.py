"""Operators that change the element type without being a cast: nothing moves past where they do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_modules import run, trained

import bnfold
from bnfold.reasons import StopCode


class Net(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.does = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


def norm(kind: type[nn.Module] = nn.BatchNorm2d, channels: int = 4) -> nn.Module:
    return kind(channels)


def scale_only(bn: nn.Module) -> None:
    """Lets a BN have no shift and no negative scale, so that it is nothing else that stops it."""
    with torch.no_grad():
        bn.running_mean.zero_()
        bn.bias.zero_()
        bn.weight.abs_()


LOW = [torch.float16, torch.bfloat16]
BEHIND = {
    "add": (lambda net, x: net.bn(net.conv(x) + net.wide(x.float())), {"wide": conv()}),
    "sub": (lambda net, x: net.bn(net.wide(x.float()) - net.conv(x)), {"wide": conv()}),
    "mul": (lambda net, x: net.bn(net.conv(x) * torch.sigmoid(x.float())), {}),
    "div": (lambda net, x: net.bn(net.conv(x) / (1 + x.float().abs())), {}),
    "a constant": (lambda net, x: net.bn(net.conv(x) * torch.ones(1, 4, 1, 1)), {}),
    "cat": (lambda net, x: net.bn(torch.cat([net.conv(x), net.wide(x.float())], 1)[:, 2:6]), {"wide": conv()}),
    "mean": (lambda net, x: net.bn(net.conv(x).mean((2, 3), dtype=torch.float32)), {"bn": norm(nn.BatchNorm1d)}),
    "mean of what stays": (
        lambda net, x: net.bn(net.conv(x).mean((2, 3), keepdim=True, dtype=torch.float32)),
        {},
    ),
    "sum": (lambda net, x: net.bn(net.conv(x).sum(3, keepdim=True, dtype=torch.float32)), {}),
    "to": (lambda net, x: net.bn(net.conv(x).to(torch.float32)), {}),
    "type_as": (lambda net, x: net.bn(net.conv(x).type_as(net.wide.weight)), {"wide": conv()}),
}
BEFORE = {
    "add": lambda net, x: net.wide(net.bn(x.relu()) + x.float().sigmoid()),
    "mul": lambda net, x: net.wide(net.bn(x.relu()) * x.float().sigmoid()),
    "mean": lambda net, x: net.wide(net.bn(x.relu()).mean((2, 3), keepdim=True, dtype=torch.float32)),
    "cat": lambda net, x: net.wide(torch.cat([net.bn(x.relu()), x.float()], 1)[:, 2:6]),
}


def left(module: nn.Module, x: Tensor) -> list[list[str]]:
    """The codes of what stays, of the module and of its program; the module computes what it did, bit for bit."""
    result = bnfold.fold(module, (x,))
    assert torch.equal(run(result.model, (x,))[0], run(module, (x,))[0])
    program = torch.export.export(module, (x,), strict=False)
    return [[str(entry.code) for entry in plan.left] for plan in (result.plan, bnfold.fold(program).plan)]


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("name", BEHIND)
def test_a_batch_norm_in_float32_behind_a_conv_in_another_type(name: str, low: torch.dtype) -> None:
    """The conv rounds to the low type before what is added to it, and would round other numbers there."""
    does, layers = BEHIND[name]
    module = trained(Net(does, **{"conv": conv(), "bn": norm(), **layers}), dtype=torch.float32)
    module.conv.to(low)
    if name in ("mul", "div", "sum"):
        scale_only(module.bn)
    code = StopCode.NO_RULE if name == "a constant" else StopCode.CHANGES_DTYPE
    assert left(module, torch.randn(2, 4, 5, 5).to(low)) == [[code]] * 2


@pytest.mark.parametrize("name", BEFORE)
def test_a_batch_norm_in_float16_before_a_conv_in_float32(name: str) -> None:
    module = trained(Net(BEFORE[name], bn=norm(), wide=conv()), dtype=torch.float32)
    if name == "mul":
        scale_only(module.bn)
    module.bn.half()
    for codes in left(module, torch.randn(2, 4, 5, 5).half()):
        assert codes in ([StopCode.CHANGES_DTYPE], [StopCode.NONLINEAR])


def test_the_factor_of_the_type_of_the_product_takes_the_scale() -> None:
    module = trained(
        Net(lambda net, x: net.bn((10 * x).int() * net.conv(x)), conv=conv(), bn=norm()), dtype=torch.float32
    )
    scale_only(module.bn)
    x = torch.randn(2, 4, 5, 5)
    result = bnfold.fold(module, (x,))
    torch.testing.assert_close(run(result.model, (x,))[0], run(module, (x,))[0], rtol=1e-4, atol=1e-4)
    assert result.plan.batch_norms_folded == 1, result.plan.left


def test_a_sum_that_changes_the_type_is_not_merged() -> None:
    """Under autocast convolutions round to bfloat16, and the identity beside them does not."""

    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.one(x) + net.two(x) + x

    module = trained(Net(forward, one=nn.Conv2d(4, 4, 3, padding=1), two=conv()), dtype=torch.float32)
    x = torch.randn(2, 4, 5, 5)
    program = torch.export.export(module, (x,), strict=False)
    result = bnfold.fold(program)
    assert [merge.branches for merge in result.plan.merges] == [2]


def test_a_conv_under_autocast_rounds_what_it_reads() -> None:
    """The BN brings numbers beyond float16 into its range; without it they would be infinite."""

    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return net.conv(net.bn(x.relu()))

    module = trained(Net(forward, bn=norm(), conv=conv()), dtype=torch.float32)
    module.bn.running_mean.fill_(1e6)
    x = 1e6 + torch.randn(2, 4, 5, 5)
    result = bnfold.fold(torch.export.export(module, (x,), strict=False))
    (left_over,) = result.plan.left
    assert "makes float16 of float32, and what it rounds must not change" in left_over.reason
    assert result.model.module()(x).isfinite().all()
