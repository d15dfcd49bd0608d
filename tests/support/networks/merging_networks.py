"""Blocks with parallel branches in training form, as their papers have them, and small networks of these.

Every BN has random statistics, and gammas of both signs.
"""

import torch
from torch import Tensor, nn

CHANNELS = 8


def conv_bn(inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, padding: object = None):
    """A convolution without a bias, padded to keep the size, and its BN."""
    padding = size // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


# Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021, section 3.
class RepVgg(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = conv_bn(inputs, outputs, 3, stride=stride, groups=groups)
        self.pointwise = conv_bn(inputs, outputs, 1, stride=stride, groups=groups)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))

    def deployed(self) -> nn.Module:
        return nn.Sequential(biased(self.dense[0]), nn.ReLU())


# Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", 2023, figure 3.
class MobileOne(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, size: int, *, branches: int, groups: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.scale = conv_bn(inputs, outputs, 1, groups=groups, stride=stride) if size > 1 else None
        self.convs = nn.ModuleList(
            [conv_bn(inputs, outputs, size, groups=groups, stride=stride) for _ in range(branches)]
        )

    def branch(self, x: Tensor) -> Tensor:
        y = 0 if self.skip is None else self.skip(x)
        if self.scale is not None:
            y = y + self.scale(x)
        for conv in self.convs:
            y = y + conv(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x))

    def deployed(self) -> nn.Module:
        return nn.Sequential(biased(self.convs[0][0]), nn.ReLU())


# Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", 2024, figure 3: one BN behind three branches.
class RepVit(nn.Module):
    def __init__(self, channels: int, excite: nn.Module | None = None) -> None:
        super().__init__()
        self.dense = conv_bn(channels, channels, 3, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.excite = nn.Identity() if excite is None else excite
        self.expand = conv_bn(channels, 2 * channels, 1)
        self.project = conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.excite(self.norm((self.dense(x) + self.pointwise(x)) + x))
        return x + self.project(nn.functional.gelu(self.expand(x)))

    def deployed(self) -> nn.Module:
        mixer = Residual(biased(self.expand[0]), biased(self.project[0]))
        return nn.Sequential(biased(self.dense[0]), self.excite, mixer)


class Residual(nn.Module):
    """What RepViT's and FastViT's channel mixers are in the end."""

    def __init__(self, expand: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.expand, self.project = expand, project

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.gelu(self.expand(x)))

    def deployed(self) -> nn.Module:
        return Residual(deployed(self.expand), deployed(self.project))


# Vasu et al., "FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization", 2023, section 3.2.
class RepMixer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = MobileOne(channels, channels, 3, branches=1, groups=channels)
        self.layer_scale = nn.Parameter(torch.linspace(-0.5, 1.5, channels).reshape(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer.branch(x) - self.norm(x))


class FastVit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = RepMixer(channels)
        self.conv = conv_bn(channels, channels, 7, groups=channels)
        self.expand = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(3 * channels, channels, 1)
        self.layer_scale = nn.Parameter(torch.linspace(1.5, -0.5, channels).reshape(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        y = self.project(nn.functional.gelu(self.expand(self.conv(x))))
        return x + self.layer_scale * y

    def deployed(self) -> nn.Module:
        expand = nn.Sequential(biased(self.conv[0]), self.expand)
        return nn.Sequential(biased(self.mixer.mixer.convs[0][0]), Residual(expand, self.project))


class LargeKernel(nn.Module):
    """FastViT's patch embedding: a 7x7 depthwise convolution beside a 3x3 one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.large = conv_bn(inputs, outputs, 7, stride=2, groups=inputs)
        self.small = conv_bn(inputs, outputs, 3, stride=2, groups=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.large(x) + self.small(x))

    def deployed(self) -> nn.Module:
        return nn.Sequential(biased(self.large[0]), nn.GELU())


# Ding et al., "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks", 2019.
class AcNet(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.square = conv_bn(inputs, outputs, 3, stride=stride)
        self.tall = nn.Sequential(
            nn.Conv2d(inputs, outputs, (3, 1), stride, (1, 0), bias=False), nn.BatchNorm2d(outputs)
        )
        self.wide = nn.Sequential(
            nn.Conv2d(inputs, outputs, (1, 3), stride, (0, 1), bias=False), nn.BatchNorm2d(outputs)
        )

    def branches(self, x: Tensor) -> Tensor:
        return self.square(x) + self.tall(x) + self.wide(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branches(x))

    def deployed(self) -> nn.Module:
        return nn.Sequential(biased(self.square[0]), nn.ReLU())


# Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", 2021, figure 2. The 1x1
# convolutions pad x, so that the border of what the next layer reads is their BN's constant.
class DiverseBranch(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dense = conv_bn(inputs, outputs, 3, stride=stride)
        self.pointwise = conv_bn(inputs, outputs, 1, stride=stride)
        self.pair = nn.Sequential(
            conv_bn(inputs, inputs, 1, padding=1), conv_bn(inputs, outputs, 3, stride=stride, padding=0)
        )
        self.pool = nn.Sequential(
            conv_bn(inputs, outputs, 1, padding=1), nn.AvgPool2d(3, stride), nn.BatchNorm2d(outputs)
        )

    def branches(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.pointwise(x) + self.pair(x) + self.pool(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branches(x))

    def deployed(self) -> nn.Module:
        return nn.Sequential(biased(self.dense[0]), nn.ReLU())


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in inference mode, each BN with statistics and parameters of its own."""
    draw = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            count = layer.num_features
            signs = torch.randint(0, 2, (count,), generator=draw) * 2 - 1
            layer.weight.data = (0.5 + torch.rand(count, generator=draw)) * signs
            layer.bias.data = torch.randn(count, generator=draw)
            layer.running_mean = torch.randn(count, generator=draw)
            layer.running_var = 0.5 + torch.rand(count, generator=draw)
        elif isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.data = torch.randn(layer.weight.shape, generator=draw) / fan_in**0.5
    return module.eval()


def stem(*blocks: nn.Module) -> nn.Module:
    """Blocks behind a convolution, so that what they read is computed."""
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), *blocks)


def repvgg() -> nn.Module:
    return stem(RepVgg(CHANNELS, CHANNELS), RepVgg(CHANNELS, 2 * CHANNELS, 2), RepVgg(16, 16, groups=2))


def mobileone() -> nn.Module:
    return stem(
        MobileOne(CHANNELS, CHANNELS, 3, branches=4, groups=CHANNELS),
        MobileOne(CHANNELS, CHANNELS, 1, branches=4),
        MobileOne(CHANNELS, CHANNELS, 3, branches=2, groups=CHANNELS, stride=2),
        MobileOne(CHANNELS, 16, 1, branches=2),
    )


def repvit() -> nn.Module:
    return stem(RepVit(CHANNELS), RepVit(CHANNELS))


def fastvit() -> nn.Module:
    return stem(FastVit(CHANNELS), FastVit(CHANNELS))


def acnet() -> nn.Module:
    return stem(AcNet(CHANNELS, CHANNELS), AcNet(CHANNELS, 16, 2))


def dbb() -> nn.Module:
    return stem(DiverseBranch(CHANNELS, CHANNELS), DiverseBranch(CHANNELS, 16, 2))


NETWORKS = {function.__name__: function for function in (repvgg, mobileone, repvit, fastvit, acnet, dbb)}


def deployed(module: nn.Module) -> nn.Module:
    """The network in the deployment form of its paper, with new weights: the same operations on the same shapes."""
    if hasattr(module, "deployed"):
        return module.deployed()
    if isinstance(module, nn.Sequential):
        layers = [layer for layer in module if not isinstance(layer, nn.BatchNorm2d)]
        return nn.Sequential(*map(deployed, layers)).eval()
    return biased(module) if isinstance(module, nn.Conv2d) else module


def biased(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution with a bias, otherwise like another."""
    return nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
