"""Modules whose code writes to their own weights: those of the caller stay as they are."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_modules import EXACT, distance, folded_names, images, run, trained

import bnfold


class Writing(nn.Module):
    """A convolution that is written to before each call, with a BN, behind one that folds."""

    def __init__(self, write: Callable[[nn.Conv2d, Tensor], None]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.conv, self.bn, self.write = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), write

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        self.write(self.conv, x)
        return self.bn(self.conv(x)).relu()


def in_place(conv: nn.Conv2d, _: Tensor) -> None:
    with torch.no_grad():
        conv.weight.clamp_(-0.1, 0.1)


def a_part(conv: nn.Conv2d, _: Tensor) -> None:
    with torch.no_grad():
        conv.weight[:, 0] *= 0.5
        torch._foreach_mul_([conv.bias], 0.5)


def behind_the_back(conv: nn.Conv2d, _: Tensor) -> None:
    conv.weight.data.mul_(0.5)


def other_data(conv: nn.Conv2d, _: Tensor) -> None:
    conv.weight.data = torch.renorm(conv.weight.data, p=2, dim=0, maxnorm=0.1)


def frozen(conv: nn.Conv2d, _: Tensor) -> None:
    conv.weight.requires_grad_(False)


def where_values_ask_for_it(conv: nn.Conv2d, x: Tensor) -> None:
    if float(x.sum()) > -1e9:
        conv.bias.data.copy_(conv.bias * 0.5)


def in_one_size(conv: nn.Conv2d, x: Tensor) -> None:
    if x.shape[0] != 2:
        conv.weight.data.mul_(0.5)


WRITES = (in_place, a_part, behind_the_back, other_data, frozen, where_values_ask_for_it, in_one_size)


@pytest.mark.parametrize("write", WRITES)
def test_the_weights_of_the_caller_stay(write: Callable[[nn.Conv2d, Tensor], None]) -> None:
    module = trained(Writing(write))
    held = dict(module.named_parameters())
    before = {name: (tensor.data_ptr(), tensor.requires_grad, tensor.detach().clone()) for name, tensor in held.items()}

    def as_before() -> bool:
        after = dict(module.named_parameters())
        return [*after] == [*before] and all(
            tensor is held[name]
            and (tensor.data_ptr(), tensor.requires_grad) == before[name][:2]
            and tensor.equal(before[name][2])
            for name, tensor in after.items()
        )

    bnfold.inspect(module, images())
    assert as_before()
    result = bnfold.fold(module, images())
    assert as_before()
    assert bnfold.verify(module, result.model, example_inputs=images()).verdict == "pass"
    assert as_before()
    assert "stem.1" in folded_names(result)
    assert distance(run(result.model, images()), run(copy.deepcopy(module), images())) < EXACT
