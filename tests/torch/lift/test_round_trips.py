"""Casts to a wider type and back: an affine between them passes, and nothing else does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_lifting import export
from torch_modules import trained

import bnfold
from bnfold.reasons import StopCode

HALF = torch.float16


class Wide(nn.Module):
    """Layers in a narrow type, with batch norms in float32."""

    def __init__(self, does: Callable[["Wide", Tensor], object], dtype: torch.dtype = HALF) -> None:
        super().__init__()
        self.does = does
        self.conv, self.bn, self.next = nn.Conv2d(3, 4, 3).to(dtype), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1).to(dtype)

    def forward(self, x: Tensor) -> object:
        return self.does(self, x)


def net(does: Callable[[Wide, Tensor], object], dtype: torch.dtype = HALF) -> tuple[nn.Module, tuple[Tensor]]:
    module = Wide(does, dtype)
    trained(module.bn, dtype=torch.float32)
    module.next.requires_grad_(requires_grad=False)
    return module.eval(), (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype),)


PASSES = {
    "batch norm": lambda net, x: net.next(net.bn(net.conv(x).float()).half()),
    "batch norm, cut off in place": lambda net, x: net.next(net.bn(net.conv(x).float()).relu_().clamp(max=6).half()),
    "type_as": lambda net, x: net.next(net.bn(net.conv(x).to(torch.float32)).type_as(x)),
    "forward": lambda net, x: net.next(net.bn(net.conv(x).sigmoid().float()).half()),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("form", ["program", pytest.param("decomposed", marks=pytest.mark.slow), "module"])
def test_an_affine_between_the_casts_goes_into_the_narrower_map(name: str, form: str) -> None:
    module, example = net(PASSES[name])
    if form == "module":
        result, run = bnfold.fold(module, example), None
    else:
        result = bnfold.fold(export(module, *example, decomposed=form == "decomposed"))
        run = result.model.module()
    assert [len(move.nodes) for move in result.plan.folds] == [1]
    assert result.check().verdict == "pass", result.check().reason
    before, after = module(*example).double(), (run or result.model)(*example).double()
    assert (before - after).abs().max() <= 4 * 2**-11 * before.abs().max()


def test_arithmetic_and_another_type() -> None:
    def does(net: Wide, x: Tensor) -> Tensor:
        wide = net.conv(x).float() * net.bn.weight[:, None, None]
        return net.next((wide - net.bn.bias[:, None, None]).bfloat16())

    module, example = net(does, torch.bfloat16)
    result = bnfold.fold(torch.export.export(module, example))
    assert [len(move.nodes) for move in result.plan.folds] == [1]
    names = {node.name for node in result.model.graph.nodes}
    assert not names & {"conv2d", "to", "mul", "sub"}, "what is rounded differently has another name"


STAYS = {
    "it is also an output": lambda net, x: ((y := net.bn(net.conv(x).float())), y.half()),
    "the result stays wide": lambda net, x: net.bn(net.conv(x).float()).tanh(),
    "one reader keeps it wide": lambda net, x: (y := net.bn(net.conv(x).float())).half() + y.tanh().half(),
    "a function that does not cut off": lambda net, x: nn.functional.leaky_relu(net.bn(net.conv(x).float())).half(),
    "a batch norm and more": lambda net, x: (net.bn(net.conv(x).float()) * 3).half(),
    "another type than before": lambda net, x: net.bn(net.conv(x).float()).bfloat16(),
    "a constant that is computed": lambda net, x: (net.conv(x).float() * x.float().mean()).half(),
}


@pytest.mark.parametrize("name", STAYS)
def test_anything_else_between_them_keeps_it(name: str) -> None:
    module, example = net(STAYS[name])
    plan = bnfold.fold(torch.export.export(module, example)).plan
    assert plan.folds == ()
    assert {left.code for left in plan.left} <= {StopCode.CHANGES_DTYPE}


def test_casts_to_a_narrower_type_and_back_stay() -> None:
    module, example = net(lambda net, x: net.bn(net.conv(x).half()).float())
    module, example = module.float(), tuple(given.float() for given in example)
    module.bn.half()
    (left,) = bnfold.fold(torch.export.export(module, example)).plan.left
    assert left.code is StopCode.CHANGES_DTYPE
