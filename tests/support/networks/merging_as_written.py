"""Blocks with parallel branches in the words that the networks' own code uses, and small networks of these.

What is added may be the number 0, sums are added up in place, borders are written into slices, kernels are computed
from parameters: not the algebra of the papers, which is in merging_networks.py, but what exporters get to see.
"""

import torch
from merging_networks import CHANNELS, conv_bn, stem
from torch import Tensor, nn


# RepConv of YOLO and RT-DETR (ultralytics): the identity is left out by adding 0.
class RepConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, bn: bool = False) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs) if bn and inputs == outputs and stride == 1 else None
        self.conv1 = conv_bn(inputs, outputs, 3, stride=stride)
        self.conv2 = conv_bn(inputs, outputs, 1, stride=stride)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        id_out = 0 if self.bn is None else self.bn(x)
        return self.act(self.conv1(x) + self.conv2(x) + id_out)


class Conv2(nn.Module):
    """Two convolutions and one BN behind them (ultralytics)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.cv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(outputs), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x) + self.cv2(x)))


# Chu et al., "Make RepVGG Greater Again: A Quantization-aware Approach", 2023, figure 3; YOLOv6 adds the pool.
class QaRepVgg(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, pool: bool = False) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        self.rbr_dense = conv_bn(inputs, outputs, 3, stride=stride)
        self.rbr_1x1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.rbr_identity = nn.Identity() if same else None
        self.rbr_avg = nn.AvgPool2d(3, stride, 1) if same and pool else None
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(x)
        avg_out = 0 if self.rbr_avg is None else self.rbr_avg(x)
        return torch.relu(self.bn(self.rbr_dense(x) + self.rbr_1x1(x) + id_out + avg_out))


# Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", 2022, figure 2.
class RepLkBlock(nn.Module):
    def __init__(self, channels: int, size: int, small: int) -> None:
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1, self.pw2 = conv_bn(channels, channels, 1), conv_bn(channels, channels, 1)
        self.lkb_origin = conv_bn(channels, channels, size, groups=channels)
        self.small_conv = conv_bn(channels, channels, small, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.pw1(self.prelkb_bn(x)))
        return x + self.pw2(torch.relu(self.lkb_origin(y) + self.small_conv(y)))


# Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet", 2024, figure 2: dilated kernels beside a
# large one, a BN behind their sum, and a BN and a scale behind a linear layer in channels-last order.
class UniRepLkBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lk_origin = nn.Conv2d(channels, channels, 13, padding=6, groups=channels, bias=False)
        self.origin_bn = nn.BatchNorm2d(channels)
        self.dilated = nn.ModuleList()
        for size, rate in zip((5, 7, 3, 3, 3), (1, 2, 3, 4, 5), strict=True):
            padding = (rate * (size - 1) + 1) // 2
            conv = nn.Conv2d(channels, channels, size, 1, padding, rate, groups=channels, bias=False)
            self.dilated.append(nn.Sequential(conv, nn.BatchNorm2d(channels)))
        self.norm = nn.BatchNorm2d(channels)
        self.pwconv1 = nn.Linear(channels, 2 * channels)
        self.pwconv2 = nn.Linear(2 * channels, channels, bias=False)
        self.grn_gamma, self.grn_beta = (nn.Parameter(torch.rand(1, 1, 1, 2 * channels)) for _ in range(2))
        self.last_bn = nn.BatchNorm2d(channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin_bn(self.lk_origin(x))
        for branch in self.dilated:
            y = y + branch(x)
        y = torch.relu(self.pwconv1(self.norm(y).permute(0, 2, 3, 1)))
        norms = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = (self.grn_gamma * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6)) + 1) * y + self.grn_beta
        y = self.last_bn(self.pwconv2(y).permute(0, 3, 1, 2))
        return x + self.gamma.view(1, -1, 1, 1) * y


class LearnableAffine(nn.Module):
    """One scale and one shift for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor([1.3])), nn.Parameter(torch.tensor([0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


# PP-LCNetV3 (PaddleOCR, transformers): several equal branches, a learnable affine before and after the activation.
class LearnableRep(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.symmetric = nn.ModuleList([conv_bn(inputs, outputs, size, stride=stride, groups=groups) for _ in range(4)])
        self.small = conv_bn(inputs, outputs, 1, stride=stride, groups=groups) if size > 1 else None
        self.lab, self.act_lab = LearnableAffine(), LearnableAffine()

    def forward(self, x: Tensor) -> Tensor:
        out = None
        if self.identity is not None:
            out = self.identity(x)
        if self.small is not None:
            out = self.small(x) if out is None else out + self.small(x)
        for conv in self.symmetric:
            out = conv(x) if out is None else out + conv(x)
        return self.act_lab(torch.relu(self.lab(out)))


# Diverse Branch Block: borders that are the BN's constant are written over those of a zero-padded copy.
class BnAndPad(nn.Module):
    def __init__(self, pixels: int, channels: int) -> None:
        super().__init__()
        self.bn, self.pixels = nn.BatchNorm2d(channels), pixels

    def forward(self, x: Tensor) -> Tensor:
        bn, pixels = self.bn, self.pixels
        y = nn.functional.pad(bn(x), [pixels] * 4)
        values = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        values = values.view(1, -1, 1, 1)
        y[:, :, :pixels, :] = values
        y[:, :, -pixels:, :] = values
        y[:, :, :, :pixels] = values
        y[:, :, :, -pixels:] = values
        return y


class IdentityBasedConv(nn.Conv2d):
    """A pointwise convolution whose weight is learned as its distance from the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)
        self.id_tensor = torch.eye(channels)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight + self.id_tensor.to(self.weight))


class DiverseBranchAsWritten(nn.Module):
    """Dense; or depthwise, which has other branches: a pool of x itself, and twice the channels inside of the pair."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        dense, inner = groups == 1, inputs if groups == 1 else 2 * inputs
        self.origin = conv_bn(inputs, outputs, 3, stride=stride, groups=groups)
        self.pointwise = conv_bn(inputs, outputs, 1, stride=stride) if dense else None
        pooled = [nn.Conv2d(inputs, outputs, 1, bias=False), BnAndPad(1, outputs)] if dense else []
        pool = nn.AvgPool2d(3, stride, 0 if dense else 1)
        self.avg = nn.Sequential(*pooled, pool, nn.BatchNorm2d(outputs))
        first = IdentityBasedConv(inputs) if dense else nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        second = nn.Conv2d(inner, outputs, 3, stride, groups=groups, bias=False)
        self.pair = nn.Sequential(first, BnAndPad(1, inner), second, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin(x)
        if self.pointwise is not None:
            y += self.pointwise(x)
        y += self.avg(x)
        y += self.pair(x)
        return torch.relu(y)


def yolo() -> nn.Module:
    return stem(RepConv(CHANNELS, CHANNELS), RepConv(CHANNELS, CHANNELS, bn=True), RepConv(8, 16, 2), Conv2(16, 16))


def qarepvgg() -> nn.Module:
    return stem(QaRepVgg(CHANNELS, CHANNELS), QaRepVgg(CHANNELS, CHANNELS, pool=True), QaRepVgg(CHANNELS, 16, 2))


def replknet() -> nn.Module:
    return stem(RepLkBlock(CHANNELS, 13, 5), RepLkBlock(CHANNELS, 9, 3))


def unireplknet() -> nn.Module:
    return stem(UniRepLkBlock(CHANNELS), UniRepLkBlock(CHANNELS))


def pp_lcnet_v3() -> nn.Module:
    return stem(
        LearnableRep(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        LearnableRep(CHANNELS, 16, 1),
        LearnableRep(16, 16, 5, stride=2, groups=16),
    )


def dbb_dense() -> nn.Module:
    return stem(DiverseBranchAsWritten(CHANNELS, CHANNELS), DiverseBranchAsWritten(CHANNELS, 16, 2))


def dbb_depthwise() -> nn.Module:
    return stem(*(DiverseBranchAsWritten(CHANNELS, CHANNELS, stride, groups=CHANNELS) for stride in (1, 2)))


WRITTEN = {function.__name__: function for function in (yolo, qarepvgg, replknet, unireplknet, pp_lcnet_v3)}
"""Those that become the deployment form of their authors."""

BORDERED = {function.__name__: function for function in (dbb_dense, dbb_depthwise)}
"""Those of which a part stays, because nothing moves past a border that is written into slices."""
