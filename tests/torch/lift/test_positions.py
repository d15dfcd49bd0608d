"""Operators that repeat, crop or leave a size as it was: which element comes from where is not in the size."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_modules import check, fold, inputs, trained

from bnfold.reasons import StopCode

REPEATS = {
    "as many as there were": torch.tensor([2, 0, 1, 1]),
    "each once": torch.ones(4, dtype=torch.long),
    "each twice": torch.tensor([2]),
    "more": torch.tensor([1, 3, 0, 1]),
}


class Net(nn.Module):
    """A conv before an operator, and one behind it, with a BN either before or behind."""

    def __init__(self, op, channels: int, *, behind: bool, repeats: Tensor | None = None) -> None:
        super().__init__()
        self.op, self.behind = op, behind
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(channels, 3, 1)
        self.bn = nn.BatchNorm2d(channels if behind else 4)
        if repeats is not None:
            self.register_buffer("repeats", repeats)

    def forward(self, x: Tensor) -> Tensor:
        if self.behind:
            return self.bn(self.apply_op(self.first(x))).relu()
        return self.last(self.apply_op(self.bn(self.first(x).relu())))

    def apply_op(self, x: Tensor) -> Tensor:
        return self.op(x, self.repeats) if hasattr(self, "repeats") else self.op(x)


def folded(module: nn.Module) -> list[StopCode]:
    """The codes of what stays of a module; what it computes is right."""
    example = inputs((2, 3, 6, 6))
    module = trained(module)
    result = fold(module, example)
    check(result, module, example)
    return [entry.code for entry in result.plan.left]


@pytest.mark.parametrize("name", REPEATS)
def test_repeats_by_a_tensor(name: str) -> None:
    repeats = REPEATS[name]
    channels = int(repeats.sum()) * (4 if repeats.numel() == 1 else 1)

    def op(x: Tensor, given: Tensor) -> Tensor:
        return torch.repeat_interleave(x, given, 1, output_size=channels)

    before = folded(Net(op, channels, behind=True, repeats=repeats))
    assert before == ([] if name == "each once" else [StopCode.VARIES])
    assert folded(Net(op, channels, behind=False, repeats=repeats)) == []


BOTH_WAYS = {
    "repeats along the image": (lambda x: x.repeat(1, 1, 2, 3), 4),
    "repeats along a new axis": (lambda x: x.repeat(2, 1, 1, 1, 1)[0], 4),
    "tile of the last axes": (lambda x: x.tile(2, 2), 4),
    "a crop of channels": (lambda x: functional.pad(x, (0, 0, 0, 0, -1, -1)), 2),
    "a crop of all": (lambda x: functional.pad(x, (-1, 0, 0, -2, 0, -1)), 3),
    "a pad of nothing": (lambda x: functional.pad(x, (0, 0, 0, 0), value=3.0), 4),
    "channels one by one": (lambda x: x.repeat_interleave(1, 1), 4),
}
FORWARD_ONLY = {
    "channels twice": (lambda x: x.repeat(1, 2, 1, 1), 8),
    "each channel twice": (lambda x: x.repeat_interleave(2, 1), 8),
    "tile of channels": (lambda x: x.tile(3, 1, 1), 12),
}


@pytest.mark.parametrize("name", [*BOTH_WAYS, *FORWARD_ONLY])
def test_repetitions_and_crops(name: str) -> None:
    op, channels = {**BOTH_WAYS, **FORWARD_ONLY}[name]
    assert folded(Net(op, channels, behind=False)) == []
    assert folded(Net(op, channels, behind=True)) == ([] if name in BOTH_WAYS else [StopCode.VARIES])


def test_copies_that_are_treated_alike() -> None:
    """A BN with the same numbers for both copies of a channel goes back to it."""
    module = trained(Net(lambda x: x.repeat_interleave(2, 1), 8, behind=True))
    with torch.no_grad():
        for tensor in (module.bn.weight, module.bn.bias, module.bn.running_mean, module.bn.running_var):
            tensor[1::2] = tensor[::2]
    example = inputs((2, 3, 6, 6))
    result = fold(module, example)
    check(result, module, example)
    assert not result.plan.left
