"""Small PyTorch networks with the parameters of a trained one, their folds written out in float64, and faults in them.

The folds are made by hand, pair by pair, so that they say nothing about what `bnfold.fold` does.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Network:
    """A network, what it is called with, and which batch norm follows which layer.

    Attributes:
        module: In evaluation mode.
        inputs: Positional inputs.
        pairs: Paths of a layer and of the batch norm behind it.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    pairs: tuple[tuple[str, str], ...]


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return torch.relu_(out)


class Residual(nn.Module):
    """A stem, two blocks, a classifier; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.blocks(torch.relu(self.norm(self.stem(image))))
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class Separable(nn.Module):
    """Depthwise and pointwise convolutions with SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.SiLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12, eps=1e-3),
            nn.SiLU(inplace=True),
            nn.Conv2d(12, 20, 1, bias=False),
            nn.BatchNorm2d(20),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Decoder(nn.Module):
    """Transposed convolutions with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=2)
        self.bn1 = nn.BatchNorm2d(16)
        self.up2 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.up2(torch.relu(self.bn1(self.up1(x)))))


class Perceptron(nn.Module):
    """Linear layers and BatchNorm1d; the second pair runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.bn1 = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, 32, bias=False)
        self.bn2 = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn1(self.first(x)))
        again = torch.relu(self.bn2(self.second(x)))
        return x, self.bn2(self.second(again))


class Sequence(nn.Module):
    """Conv1d over time, and a pooling between a convolution and its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(8, 24, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(24)
        self.conv2 = nn.Conv1d(24, 24, 3, bias=False)
        self.pool = nn.AvgPool1d(2)
        self.bn2 = nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.pool(self.conv2(torch.tanh(self.bn1(self.conv1(x))))))


def network(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Network:
    """One of `NAMES`, the same at every call."""
    build, shape, pairs = _ALL[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build().eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.3)
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.3, 2)
        return Network(module.to(dtype), (torch.randn(shape, dtype=dtype),), pairs)


Fault = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def folded(given: Network, fault: Fault | None = None, at: int = 0) -> nn.Module:
    """The fold, from its definition in float64; rounded once.

    Args:
        given: The network.
        fault: What is done to the float64 parameters of one batch norm, or None.
        at: Which pair it is.
    """
    module = copy.deepcopy(given.module)
    for index, (layer_path, norm_path) in enumerate(given.pairs):
        layer, norm = module.get_submodule(layer_path), module.get_submodule(norm_path)
        values = parameters(norm)
        if fault is not None and index == at:
            values = fault(values)
        fold_into(layer, values)
        parent, _, leaf = norm_path.rpartition(".")
        setattr(module.get_submodule(parent), leaf, nn.Identity())
    return module


def parameters(norm: nn.Module) -> dict[str, Tensor]:
    """Those of a batch norm, in float64."""
    tensors = {"gamma": norm.weight, "beta": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    values = {name: value.detach().double() for name, value in tensors.items()}
    return {**values, "epsilon": torch.tensor(norm.eps, dtype=torch.float64)}


def change_batch_norm(norm: nn.Module, fault: Fault) -> None:
    """Plants a fault in the parameters of a batch norm itself."""
    values = fault(parameters(norm))
    with torch.no_grad():
        norm.weight.copy_(values["gamma"])
        norm.bias.copy_(values["beta"])
        norm.running_mean.copy_(values["mean"])
        norm.running_var.copy_(values["var"])
    norm.eps = float(values["epsilon"])


def fold_into(layer: nn.Module, values: dict[str, Tensor]) -> None:
    """W·scale and scale·(b − mean) + beta."""
    scale = values["gamma"] / torch.sqrt(values["var"] + values["epsilon"])
    weight = layer.weight.detach().double()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])
        by_group = by_group * scale.reshape(layer.groups, 1, -1, 1, 1)
        weight = by_group.reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(rounded(weight, dtype))
    layer.bias = nn.Parameter(rounded(scale * (bias - values["mean"]) + values["beta"], dtype))


def rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded (to the narrow types twice, which is as good here)."""
    return exact.to(dtype)


def epsilon_times_ten(values):
    return {**values, "epsilon": values["epsilon"] * 10}


def beta_dropped(values):
    beta = values["beta"].clone()
    beta[beta.abs().argmax()] = 0
    return {**values, "beta": beta}


def gammas_swapped(values):
    gamma = values["gamma"].clone()
    gamma[[0, 1]] = gamma[[1, 0]]
    return {**values, "gamma": gamma}


def gamma_in_float16(values):
    return {**values, "gamma": values["gamma"].half().double()}


def folded_twice(values):
    """scale · (scale · x + shift) + shift."""
    scale = values["gamma"] / torch.sqrt(values["var"] + values["epsilon"])
    shift = values["beta"] - scale * values["mean"]
    return {
        **values,
        "gamma": values["gamma"] * scale,
        "beta": scale * shift + shift + scale * scale * values["mean"],
    }


FAULTS: dict[str, Fault] = {
    "eps × 10": epsilon_times_ten,
    "one beta dropped": beta_dropped,
    "two gammas swapped": gammas_swapped,
    "gamma in fp16": gamma_in_float16,
    "folded twice": folded_twice,
}


def plant_in_bias(module: nn.Module, path: str) -> None:
    """The largest bias of a layer, off by 0.1 %."""
    bias = module.get_submodule(path).bias
    with torch.no_grad():
        bias[bias.abs().argmax()] *= 1.001


def plant_in_weight(module: nn.Module, path: str) -> None:
    """The weight of a layer, rounded to fp16 on the way."""
    layer = module.get_submodule(path)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.half().to(layer.weight.dtype))


_BLOCKS = [(f"blocks.{block}.conv{i}", f"blocks.{block}.bn{i}") for block in (0, 1) for i in (1, 2)]
_ALL = {
    "residual": (Residual, (2, 3, 24, 24), (("stem", "norm"), *_BLOCKS)),
    "separable": (Separable, (2, 3, 16, 16), tuple((f"layers.{i}", f"layers.{i + 1}") for i in (0, 3, 6))),
    "decoder": (Decoder, (2, 16, 8, 8), (("up1", "bn1"), ("up2", "bn2"))),
    "perceptron": (Perceptron, (6, 24), (("first", "bn1"), ("second", "bn2"))),
    "sequence": (Sequence, (2, 8, 32), (("conv1", "bn1"), ("conv2", "bn2"))),
}
NAMES = tuple(_ALL)
