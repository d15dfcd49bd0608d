"""Modules that are taken out of parts of lists, in models with one submodule in two places."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch_modules import fold, folded_names, images, trained

from bnfold.torch.capture.module_paths import real_path

ACT = nn.ReLU()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), ACT

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self, blocks: nn.Sequential | nn.ModuleList, take: Callable[[nn.Module], list[nn.Module]]) -> None:
        super().__init__()
        self.model, self.take = blocks, take

    def forward(self, x: Tensor) -> Tensor:
        for block in self.take(self.model):
            x = block(x)
        return x


TAKEN = {
    "but the last": (lambda blocks: blocks[:-1], ["0", "1", "2"]),
    "but the first": (lambda blocks: blocks[1:], ["1", "2", "3"]),
    "the last two": (lambda blocks: blocks[-2:], ["2", "3"]),
    "every other": (lambda blocks: blocks[1::2], ["1", "3"]),
    "backwards": (lambda blocks: blocks[::-1], ["3", "2", "1", "0"]),
    "a part of a part": (lambda blocks: blocks[1:][:-1], ["1", "2"]),
    "one of a part": (lambda blocks: [blocks[1:][0], blocks[:-1][-1]], ["1", "2"]),
}


@pytest.mark.parametrize("kind", [nn.Sequential, lambda *blocks: nn.ModuleList(blocks)], ids=["Sequential", "list"])
@pytest.mark.parametrize(("take", "names"), TAKEN.values(), ids=TAKEN)
def test_blocks_of_a_part(
    kind: Callable[..., nn.Module], take: Callable[[nn.Module], list[nn.Module]], names: list[str]
) -> None:
    module = trained(Net(kind(*(Block() for _ in range(4))), take))
    assert folded_names(fold(module, images())) == [f"model.{name}.bn" for name in names]


def test_paths() -> None:
    blocks = nn.ModuleList(nn.Sequential(*(Block() for _ in range(3))) for _ in range(3))
    root = nn.ModuleDict({"a": blocks})
    assert real_path("a.slice(1, None, None).0.slice(1, None, None).1.bn", root) == "a.1.1.bn"
    assert real_path("a.slice(None, None, 2).1.slice(None, None, None).slice(1, 2, None).1.bn", root) == "a.2.1.bn"
    for unknown in ("a.slice(1, None, None).7.bn", "b.slice(1, None, None).0", "a.slice(x).0"):
        assert real_path(unknown, root) == unknown
