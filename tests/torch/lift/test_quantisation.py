"""Weights that are rounded to the steps of a quantisation on their way to a layer: no constants, for the steps stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_modules import codes, fold, images, trained

import bnfold
from bnfold.reasons import StopCode

SCALES = torch.full((4,), 0.02)
ZEROS = torch.zeros(4, dtype=torch.int32)

QUANTISED: dict[str, Callable[[Tensor], Tensor]] = {
    "per tensor": lambda w: torch.fake_quantize_per_tensor_affine(w, 0.02, 0, -127, 127),
    "per channel": lambda w: torch.fake_quantize_per_channel_affine(w, SCALES, ZEROS, 0, -127, 127),
    "with a scale that is computed": lambda w: torch.fake_quantize_per_tensor_affine(
        w, w.abs().max() / 127, torch.zeros((), dtype=torch.int32), -127, 127
    ),
    "and rearranged": lambda w: torch.fake_quantize_per_tensor_affine(w, 0.02, 0, -127, 127).flip(0) * 2,
}


class Quantised(nn.Module):
    def __init__(self, quantise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.quantise = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), quantise

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantise(self.conv.weight.flatten(1)).view_as(self.conv.weight)
        return self.bn(functional.conv2d(x, weight, self.conv.bias, padding=1))


@pytest.mark.parametrize("name", QUANTISED)
def test_what_is_rounded_on_the_way_stays(name: str) -> None:
    module = trained(Quantised(QUANTISED[name]), dtype=torch.float32)
    example = images(dtype=torch.float32)
    with torch.no_grad():
        program = bnfold.fold(torch.export.export(module, example))
    (left,) = program.plan.left
    assert left.code is StopCode.WEIGHT_NOT_CONSTANT
    assert "quantised while the model runs" in left.reason
    assert [entry.nodes for entry in bnfold.fold(module, example).plan.left] == [("bn",)]


def test_other_expressions_are_constants() -> None:
    module = trained(Quantised(lambda w: (w / 0.02).round() * 0.02))
    assert not bnfold.fold(torch.export.export(module, images())).plan.left


def test_a_batch_norm_with_quantised_parameters() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.02, 0, -127, 127)
            return functional.batch_norm(
                x, self.running_mean, self.running_var, weight, self.bias, False, 0.1, self.eps
            )

    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), Norm(4)))
    assert codes(fold(module, images())) == {"1": StopCode.PARAMETERS_NOT_CONSTANT}
