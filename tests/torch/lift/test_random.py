"""Random networks full of views and in-place operators: whatever is planned for them, nothing changes outside."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_lifting import double, fold, no_shift, trained

STEPS = 14
CHANNELS = 4


class Random(nn.Module):
    """Each step takes values that earlier ones made, all of shape (2, 4, 3, 3), and makes another."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.seed = seed
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(STEPS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(STEPS))
        self.register_buffer("scale", torch.linspace(0.5, 2, CHANNELS).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        draw = random.Random(self.seed)
        values = [torch.tanh(x), torch.tanh(x - 1)]
        for step in range(STEPS):
            recent = values[-4:]
            y, z = draw.choice(recent), draw.choice(recent)
            conv, norm = self.convs[step], self.norms[step]
            match draw.randrange(22):
                case 0 | 1 | 2:
                    new = conv(y)
                case 3 | 4 | 5 | 6:
                    new = norm(y)
                case 7 | 8 | 9:
                    new = norm(conv(y))
                case 10:
                    new = functional.relu_(y)
                case 11:
                    new = y.add_(torch.tanh(z))
                case 12:
                    new = y.mul_(self.scale)
                case 13:
                    new = y.view(2, CHANNELS, 9).view(2, CHANNELS, 3, 3)
                case 14:
                    new = y[:, :2].repeat(1, 2, 1, 1)
                case 15:
                    first, second = y.chunk(2, 1)
                    new = torch.cat([second, first.clone()], 1)
                case 16:
                    new = y + z
                case 17:
                    new = functional.dropout(y, training=False)
                case 18:
                    y[:, 1:3].relu_()
                    new = y.flip(3)
                case 19:
                    new = y.mul_(torch.sigmoid(z[:, :1]))
                case 20:
                    new = y.sub_(torch.tanh(z[:, :, :1]))
                case _:
                    new = torch.sigmoid(y)
            values.append(new)
        return tuple(draw.sample(values[-6:], 2)) if draw.random() < 0.3 else (conv(values[-1]),)


def check(seed: int) -> int:
    module = trained(Random(seed))
    for norm in module.norms[::2]:
        no_shift(norm)
    return fold(module, double(2, CHANNELS, 3, 3)).batch_norms_folded


@pytest.mark.parametrize("seed", range(6))
def test_nothing_changes_outside(seed):
    check(seed)


@pytest.mark.slow
def test_nothing_changes_outside_in_many_networks():
    folded = sum(check(seed) for seed in range(100, 140))

    assert folded > 40
