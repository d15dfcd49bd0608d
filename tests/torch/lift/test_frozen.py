"""Frozen batch norms, as torchvision, detectron2 and transformers spell them out."""

import numpy as np
import pytest
import torch
from torch import nn
from torch_lifting import Net, batch_norms, double, fold, graph_of, handle

from bnfold.graph import Kind
from bnfold.planning.planner import plan
from bnfold.reasons import StopCode


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision and transformers."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        draw = torch.Generator().manual_seed(3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels, generator=draw, dtype=torch.float64) + 0.5)

    def forward(self, x):
        weight = self.weight.reshape(1, -1, 1, 1)
        bias = self.bias.reshape(1, -1, 1, 1)
        variance = self.running_var.reshape(1, -1, 1, 1)
        mean = self.running_mean.reshape(1, -1, 1, 1)
        scale = weight * (variance + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


class DetrFrozenBatchNorm2d(FrozenBatchNorm2d):
    """As in older transformers: four operators in a row."""

    def forward(self, x):
        scale = (self.weight / (self.running_var + self.eps).sqrt())[:, None, None]
        x = x - self.running_mean[:, None, None]
        x *= scale
        return x + self.bias[:, None, None]


class FrozenBatchNormWithout(FrozenBatchNorm2d):
    """Called like one, and does something else."""

    def forward(self, x):
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Spelled(FrozenBatchNorm2d):
    """The same arithmetic under another name."""


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, DetrFrozenBatchNorm2d])
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_frozen_batch_norm_is_a_batch_norm(kind, decomposed):
    frozen = kind(4)
    module = nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.float64), frozen)

    (found,) = batch_norms(graph_of(module, double(2, 3, 5, 5), decomposed=decomposed))

    scale = frozen.weight.numpy() / np.sqrt(frozen.running_var.numpy() + 1e-3)
    assert found.name == "1"
    assert found.op_type == "BatchNorm"
    np.testing.assert_allclose(found.affine.scale.reshape(-1), scale, rtol=1e-15)
    np.testing.assert_allclose(
        found.affine.shift.reshape(-1), frozen.bias.numpy() - frozen.running_mean.numpy() * scale, rtol=1e-12
    )
    assert sorted(handle(found).parameters) == ["1.bias", "1.running_mean", "1.running_var", "1.weight"]
    assert len(handle(found).chain) >= 1
    assert fold(module, double(2, 3, 5, 5), decomposed=decomposed).batch_norms_folded == 1


@pytest.mark.parametrize("kind", [FrozenBatchNormWithout, Spelled])
def test_what_is_no_frozen_batch_norm_is_an_affine(kind):
    (found,) = graph_of(nn.Sequential(kind(3)), double(2, 3, 5, 5)).affines

    assert found.kind is Kind.AFFINE


def test_what_is_around_a_frozen_batch_norm_is_no_part_of_it():
    module = Net(
        lambda self, x: (self.bn(self.conv(x) * 0.5) + self.c).sin(),
        conv=nn.Conv2d(3, 4, 1).double(),
        bn=FrozenBatchNorm2d(4),
        c=torch.rand(4, 1, 1).double(),
    )

    graph = graph_of(module, double(2, 3, 5, 5))

    assert [found.kind for found in graph.affines] == [Kind.AFFINE, Kind.BATCH_NORM, Kind.AFFINE]
    assert plan(graph).batch_norms_folded == 1


def test_a_frozen_batch_norm_that_is_called_twice():
    module = Net(
        lambda self, x: self.bn(self.two(self.bn(self.one(x)))),
        one=nn.Conv2d(3, 4, 1).double(),
        two=nn.Conv2d(4, 4, 1).double(),
        bn=FrozenBatchNorm2d(4),
    )

    assert [found.name for found in batch_norms(graph_of(module, double(2, 3, 5, 5)))] == ["bn", "bn/mul_4"]


def test_a_frozen_batch_norm_with_broken_statistics_is_listed():
    frozen = FrozenBatchNorm2d(3)
    frozen.running_var[1] = -1

    (left,) = plan(graph_of(nn.Sequential(frozen), double(2, 3, 5, 5))).left

    assert left.code is StopCode.PARAMETERS_NOT_FINITE
    assert left.kind is Kind.BATCH_NORM
