"""Blocks of published networks whose BatchNorms are not next to a linear map, written from the papers.

Each is the smallest network with the connection in question; inputs are (2, 3, 8, 8) unless it works on tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import zoo
from architectures import Built
from exporters import quiet
from torch import Tensor, nn
from torch.nn import functional

SEED = 20240601


@dataclass(frozen=True, slots=True)
class MovingNetwork:
    """One network.

    Attributes:
        network: Makes it.
        left: How many BNs of it stay, by the reason's code.
        inputs: The shape of its input.
    """

    network: Callable[[], nn.Module]
    left: tuple[str, ...] = ()
    inputs: tuple[int, ...] = (2, 3, 8, 8)

    @property
    def name(self) -> str:
        return self.network.__name__.lower()

    def build(self) -> Built:
        """The module in eval mode with the parameters of a trained one, and its inputs; the same at every call."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
            torch.manual_seed(SEED)
            module = zoo.FloatOutputs(self.network()).eval()
            inputs = (torch.randn(self.inputs),)
            zoo.randomise(module)
            zoo.settle_statistics(module, inputs)
        return module, inputs


def conv_bn(inner: int, out: int, kernel: int = 1, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, out, kernel, bias=False, **options), nn.BatchNorm2d(out))


class MixNet(nn.Module):
    """Tan and Le, MixConv (2019): groups of channels with kernels of their own, joined before one BN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, padding=1)
        self.expand = nn.ModuleList(nn.Conv2d(4, 8, 1, bias=False) for _ in range(2))
        self.expanded = nn.BatchNorm2d(16)
        self.mix = nn.ModuleList(
            nn.Conv2d(size, size, kernel, padding=kernel // 2, groups=size, bias=False)
            for size, kernel in ((6, 3), (6, 5), (4, 7))
        )
        self.mixed = nn.BatchNorm2d(16)
        self.project = nn.ModuleList(nn.Conv2d(8, 4, 1, bias=False) for _ in range(2))
        self.projected = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = torch.cat([conv(part) for conv, part in zip(self.expand, x.split(4, 1), strict=True)], 1)
        y = functional.silu(self.expanded(y))
        y = torch.cat([conv(part) for conv, part in zip(self.mix, y.split((6, 6, 4), 1), strict=True)], 1)
        y = functional.silu(self.mixed(y))
        y = torch.cat([conv(part) for conv, part in zip(self.project, y.split(8, 1), strict=True)], 1)
        return x + self.projected(y)


class NextViT(nn.Module):
    """Li et al., Next-ViT (2022): a BN before the 1x1 convs of the MLP and before the projections of the attention,
    whose keys and values are pooled tokens with a BN of their own."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.pooled = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.mlp_norm = nn.BatchNorm2d(width)
        self.first, self.second = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.last = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query = self._split(self.query(tokens))
        fewer = functional.avg_pool1d(tokens.transpose(1, 2), 4)
        fewer = self.pooled(fewer).transpose(1, 2)
        key, value = self._split(self.key(fewer)), self._split(self.value(fewer))
        attention = (query @ key.transpose(-2, -1) * 0.5).softmax(-1)
        mixed = self.out((attention @ value).transpose(1, 2).flatten(2))
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        x = x + self.second(functional.relu(self.first(self.mlp_norm(x))))
        return self.head(self.last(x).mean((2, 3)))


class EfficientViT(nn.Module):
    """Liu et al., EfficientViT (2023): each head takes a part of the channels and adds the output of the one before."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, padding=1)
        part = width // heads
        self.qkv = nn.ModuleList(conv_bn(part, 2 * 4 + part) for _ in range(heads))
        self.around = nn.ModuleList(conv_bn(4, 4, 3, padding=1, groups=4) for _ in range(heads))
        self.out = conv_bn(width, width)
        self.head_norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        outs, feature = [], None
        for chunk, qkv, around in zip(x.chunk(len(self.qkv), 1), self.qkv, self.around, strict=True):
            feature = chunk if feature is None else feature + chunk
            query, key, value = qkv(feature).split((4, 4, chunk.shape[1]), 1)
            query, key, value = (part.flatten(2) for part in (around(query), key, value))
            attention = (query.transpose(1, 2) @ key * 0.5).softmax(-1)
            feature = (value @ attention.transpose(1, 2)).unflatten(2, (8, 8))
            outs.append(feature)
        x = x + self.out(functional.relu(torch.cat(outs, 1)))
        return self.head(self.head_norm(x.mean((2, 3))))


class Visformer(nn.Module):
    """Chen et al., Visformer (2021): a learned position embedding is added, then blocks with a BN before each part."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * blocks))
        self.qkv = nn.ModuleList(nn.Conv2d(width, 3 * width, 1, bias=False) for _ in range(blocks))
        self.project = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(blocks))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
            for _ in range(blocks)
        )
        self.last = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        for qkv, project, mlp, first, second in zip(
            self.qkv, self.project, self.mlp, self.norms[::2], self.norms[1::2], strict=True
        ):
            query, key, value = qkv(first(x)).reshape(x.shape[0], 3, 2, -1, 64).unbind(1)
            attention = (query.transpose(-2, -1) @ key * 0.5).softmax(-1)
            mixed = (value @ attention.transpose(-2, -1)).reshape(x.shape)
            x = x + project(mixed)
            x = x + mlp(second(x))
        return self.head(self.last(x).mean((2, 3)))


