"""Modules with a `__deepcopy__` of their own, which forgets something."""

import copy
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch_modules import EXACT, codes, distance, fold, folded_names, images, run, trained

import bnfold
from bnfold.errors import UnsupportedModelError
from bnfold.reasons import StopCode
from bnfold.torch.capture.copying import shadow


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)).relu())


class InTrainingMode(nn.Sequential):
    """Its copies begin anew, as torchvision's feature extractors do, which have another graph for each mode."""

    kind = "inference"

    def __deepcopy__(self, memo: dict[int, Any]) -> "InTrainingMode":
        made = type(self)(*(copy.deepcopy(child, memo) for child in self))
        memo[id(self)] = made
        return made

    def train(self, mode: bool = True) -> "InTrainingMode":
        self.kind = "training" if mode else "inference"
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.kind == "inference" else x


def test_a_copy_in_training_mode() -> None:
    module = trained(nn.Sequential(InTrainingMode(*layers()), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert copy.deepcopy(module)[0].training
    result = fold(module, images())
    assert folded_names(result) == ["0.1", "2"]
    assert not any(child.training for child in result.model.modules())


def test_modes_that_are_mixed() -> None:
    module = trained(nn.Sequential(InTrainingMode(*layers()), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    module[0][1].train()
    module[0].kind = "inference"
    copied = shadow(module)
    assert [child.training for child in copied.modules()] == [child.training for child in module.modules()]


@pytest.mark.parametrize("watches", [False, True])
def test_a_graph_module_keeps_hooks_and_attributes(watches: bool) -> None:
    module = fx.symbolic_trace(trained(Net()))
    module.names, module.version, seen = ["a"], 3, []
    if watches:
        module.register_forward_hook(lambda *_: seen.append(True))
        module.bn.register_forward_hook(lambda *_: seen.append(True))
    result = bnfold.fold(module, images())
    assert distance(run(result.model, images()), run(module, images())) < EXACT
    assert type(result.model).__name__ == "Net"
    assert (result.model.names, result.model.version) == (["a"], 3)
    assert result.model.names is not module.names
    assert len(result.model._forward_hooks) == watches
    assert codes(result) == ({"bn": StopCode.HOOKS} if watches else {})


class WithOtherValues(nn.Sequential):
    def __deepcopy__(self, memo: dict[int, Any]) -> "WithOtherValues":
        made = type(self)(*layers())
        memo[id(self)] = made
        return made


class OfAnotherClass(nn.Sequential):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return nn.Sequential(*(copy.deepcopy(child, memo) for child in self))


@pytest.mark.parametrize("kind", [WithOtherValues, OfAnotherClass])
def test_what_is_no_copy_is_refused(kind: type[nn.Sequential]) -> None:
    module = trained(nn.Sequential(kind(*layers()), layers()[:2]))
    with pytest.raises(UnsupportedModelError, match="'0"):
        bnfold.fold(module, images())


@dataclass
class Options:
    factor: float = 1.0


class Begins(Net):
    """Multiplies by what it keeps, which is 1 in what is made of it in some way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.listed, self.array = [torch.ones(1)], np.ones(1)
        self.named, self.space, self.options = {"factor": (1.0,)}, SimpleNamespace(factor=1.0), Options()

    def forward(self, x: Tensor) -> Tensor:
        factors = (*self.named["factor"], self.space.factor, self.options.factor, float(self.array[0]))
        return super().forward(x) * self.listed[0] * math.prod(factors)


class BeginsIfCopied(Begins):
    def __deepcopy__(self, memo: dict[int, Any]) -> "BeginsIfCopied":
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        memo[id(self)] = made
        for name, child in self.named_children():
            setattr(made, name, copy.deepcopy(child, memo))
        made.begin()
        return made.train(self.training)


class BeginsIfPickled(Begins):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.begin()


@pytest.mark.parametrize("kind", [BeginsIfCopied, BeginsIfPickled])
@pytest.mark.parametrize("name", ["listed", "array", "named", "space", "options"])
def test_a_copy_that_begins_anew(kind: type[Begins], name: str) -> None:
    module = trained(kind())
    other = {
        "listed": [torch.full((1,), 3.0)],
        "array": np.full(1, 3.0),
        "named": {"factor": (3.0,)},
        "space": SimpleNamespace(factor=3.0),
        "options": Options(3.0),
    }
    setattr(module, name, other[name])
    result = fold(module, images())
    assert folded_names(result) == ["bn"]
    assert distance(run(result.model, images()), run(module, images())) < EXACT
