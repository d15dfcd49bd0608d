"""What the tests name as package.module:factory."""

import os
import sys

import torch
from torch import nn


class Net(nn.Module):
    """Convolution, BN and a head; returns a dict, as transformers do."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(width)
        with torch.no_grad():
            for tensor in (*self.parameters(), self.bn.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            self.bn.running_var.copy_(torch.rand(width, generator=generator) + 0.5)

    def forward(self, image, scale=None):
        pooled = self.relu(self.bn(self.conv(image))).mean((2, 3))
        if scale is not None:
            pooled = pooled * scale[:, None]
        return {"logits": self.head(pooled), "pooled": pooled}


class Tokens(nn.Module):
    """Takes integers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(100, 6)
        self.linear = nn.Linear(6, 6)
        self.bn = nn.BatchNorm1d(6)
        self.bn.running_var.data.uniform_(0.5, 2)
        self.bn.running_mean.data.normal_()

    def forward(self, ids):
        return self.bn(self.linear(self.embedding(ids)).transpose(1, 2))


class Kept(nn.Module):
    """A BN behind a Relu and before nothing: it stays."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.bn = nn.BatchNorm2d(4)
        self.bn.running_mean.data.normal_()

    def forward(self, image):
        return self.bn(self.relu(self.conv(image)))


class TwoPairs(nn.Module):
    """Two pairs, to skip one of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        for pair in (self.first, self.second):
            pair[1].running_mean.data.normal_()

    def forward(self, image):
        return self.second(torch.relu(self.first(image)))


class Branching(nn.Module):
    """What torch.export refuses as a whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.stem[1].running_mean.data.normal_()

    def forward(self, image):
        value = self.stem(image)
        return value * 2 if value.sum().item() > 0 else value


def training():
    """A module in training mode."""
    return Net().train()


def noisy():
    """A factory that prints."""
    print("building the model")
    return Net()


def failing():
    raise RuntimeError("the weights are on another planet")


def leaving():
    sys.exit(3)


def a_list():
    return [Net()]


def wrapped():
    return nn.DataParallel(Net())


instance = Net()
number = 7


class Texts(Net):
    """Returns more than tensors."""

    def forward(self, image):
        return {**super().forward(image), "note": "hi", "width": 8}


def half():
    return Net().half()


def brain():
    return Net().bfloat16()


def shouting():
    """Prints past Python."""
    os.write(1, b"from below\n")
    return Net()


class Interrupted(Net):
    def forward(self, image):
        raise KeyboardInterrupt


class Grid(Net):
    """Keeps a grid for images of one size, as detectors do, and reads numbers of tensors to make it."""

    def __init__(self):
        super().__init__()
        self.stride, self.size, self.grid = torch.tensor(4.0), None, None

    def forward(self, image):
        if self.size != image.shape:
            self.size = image.shape
            self.grid = torch.arange(5) * self.stride if self.stride > 3 else None
        return self.head(self.relu(self.bn(self.conv(image))).mean((2, 3))) + self.grid


class Detecting(Net):
    """Takes a list of dicts."""

    def forward(self, images):
        return torch.stack([super(Detecting, self).forward(given["image"][None])["logits"] for given in images])