class Gate(nn.Module):
    """Hu et al., Squeeze-and-Excitation (2018), with a BN behind the gate: its scale passes the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.value = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        gate = torch.sigmoid(self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.last(self.norm(self.value(x) * gate))


class PreActivation(nn.Module):
    """He et al., Identity Mappings (2016): BN and ReLU before each conv; the sum goes on, and a last BN and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.last, self.flat = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head, self.narrow = nn.Linear(8, 5), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.convs[0](functional.relu(self.first(x)))
        x = x + self.convs[1](functional.relu(self.second(y)))
        return self.head(functional.relu(self.last(x)).mean((2, 3))), self.narrow(self.flat(x))


class DenseNet(nn.Module):
    """Huang et al., DenseNet (2017): a BN and ReLU of its own for every reader of the growing concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * count) for count in (1, 2))
        self.narrow = nn.ModuleList(conv_bn(4 * count, 8) for count in (1, 2))
        self.grow = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1, bias=False) for _ in range(2))
        self.transition, self.down = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [functional.relu(self.stem(x))]
        for norm, narrow, grow in zip(self.norms, self.narrow, self.grow, strict=True):
            parts.append(grow(functional.relu(narrow(functional.relu(norm(torch.cat(parts, 1)))))))
        x = functional.relu(self.transition(torch.cat(parts, 1)))
        return functional.avg_pool2d(self.down(x), 2)


class ShuffleNet(nn.Module):
    """Zhang et al., ShuffleNet (2018): grouped 1x1 convs with a channel shuffle between them; here a BN behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.middle = conv_bn(8, 8, 3, padding=1, groups=8)
        self.last = conv_bn(8, 8, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        y = self.first(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        y = self.last(self.middle(functional.relu(self.norm(y))))
        return functional.relu(torch.cat([functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)], 1))


class FrozenBatchNorm2d(nn.Module):
    """torchvision's: the parameters are buffers, and the affine is spelled out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), start))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            buffer.reshape(1, -1, 1, 1) for buffer in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


class Frozen(nn.Module):
    """A detector's backbone: convs with frozen BN, spelled out; no BatchNormalization in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(size, 8, 3, padding=1, bias=False) for size in (3, 8))
        self.norms = nn.ModuleList(FrozenBatchNorm2d(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return x


class LayerScale(nn.Module):
    """Touvron et al., CaiT (2021): each branch ends in a learned scale per channel, here after a conv and a linear."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, padding=1)
        self.conv = nn.Conv2d(width, width, 1)
        self.linear = nn.Linear(width, width)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width, 1, 1), 0.1)) for _ in range(1))
        self.token_scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.scales[0] * self.conv(x)
        tokens = x.flatten(2).transpose(1, 2)
        return tokens + self.linear(functional.gelu(tokens)) * self.token_scale


class Unfused(nn.Module):
    """BN as some converters write it: (x - mean) / sqrt(var + eps) * gamma + beta, all on constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = FrozenBatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        mean, var, gamma, beta = (
            buffer.reshape(-1, 1, 1) for buffer in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        y = (self.conv(x) - mean) / torch.sqrt(var + norm.eps) * gamma + beta
        return self.last(functional.relu(y))


NETWORKS = (
    MovingNetwork(MixNet),
    MovingNetwork(NextViT),
    MovingNetwork(EfficientViT),
    MovingNetwork(Visformer),
    MovingNetwork(Gate),
    MovingNetwork(PreActivation, ("other_consumers",) * 2),
    MovingNetwork(DenseNet, ("other_consumers",) * 3),
    MovingNetwork(ShuffleNet),
    MovingNetwork(Frozen),
    MovingNetwork(LayerScale),
    MovingNetwork(Unfused),
)
