"""Networks of blocks with parallel branches, at the widths and depths of the papers' smallest models.

Each ends in a pooled classifier of 1000 classes. Squeeze-and-excitation is where the papers have it.
"""

import torch
from merging_networks import (
    AcNet,
    DiverseBranch,
    FastVit,
    LargeKernel,
    MobileOne,
    RepVgg,
    RepVit,
    Residual,
    conv_bn,
    deployed,
)
from torch import Tensor, nn


class Excite(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // reduction, 1)
        self.expand = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(y))


class Linear(nn.Module):
    """A block without the Relu at its end."""

    def __init__(self, block: AcNet | DiverseBranch) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.branches(x)

    def deployed(self) -> nn.Module:
        conv, _ = self.block.deployed()
        return conv


class BasicBlock(nn.Module):
    """The residual block of a ResNet-18, with anything for its two convolutions."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))

    def deployed(self) -> nn.Module:
        return BasicBlock(deployed(self.first), deployed(self.second), deployed(self.shortcut))


def classifier(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)


def repvgg_a0() -> nn.Module:
    blocks, inputs = [RepVgg(3, 48, 2)], 48
    for width, depth in ((48, 2), (96, 4), (192, 14), (1280, 1)):
        blocks += [RepVgg(inputs if index == 0 else width, width, 2 if index == 0 else 1) for index in range(depth)]
        inputs = width
    return nn.Sequential(*blocks, *classifier(1280))


def mobileone_s0() -> nn.Module:
    blocks, inputs = [MobileOne(3, 48, 3, branches=4, stride=2)], 48
    for width, depth, stride in ((48, 2, 2), (128, 8, 2), (256, 5, 2), (256, 5, 1), (1024, 1, 2)):
        for index in range(depth):
            step = stride if index == 0 else 1
            blocks.append(MobileOne(inputs, inputs, 3, branches=4, groups=inputs, stride=step))
            blocks.append(MobileOne(inputs, width, 1, branches=4))
            inputs = width
    return nn.Sequential(*blocks, *classifier(1024))


def repvit_m09() -> nn.Module:
    blocks = [conv_bn(3, 24, 3, stride=2), nn.GELU(), conv_bn(24, 48, 3, stride=2)]
    inputs = 48
    for width, depth in ((48, 2), (96, 2), (192, 14), (384, 2)):
        if width != inputs:
            blocks += [RepVit(inputs), conv_bn(inputs, inputs, 3, stride=2, groups=inputs), conv_bn(inputs, width, 1)]
            blocks.append(Residual(conv_bn(width, 2 * width, 1), conv_bn(2 * width, width, 1)))
        blocks += [RepVit(width, Excite(width, 4) if index % 2 == 0 else None) for index in range(depth)]
        inputs = width
    return nn.Sequential(*blocks, *classifier(384))


def fastvit_t8() -> nn.Module:
    blocks = [
        MobileOne(3, 48, 3, branches=1, stride=2),
        MobileOne(48, 48, 3, branches=1, groups=48, stride=2),
        MobileOne(48, 48, 1, branches=1),
    ]
    inputs = 48
    for width, depth in ((48, 2), (96, 2), (192, 4), (384, 2)):
        if width != inputs:
            blocks += [LargeKernel(inputs, width), MobileOne(width, width, 1, branches=1)]
        blocks += [FastVit(width) for _ in range(depth)]
        inputs = width
    return nn.Sequential(*blocks, MobileOne(384, 768, 3, branches=1, groups=384), Excite(768, 16), *classifier(768))


def resnet18(block: type[AcNet | DiverseBranch]) -> nn.Module:
    """A ResNet-18 as ACNet's and DBB's papers change it: each 3x3 convolution becomes a block."""
    blocks: list[nn.Module] = [conv_bn(3, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width in (64, 128, 256, 512):
        for index in range(2):
            stride = 2 if index == 0 and width != 64 else 1
            shortcut = conv_bn(inputs, width, 1, stride=stride) if inputs != width else nn.Identity()
            blocks.append(BasicBlock(block(inputs, width, stride), Linear(block(width, width)), shortcut))
            inputs = width
    return nn.Sequential(*blocks, *classifier(512))


def acnet_resnet18() -> nn.Module:
    return resnet18(AcNet)


def dbb_resnet18() -> nn.Module:
    return resnet18(DiverseBranch)


FULL_SIZE = {
    "RepVGG-A0": repvgg_a0,
    "MobileOne-S0": mobileone_s0,
    "RepViT-M0.9": repvit_m09,
    "FastViT-T8": fastvit_t8,
    "ACNet-ResNet-18": acnet_resnet18,
    "DBB-ResNet-18": dbb_resnet18,
}
