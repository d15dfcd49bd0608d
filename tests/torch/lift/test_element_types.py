"""Inputs and parameters whose element types torch does not take together, although torch.export may follow them."""

import pytest
import torch
from torch import nn
from torch_modules import inputs, trained

import bnfold
from bnfold.errors import UsageError

DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16


def chain(first: torch.dtype, second: torch.dtype, *, norm_first: bool = False, images: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)] if images else [nn.Linear(3, 3), nn.BatchNorm1d(3)]
    layers = layers[::-1] if norm_first else layers
    return nn.Sequential(*(trained(layer, dtype=dtype) for layer, dtype in zip(layers, (first, second), strict=True)))


REFUSED = {
    "a linear layer": (chain(SINGLE, SINGLE), DOUBLE),
    "a convolution": (chain(SINGLE, SINGLE, images=True), DOUBLE),
    "half into a convolution": (chain(SINGLE, SINGLE, images=True), HALF),
    "a wider convolution": (chain(DOUBLE, SINGLE, images=True), DOUBLE),
    "a wider batch norm": (chain(SINGLE, DOUBLE), SINGLE),
    "a batch norm in half": (chain(SINGLE, HALF), SINGLE),
    "a wider layer behind": (chain(SINGLE, DOUBLE, norm_first=True), SINGLE),
    "a narrower layer behind": (chain(DOUBLE, SINGLE, norm_first=True), DOUBLE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses(name: str) -> None:
    module, dtype = REFUSED[name]
    example = inputs((2, 3, 4, 4) if isinstance(module[0], nn.Conv2d) else (2, 3), dtype=dtype)
    with pytest.raises(RuntimeError), torch.no_grad():
        module(*example)
    with pytest.raises(UsageError, match="fails with the example inputs"):
        bnfold.fold(module.eval(), example)
    try:
        program = torch.export.export(module.eval(), example)
    except RuntimeError:
        return
    plan = bnfold.fold(program).plan
    assert not plan.folds
    assert "torch takes no" in plan.left[0].reason


def test_half_precision_with_statistics_in_float32() -> None:
    module = chain(HALF, SINGLE).eval()
    assert not bnfold.fold(module, inputs((2, 3), dtype=HALF)).plan.left


def test_autocast_casts() -> None:
    class Cast(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", HALF):
                return super().forward(x)

    module = trained(Cast(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), dtype=SINGLE)
    assert not bnfold.fold(module, inputs((2, 3, 4, 4), dtype=SINGLE)).plan.left
