"""Random networks of everything that torch.export keeps: shared layers, views, in-place operators, several outputs."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch_programs import randomised

SIZE = 4
CHANNELS = (2, 4, 6)
MOST_CHANNELS = 12

Step = Callable[[list[Tensor]], list[Tensor]]

PARTS: tuple[Callable[[Tensor], tuple[Tensor, Tensor]], ...] = (
    lambda value: value.chunk(2, 1),
    lambda value: value.chunk(2, 1),
    lambda value: (value[:, ::2], value[:, 1::2]),
    lambda value: (value[:, : value.shape[1] // 2], value.flip(1)[:, : value.shape[1] // 2]),
)
JOINS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float], ...] = (
    (lambda first, second: torch.cat([second, first], 1), 2),
    (lambda first, second: torch.cat([second, first], 1), 2),
    (lambda first, second: torch.cat([first, second, first], 1), 3),
    (lambda first, second: torch.stack([second, first], 2).flatten(1, 2), 2),
    (lambda first, second: first + second, 1),
    (lambda first, second: first - second.roll(1, 1), 1),
    (lambda first, second: first * second.sigmoid(), 1),
    (lambda first, _: first, 1),
)
"""How two parts are put together, and how many times the channels of one of them come out."""


class RandomNet(nn.Module):
    """A network drawn from a seed; it takes one image of shape (N, 4, 4, 4).

    Every step reads some of the values computed so far and adds new ones.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self._steps: list[Step] = []
        self._channels = [4]
        while len(self._steps) < self._random.randint(4, 14):
            self._add_step()
        count = self._random.choice((1, 1, 1, 2))
        self._outputs = [len(self._channels) - 1, *self._random.sample(range(len(self._channels)), count - 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self._steps:
            values += step(values)
        return tuple(values[output] for output in self._outputs)

    def _add_step(self) -> None:
        kinds = {
            self._block: 5,
            self._branches: 1,
            self._convolution: 4,
            self._batch_norm: 5,
            self._activation: 4,
            self._in_place: 2,
            self._sum: 3,
            self._product: 1,
            self._join: 1,
            self._split: 2,
            self._rejoin: 3,
            self._fan: 1,
            self._rearrangement: 2,
            self._pool: 1,
            self._linear: 1,
            self._affine: 1,
            self._gate: 1,
            self._shape_reader: 2,
            self._type_change: 2,
        }
        draw = self._random.choices(list(kinds), list(kinds.values()))[0]
        draw()

    def _value(self, channels: int | None = None) -> int:
        """A value, more often one of the last."""
        fitting = [index for index, size in enumerate(self._channels) if channels in (None, size)]
        return fitting[-1] if self._random.random() < 0.8 else self._random.choice(fitting)

    def _record(self, step: Step, *channels: int) -> None:
        self._steps.append(step)
        self._channels += channels

    def _layer(self, layer: nn.Module) -> nn.Module:
        """The layer, or one of the same kind that is there already and fits."""
        twins = [other for other in self.layers if repr(other) == repr(layer)]
        if twins and self._random.random() < 0.3:
            return self._random.choice(twins)
        self.layers.append(layer)
        return layer

    def _block(self) -> None:
        """What networks are made of: a convolution, a BN, and perhaps a ReLU, each reading what is before it."""
        at = self._value()
        before, after = self._channels[at], self._random.choice(CHANNELS)
        conv = self._layer(nn.Conv2d(before, after, 3, 1, 1, bias=self._random.random() < 0.3))
        norm = self._layer(nn.BatchNorm2d(after))
        inplace = self._random.random() < 0.5
        parts: list[Callable[[Tensor], Tensor]] = [conv, norm, nn.ReLU(inplace)]
        kept = parts[: self._random.choice((2, 3))]
        self._record(lambda values: [nn.Sequential(*kept)(values[at])], after)

    def _branches(self) -> None:
        """A block of RepVGG in its training form."""
        at = self._value()
        channels = self._channels[at]
        wide, point = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.Conv2d(channels, channels, 1, bias=False)
        norms = [nn.BatchNorm2d(channels) for _ in range(3)]
        self.layers += [wide, point, *norms]
        self._record(
            lambda values: [norms[0](wide(values[at])) + norms[1](point(values[at])) + norms[2](values[at])], channels
        )

    def _convolution(self) -> None:
        at = self._value()
        before, after = self._channels[at], self._random.choice(CHANNELS)
        groups = self._random.choice([groups for groups in (1, 2, before) if before % groups == after % groups == 0])
        size, bias = self._random.choice(((1, 0), (3, 1), (3, "same"))), self._random.random() < 0.5
        if self._random.random() < 0.25 and not isinstance(size[1], str):
            layer = self._layer(nn.ConvTranspose2d(before, after, size[0], 1, size[1], groups=groups, bias=bias))
        else:
            layer = self._layer(nn.Conv2d(before, after, size[0], 1, size[1], groups=groups, bias=bias))
        self._record(lambda values: [layer(values[at])], after)

    def _batch_norm(self) -> None:
        at = self._value()
        channels = self._channels[at]
        layer = self._layer(nn.BatchNorm2d(channels, affine=self._random.random() < 0.9))
        self._record(lambda values: [layer(values[at])], channels)

    def _activation(self) -> None:
        at = self._value()
        operator = self._random.choice((F.relu, F.relu, F.leaky_relu, torch.sigmoid, torch.tanh, F.hardswish))
        self._record(lambda values: [operator(values[at])], self._channels[at])

    def _in_place(self) -> None:
        at = self._value()
        if self._channels[at] == 4 and at == 0:
            return
        channels = self._channels[at]
        other = self._value(channels)
        operators: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
            lambda value, _: F.relu(value, inplace=True),
            lambda value, _: F.relu(value, inplace=True),
            lambda value, more: value.add_(_apart(more, value)),
            lambda value, _: value.mul_(0.5),
            lambda value, _: F.dropout(value, 0.5, training=False, inplace=True),
        )
        operator = self._random.choice(operators)
        self._record(lambda values: [operator(values[at], values[other])], channels)

    def _sum(self) -> None:
        at = self._value()
        other = self._value(self._channels[at])
        operator = self._random.choice((torch.add, torch.add, torch.sub))
        self._record(lambda values: [operator(values[at], values[other])], self._channels[at])

    def _product(self) -> None:
        at = self._value()
        other = self._value(self._channels[at])
        self._record(lambda values: [values[at] * torch.sigmoid(values[other])], self._channels[at])

    def _join(self) -> None:
        parts = [self._value() for _ in range(self._random.choice((2, 2, 3)))]
        channels = sum(self._channels[part] for part in parts)
        if channels <= MOST_CHANNELS:
            self._record(lambda values: [torch.cat([values[part] for part in parts], dim=1)], channels)

    def _split(self) -> None:
        at = self._value()
        half = self._channels[at] // 2
        operators: tuple[Callable[[Tensor], list[Tensor]], ...] = (
            lambda value: list(value.chunk(2, dim=1)),
            lambda value: list(value.split(half, dim=1)),
            lambda value: [value[:, :half], value[:, half:]],
            lambda value: [value.narrow(1, 0, half), value.flip(1)[:, :half]],
        )
        operator = self._random.choice(operators)
        if self._channels[at] % 2 == 0:
            self._record(lambda values: operator(values[at]), half, half)

    def _rejoin(self) -> None:
        """The parts of a value, perhaps each with something on its way, joined again in another order."""
        at = self._value()
        channels = self._channels[at]
        if channels % 2 or 2 * channels > MOST_CHANNELS:
            return
        half = channels // 2
        parts = self._random.choice(PARTS)
        way = self._random.choice((nn.Identity(), nn.Identity(), nn.BatchNorm2d(half), nn.Conv2d(half, half, 1)))
        layer = self._layer(way)
        join, factor = self._random.choice(JOINS)

        def step(values: list[Tensor]) -> list[Tensor]:
            first, second = parts(values[at])
            return [join(layer(first), second)]

        self._record(step, int(half * factor))

    def _fan(self) -> None:
        """One BN before several maps, whose outputs meet again."""
        at = self._value()
        channels = self._channels[at]
        norm = self._layer(nn.BatchNorm2d(channels))
        convs = [self._layer(nn.Conv2d(channels, 4, 1, bias=self._random.random() < 0.5)) for _ in range(2)]
        cut = self._random.random() < 0.5

        def step(values: list[Tensor]) -> list[Tensor]:
            normed = norm(values[at])
            first, second = convs[0](normed), convs[1](normed.flip(3) if cut else normed)
            return [torch.cat([second, first], 1), first - second]

        self._record(step, 8, 4)

    def _rearrangement(self) -> None:
        at = self._value()
        channels = self._channels[at]
        operators: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda value: value.flatten(2).unflatten(2, (SIZE, SIZE)),
            lambda value: value.transpose(2, 3),
            lambda value: value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
            lambda value: value.contiguous().view(value.shape[0], channels, -1).view(value.shape),
            lambda value: F.pad(value, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
            lambda value: F.channel_shuffle(value, 2) if channels % 2 == 0 else value,
            lambda value: value.detach(),
            lambda value: value.clone(),
        )
        operator = self._random.choice(operators)
        self._record(lambda values: [operator(values[at])], channels)

    def _pool(self) -> None:
        at = self._value()
        operators: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda value: F.max_pool2d(value, 3, 1, 1),
            lambda value: F.avg_pool2d(value, 3, 1, 1),
            lambda value: F.avg_pool2d(value, 3, 1, 1, count_include_pad=False),
            lambda value: F.interpolate(value, scale_factor=2)[:, :, ::2, ::2],
        )
        operator = self._random.choice(operators)
        self._record(lambda values: [operator(values[at])], self._channels[at])

    def _linear(self) -> None:
        at = self._value()
        after = self._random.choice(CHANNELS)
        layer = self._layer(nn.Linear(self._channels[at], after, bias=self._random.random() < 0.5))
        self._record(lambda values: [layer(values[at].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)], after)

    def _affine(self) -> None:
        at = self._value()
        channels = self._channels[at]
        layer = self._layer(ChannelAffine(channels))
        self._record(lambda values: [layer(values[at])], channels)

    def _gate(self) -> None:
        at = self._value()
        other = self._value(self._channels[at])
        self._record(
            lambda values: [values[at] * values[other].mean((2, 3), keepdim=True).sigmoid()], self._channels[at]
        )

    def _shape_reader(self) -> None:
        """What reads of another value its sizes or its element type alone."""
        at = self._value()
        channels = self._channels[at]
        other = self._value(channels)
        operators: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
            lambda value, like: value + torch.zeros_like(like),
            lambda value, like: value * torch.full_like(like, 0.5),
            lambda value, like: value * torch.ones(like.shape[1], 1, 1, dtype=like.dtype),
            lambda value, like: value / like.shape[1],
            lambda value, like: value.flatten(1).reshape(like.shape),
            lambda value, like: value.expand_as(like),
            lambda value, like: value.to(like.dtype) - like.new_zeros(like.shape),
            lambda value, like: value.reshape(like.size(0), -1, like.size(2), like.size(3)),
            lambda value, like: value.type_as(like) * torch.ones_like(like),
        )
        operator = self._random.choice(operators)
        self._record(lambda values: [operator(values[at], values[other])], channels)

    def _type_change(self) -> None:
        """Other element types on the way, implicit ones among them; float64 comes out."""
        at = self._value()
        narrow = torch.randn(self._channels[at], self._channels[at], 3, 3)
        operators: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda value: value * (value > 0).to(value.dtype),
            lambda value: value + (value.abs() > 1e9).float(),
            lambda value: torch.where(value > 0, value, 0.25 * value),
            lambda value: value.mean((2, 3), keepdim=True, dtype=torch.float64) + value,
            lambda value: value.mean((2, 3), keepdim=True, dtype=torch.float32) + value,
            lambda value: value.half().to(value.dtype),
            lambda value: value.float().double(),
            lambda value: value + value.float(),
            lambda value: value.bfloat16() * value,
            lambda value: F.conv2d(value.float(), narrow, padding=1) + value,
            lambda value: F.conv2d(value.float(), narrow, padding=1).double(),
        )
        operator = self._random.choice(operators)
        self._record(lambda values: [operator(values[at])], self._channels[at])


class ChannelAffine(nn.Module):
    """A multiplication and an addition for each channel, as LayerScale and FrozenBatchNorm2d have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        return str(len(self.scale))


def _apart(value: Tensor, changed: Tensor) -> Tensor:
    """A value to be read while another one changes in place: torch refuses another view of the same memory."""
    return value.clone() if value is not changed and torch._C._is_alias_of(value, changed) else value


def of_seed(seed: int) -> nn.Module:
    """The network of a seed, in float64 and in inference mode."""
    # Autograd forbids some changes in place.
    return randomised(RandomNet(seed), seed).requires_grad_(False)
