"""Calls that are unlike the example in more than sizes: something is left out, or has another form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch_modules import EXACT, distance, fold, folded_names, inputs, run, trained

from bnfold.torch.module.trials.leaving_out import without
from bnfold.torch.module.trials.representation import others

X, MASK = inputs((2, 3, 8, 8), (2, 4, 6, 6))


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def plain(self, x: Tensor, skip: bool) -> Tensor:
        return self.features[0](x) if skip else self.features(x)


class Pair(NamedTuple):
    x: Tensor
    mask: Tensor | None = None


@dataclass
class Batch:
    x: Tensor
    mask: Tensor | None = None


class Named(Layers):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.plain(x, mask is None)


class Keyed(Layers):
    def forward(self, *batches: dict[str, Tensor]) -> Tensor:
        return self.plain(batches[0]["x"], "mask" not in batches[0])


class Anything(Layers):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return self.plain(x, "mask" not in others)


class Fields(Layers):
    def forward(self, batch: list[Pair | Batch]) -> Tensor:
        return self.plain(batch[0].x, batch[0].mask is None)


@pytest.mark.parametrize(
    ("kind", "example", "other", "what"),
    [
        (Named, (X, MASK), (X,), "mask"),
        (Named, {"x": X, "mask": MASK}, {"x": X}, "mask"),
        (Keyed, ({"x": X, "mask": MASK},), ({"x": X},), "batches[0]['mask']"),
        (Anything, {"x": X, "mask": MASK}, {"x": X}, "mask"),
        (Fields, ([Pair(X, MASK)],), ([Pair(X)],), "batch[0].mask"),
        (Fields, ([Batch(X, MASK)],), ([Batch(X)],), "batch[0].mask"),
    ],
)
def test_what_is_left_out_takes_another_way(kind: type[Layers], example: object, other: object, what: str) -> None:
    module = trained(kind())
    result = fold(module, example)
    assert not folded_names(result)
    assert f"inputs of 2x3x8x8 without {what}" in result.plan.left[0].reason
    for call in (example, other):
        assert distance(run(result.model, call), run(module, call)) < EXACT


def test_flags_and_what_must_be_there_are_not_left_out() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, flag: bool = False, sizes: tuple[int, ...] = ()) -> Tensor:
            return x

    assert not without(Net(), ((X, True, (8, 8)), {}))
    assert [words for words, _ in without(Net(), ((), {"x": {"a": X, "b": [X, {"c": 1, "d": X}]}}))] == [
        *("x['a']", "x['b']", "x['b'][1]['d']")
    ]


def of_the_element_type(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.uint8)


def of_the_order(x: Tensor) -> bool:
    return not x.is_contiguous()


def of_gradients(x: Tensor) -> bool:
    return x.requires_grad


@pytest.mark.parametrize(
    ("asks", "other"),
    [
        (of_the_element_type, X.half()),
        (of_the_order, X.to(memory_format=torch.channels_last)),
        (of_gradients, X.clone().requires_grad_()),
    ],
)
def test_another_form_takes_another_way(asks: Callable[[Tensor], bool], other: Tensor) -> None:
    class Net(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x.to(self.features[0].weight.dtype), asks(x))

    module = trained(Net())
    result = fold(module, (X,))
    assert not folded_names(result)
    for x in (X, other):
        assert distance(run(result.model, (x,)), run(module, (x,))) < EXACT


def test_a_form_that_nobody_asks_for_is_not_tried() -> None:
    class Net(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.features(x.to(self.features[0].weight.dtype))

    assert not [*others(trained(Net()), ((X,), {}))]
