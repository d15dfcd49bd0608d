"""What the code of a module keeps on itself is the same after a fold: whoever reads it need not know of the fold."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.report import Verdict

IMAGE = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers with a batch norm each; `keep` is told what the first convolution and the first batch norm give."""

    def __init__(self, keep: Callable[[nn.Module, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.kept: list[object] = []
        self.named: dict[str, Any] = {"b": SimpleNamespace(value=[])}
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        after = self.bn(before)
        self.keep(self, before, after)
        return self.bn2(self.conv2(after.relu()))


def net(keep: Callable[[nn.Module, Tensor, Tensor], None]) -> nn.Module:
    module = Net(keep).double().eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=draw, dtype=torch.float64) + 0.5)
    return module


def last(module: nn.Module) -> Tensor:
    """What a module has kept last."""
    found = [
        *vars(module)["kept"],
        *module.named.values(),
        *module.named["b"].value,
        getattr(module, "value", None),
        getattr(module.conv, "value", None),
    ]
    return next(value for value in reversed(found) if isinstance(value, Tensor))


def keeps_in_list(module: nn.Module, value: Tensor) -> None:
    module.kept.append(value)


def keeps_in_dict(module: nn.Module, value: Tensor) -> None:
    module.named["a"] = value


def keeps_as_attribute(module: nn.Module, value: Tensor) -> None:
    module.value = value


def keeps_in_child(module: nn.Module, value: Tensor) -> None:
    module.conv.value = value


def keeps_in_object(module: nn.Module, value: Tensor) -> None:
    module.named["b"].value = [value]


PLACES = [keeps_in_list, keeps_in_dict, keeps_as_attribute, keeps_in_child, keeps_in_object]


@pytest.mark.parametrize("place", PLACES)
def test_a_batch_norm_behind_a_kept_value_stays(place: Callable[[nn.Module, Tensor], None]) -> None:
    module = net(lambda owner, before, _: place(owner, before))
    result = bnfold.fold(module, (IMAGE,))
    assert [(str(left.code), left.nodes[0]) for left in result.plan.left] == [("hooks", "bn")]
    assert result.plan.batch_norms_folded == 1  # the other one
    assert result.check().verdict is Verdict.PASS
    torch.testing.assert_close(result.model(IMAGE), module(IMAGE))
    torch.testing.assert_close(last(result.model), last(module))


@pytest.mark.parametrize("place", PLACES)
def test_a_kept_value_that_stays_what_it_is_stops_nothing(place: Callable[[nn.Module, Tensor], None]) -> None:
    module = net(lambda owner, _, after: place(owner, after))
    result = bnfold.fold(module, (IMAGE,))
    assert result.plan.batch_norms_folded == 2
    result.model(IMAGE), module(IMAGE)
    torch.testing.assert_close(last(result.model), last(module))


def test_what_is_made_of_values_outside_of_the_graph_stops_everything() -> None:
    def keep(owner: nn.Module, before: Tensor, _: Tensor) -> None:
        owner.value = torch.from_numpy(before.detach().numpy() * 2) if type(before) is Tensor else before

    module = net(keep)
    result = bnfold.fold(module, (IMAGE,))
    result.model(IMAGE), module(IMAGE)
    torch.testing.assert_close(last(result.model), last(module))
    assert {str(left.code) for left in result.plan.left} == {"hooks"}
    assert "keeps something as 'value'" in result.plan.left[0].reason


def test_numbers_and_grids_that_the_code_keeps_stop_nothing() -> None:
    def keep(owner: nn.Module, before: Tensor, _: Tensor) -> None:
        owner.calls = getattr(owner, "calls", 0) + 1
        owner.grid = torch.ones(before.shape[2:])

    assert bnfold.fold(net(keep), (IMAGE,)).plan.batch_norms_folded == 2


def counts_on_itself(module: nn.Module) -> int:
    module.calls = getattr(module, "calls", 0) + 1
    return int(module.calls)


def counts_in_a_list(module: nn.Module) -> int:
    module.kept.append(None)
    return len(module.kept)


def counts_in_an_object(module: nn.Module) -> int:
    module.named["b"].value.append(None)
    return len(module.named["b"].value)


@pytest.mark.parametrize("count", [counts_on_itself, counts_in_a_list, counts_in_an_object])
@pytest.mark.parametrize("other", [lambda calls: calls > 1, lambda calls: calls % 2 == 0, lambda calls: calls > 2])
def test_what_is_done_otherwise_in_a_later_call_stays(
    count: Callable[[nn.Module], int], other: Callable[[int], bool]
) -> None:
    class Later(Net):
        def forward(self, x: Tensor) -> Tensor:
            before = self.conv(x)
            return before if other(count(self)) else self.bn(before)

    module = net(lambda *_: None)
    module.__class__ = Later
    result = bnfold.fold(module, (IMAGE,))
    assert not result.plan.folds
    assert "called again" in result.plan.left[0].reason
    assert result.verify(device="cpu").verdict is Verdict.PASS
    for _ in range(4):
        torch.testing.assert_close(result.model(IMAGE), module(IMAGE))


def test_a_later_call_that_reads_what_the_first_kept_stops_nothing() -> None:
    def keep(owner: nn.Module, before: Tensor, _: Tensor) -> None:
        if counts_in_an_object(owner) == 1:
            owner.grid = torch.ones(before.shape[2:])

    module = net(keep)
    result = bnfold.fold(module, (IMAGE,))
    assert result.plan.batch_norms_folded == 2
    for _ in range(3):
        torch.testing.assert_close(result.model(IMAGE), module(IMAGE))
