"""Random modules, written as people write them: shared and nested children, tied weights, hooks, inquisitive code.

A module is a list of steps with plain numbers, so that a copy of it is a whole module of its own.
"""

import random
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch_modules import trained

CHANNELS = (2, 4, 6)
Step = tuple[str, tuple[int, ...]]


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision.ops."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        rv, rm = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


class ActivatedBatchNorm2d(nn.BatchNorm2d):
    """With an activation, as in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class MoreBatchNorm2d(nn.BatchNorm2d):
    """Does more than normalise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x


class StandardisedConv2d(nn.Conv2d):
    """Normalises its weight at each call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class SameConv2d(nn.Conv2d):
    """Pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Narrow(nn.Module):
    """A convolution in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(x.float(), conv.weight.float(), conv.bias.float(), padding=1)


NORMS = (*(12 * [nn.BatchNorm2d]), FrozenBatchNorm2d, ActivatedBatchNorm2d, MoreBatchNorm2d, nn.SyncBatchNorm)
CONVOLUTIONS = (*(6 * ["call"]), "without_grad", "checkpointed", "as_function")
CALLS = (*(16 * ["call"]), "by_keyword", "by_keyword", "in_region", "in_region", "directly", "if_positive")
STEPS = (
    *"norm sum sum cat split flip gate pool linear inner inner inner_twice move read change change".split() * 3,
    "narrow_sum",
    "branch",
    "pad",
    "scale",
    "look",
    "bias",
)

READERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda value, like: value + torch.zeros_like(like),
    lambda value, like: value * torch.ones_like(like),
    lambda value, like: value * torch.full_like(like, 0.5),
    lambda value, like: value + like.new_zeros(like.shape),
    lambda value, like: value - value.new_ones(like.size()),
    lambda value, like: value.expand_as(like),
    lambda value, like: value.flatten(1).view_as(like),
    lambda value, like: value.reshape(like.size(0), -1, like.shape[2], like.shape[3]),
    lambda value, like: value / like.size(1),
    lambda value, like: value.to(like.dtype),
    lambda value, like: value.type_as(like),
    lambda value, like: F.interpolate(value, size=like.shape[2:]),
    lambda value, like: F.adaptive_avg_pool2d(value, like.shape[2:]),
)
"""What of a value of the same shape reads its sizes or its element type alone."""

CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda value: value.half().to(value.dtype),
    lambda value: value.float().to(value.dtype),
    lambda value: value.float().double(),
    lambda value: value.bfloat16() + value,
    lambda value: value + value.float(),
    lambda value: value.half() * value,
    lambda value: value.float().mean((2, 3), keepdim=True, dtype=torch.float64) + value,
    lambda value: value.mean((2, 3), keepdim=True, dtype=torch.float32) + value,
    lambda value: value.float().sum((2, 3), keepdim=True, dtype=torch.float64) + value,
    lambda value: value * (value > 0),
    lambda value: value + (value.abs() > 1e9).float(),
    lambda value: torch.where(value > 0, value, 0.25),
    lambda value: torch.add(value, value.float(), alpha=2),
)
"""Other element types on the way: float64 comes out of all of them."""


class RandomModule(nn.Module):
    """A module drawn from a seed; it takes images of 4 channels, and its output has 4 channels among others.

    Args:
        seed: The seed.
        depth: How many levels of such modules may be inside.
    """

    def __init__(self, seed: int, depth: int = 1) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.by_name = nn.ModuleDict()
        self.steps: list[Step] = []
        self.kept: list[nn.Module] = []
        self.output = draw.choice(("tensor", "tuple", "dict"))
        self._channels = [4]
        for _ in range(draw.randint(4, 10)):
            self._add_block(draw) if draw.random() < 0.5 else self._add_step(draw, depth)
        self._tie(draw)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor | tuple[Tensor, ...] | Mapping[str, object]:
        values = [x]
        for name, arguments in self.steps:
            made = getattr(self, f"_{name}")(values, *arguments)
            values += made if isinstance(made, list | tuple) else [made]
        last = values[-1] * scale
        if self.output == "tensor":
            return last
        return (
            (last, values[len(values) // 2]) if self.output == "tuple" else {"last": last, "more": [values[-2], None]}
        )

    def _new(self, layer: nn.Module, draw: random.Random) -> int:
        """The place of a layer, perhaps of one like it that is there already."""
        twins = [place for place, other in enumerate(self.layers) if repr(other) == repr(layer)]
        if twins and draw.random() < 0.25:
            return draw.choice(twins)
        self.layers.append(layer)
        if draw.random() < 0.2:
            self.by_name[f"alias{len(self.layers)}"] = layer
        return len(self.layers) - 1

    def _conv(self, before: int, after: int, draw: random.Random) -> nn.Module:
        bias = draw.random() < 0.4
        kind = draw.choice((*(6 * [nn.Conv2d]), StandardisedConv2d, SameConv2d, SameConv2d))
        padding = 0 if kind is SameConv2d else 1
        groups = draw.choice((1, 2))
        layer = kind(before, after, 3, padding=padding, bias=bias, groups=1 if kind is SameConv2d else groups)
        match draw.random():
            case value if value < 0.1:
                return parametrizations.weight_norm(layer)
            case value if value < 0.15:
                return old_weight_norm(layer) if kind is nn.Conv2d else layer
            case value if value < 0.18:
                layer.register_forward_hook(seen)
        return layer

    def _at(self, draw: random.Random, channels: int | None = None) -> int:
        fitting = [place for place, size in enumerate(self._channels) if channels in (None, size)]
        return fitting[-1] if draw.random() < 0.8 else draw.choice(fitting)

    def _record(self, name: str, arguments: tuple[int, ...], *channels: int) -> None:
        self.steps.append((name, arguments))
        self._channels += channels

    def _add_block(self, draw: random.Random) -> None:
        at = self._at(draw)
        after = draw.choice(CHANNELS)
        conv = self._new(self._conv(self._channels[at], after, draw), draw)
        self._record(draw.choice(CONVOLUTIONS), (at, conv), after)
        norm = self._new(draw.choice(NORMS)(after), draw)
        if draw.random() < 0.1:
            self.kept.append(self.layers[norm])
            self._record("from_list", (len(self._channels) - 1, len(self.kept) - 1), after)
        else:
            self._record(draw.choice(CALLS), (len(self._channels) - 1, norm), after)
        if draw.random() < 0.6:
            self._record(draw.choice(("relu", "relu_", "sigmoid")), (len(self._channels) - 1,), after)

    def _add_step(self, draw: random.Random, depth: int) -> None:
        at = self._at(draw)
        channels = self._channels[at]
        other = self._at(draw, channels)
        match draw.choice(STEPS):
            case "norm":
                self._record("call", (at, self._new(draw.choice(NORMS)(channels), draw)), channels)
            case "sum":
                self._record(draw.choice(("add", "add", "subtract", "add_")), (at, other), channels)
            case "cat" if channels * 2 in CHANNELS:
                self._record("cat", (at, other), channels * 2)
            case "split" if channels == 4:
                self._record("split", (at,), 2, 2)
            case "flip" | "gate" | "pool" | "move" as name:
                self._record(name, (at,), channels)
            case "read":
                self._record("read", (at, other, draw.randrange(len(READERS))), channels)
            case "change":
                self._record("change", (at, draw.randrange(len(CHANGES))), channels)
            case "branch":
                self._record("branch", (at, self._new(nn.BatchNorm2d(channels), draw)), channels)
            case "pad":
                self._record("pad", (at, self._new(nn.Conv2d(channels, channels, 3), draw)), channels)
            case "narrow_sum":
                self._record("narrow_sum", (at, self._new(Narrow(channels), draw), other), channels)
            case "linear":
                after = draw.choice(CHANNELS)
                layer = self._new(nn.Linear(channels, after, bias=draw.random() < 0.5), draw)
                self._record("linear", (at, layer), after)
            case "scale" | "look" | "bias" as name if len(self.layers):
                self._record(name, (at, draw.randrange(len(self.layers))), channels)
            case "inner" | "inner_twice" as name if depth and channels == 4:
                inner = RandomModule(draw.randrange(10**6), depth - 1)
                if inner.output == "tensor" and inner._channels[-1] == 4:
                    self._record(name, (at, self._new(inner, draw)), 4)

    def _tie(self, draw: random.Random) -> None:
        layers = [layer for layer in self.layers if type(layer) is nn.Conv2d and "weight" in layer._parameters]
        if len(layers) > 1 and draw.random() < 0.2:
            one, two = draw.sample(layers, 2)
            if one.weight.shape == two.weight.shape:
                one.weight = two.weight

    # The steps.

    def _call(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.layers[layer](values[at])

    def _without_grad(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        with torch.no_grad():
            return self.layers[layer](values[at])

    def _checkpointed(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return checkpoint(self.layers[layer], values[at], use_reentrant=False)

    def _as_function(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        conv = self.layers[layer]
        return (
            conv(values[at])
            if conv.padding == (0, 0)
            else F.conv2d(values[at], conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        )

    def _from_list(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.kept[layer](values[at])

    def _by_keyword(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        norm = self.layers[layer]
        return norm(input=values[at]) if type(norm) is nn.BatchNorm2d else norm(values[at])

    def _in_region(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layers[layer](values[at])

    def _directly(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.layers[layer].forward(values[at])

    def _if_positive(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        x = values[at] if float(values[at].sum()) > -1e9 else values[at] + 1
        return self.layers[layer](x)

    def _linear(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.layers[layer](values[at].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _inner(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.layers[layer](values[at])

    def _inner_twice(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        small = self.layers[layer](values[at][:, :, :-1], scale=0.5)
        return F.pad(small, (0, 0, 0, 1)) + self.layers[layer](values[at])

    def _scale(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        parameters = [*self.layers[layer].parameters()]
        return values[at] * parameters[0].mean() if parameters else values[at]

    def _look(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        weight = getattr(self.layers[layer], "weight", None)
        return values[at].to(weight.dtype) if isinstance(weight, Tensor) else values[at] * 0.5

    def _bias(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return values[at] * 2 if getattr(self.layers[layer], "bias", None) is None else values[at]

    def _relu(self, values: list[Tensor], at: int) -> Tensor:
        return values[at].relu()

    def _relu_(self, values: list[Tensor], at: int) -> Tensor:
        return F.relu(values[at], inplace=True)

    def _sigmoid(self, values: list[Tensor], at: int) -> Tensor:
        return values[at].sigmoid()

    def _add(self, values: list[Tensor], at: int, other: int) -> Tensor:
        return values[at] + values[other]

    def _add_(self, values: list[Tensor], at: int, other: int) -> Tensor:
        return values[at].add_(values[other]) if at else values[at] + values[other]

    def _subtract(self, values: list[Tensor], at: int, other: int) -> Tensor:
        return values[at] - values[other]

    def _cat(self, values: list[Tensor], at: int, other: int) -> Tensor:
        return torch.cat([values[at], values[other]], dim=1)

    def _split(self, values: list[Tensor], at: int) -> tuple[Tensor, ...]:
        return values[at].chunk(2, dim=1)

    def _read(self, values: list[Tensor], at: int, other: int, reader: int) -> Tensor:
        return READERS[reader](values[at], values[other])

    def _change(self, values: list[Tensor], at: int, change: int) -> Tensor:
        return CHANGES[change](values[at])

    def _narrow_sum(self, values: list[Tensor], at: int, layer: int, other: int) -> Tensor:
        return self.layers[layer](values[at]) + values[other]

    def _branch(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        return self.layers[layer](values[at]) if values[at].size(0) > 1 else values[at]

    def _pad(self, values: list[Tensor], at: int, layer: int) -> Tensor:
        height, width = values[at].shape[2:]
        return F.interpolate(self.layers[layer](F.pad(values[at], (0, -width % 4, 0, -height % 5))), (height, width))

    def _flip(self, values: list[Tensor], at: int) -> Tensor:
        return values[at].flip(1)

    def _move(self, values: list[Tensor], at: int) -> Tensor:
        return values[at].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    def _gate(self, values: list[Tensor], at: int) -> Tensor:
        return values[at] * values[at].mean((2, 3), keepdim=True).sigmoid()

    def _pool(self, values: list[Tensor], at: int) -> Tensor:
        return F.max_pool2d(values[at], 3, 1, 1)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(layer)


def seen(module: nn.Module, args: object, output: object) -> None:
    """A hook that does nothing with what it sees."""


def module_of_seed(seed: int) -> nn.Module:
    """The module of a seed, in float64 and in inference mode."""
    return trained(RandomModule(seed), seed).requires_grad_(False)
