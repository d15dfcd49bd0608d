"""What a plan says that it takes for granted."""

from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn
from torch_modules import fold, images, inputs, trained

import bnfold


class Kind(Enum):
    FAST = 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu())

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def predict(self, x: Tensor) -> Tensor:
        return self(x).softmax(1)

    def whole(self, x: Tensor) -> Tensor:
        head = [lambda y: self.fc(y.mean((2, 3)))]
        return head[0](self.norm(self.conv(x).relu()))

    def forward(self, x: Tensor, mask: Tensor | None = None, features: bool = False, **_: object) -> Tensor:
        y = self.forward_features(x)
        return y if features else self.forward_head(y)


METHODS = tuple(
    f"{name}() is not called by itself: 'norm' is folded into 'fc'" for name in ("forward_features", "forward_head")
)


def test_flags_and_methods() -> None:
    flags = ("forward is called with mask=None, as in the example",)
    off = ("forward is called with features=False, as in the example",)
    assert fold(trained(Net()), images()).plan.assumptions == (*flags, *off, *METHODS)
    x, mask = inputs((2, 3, 8, 8), (2, 8, 8))
    assert bnfold.inspect(trained(Net()), [(x,), (x, mask)]).assumptions == (*off, *METHODS)


def test_what_arguments_hold() -> None:
    @dataclass
    class Options:
        kind: Kind
        mask: Tensor | None = None

    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, *images: Tensor, batch: dict[str, object], **rest: object) -> Tensor:
            return self.features(images[-1]) if rest.get("plain") is None else images[0]

    def told(*facts: str) -> tuple[str, ...]:
        return tuple(f"forward is called with {fact}, as in the example" for fact in facts)

    x = images()[0]
    batch = {"options": Options(Kind.FAST), "more": [x, {"names": ["a", "b"]}]}
    call = ((x, x), {"batch": batch})
    module = trained(Loose())
    assert bnfold.inspect(module, call).assumptions == told(
        "2 elements in *images",
        "the keys 'options', 'more' in batch",
        f"batch['options'].kind={Kind.FAST!r}",
        "batch['options'].mask=None",
        "2 elements in batch['more']",
        "the key 'names' in batch['more'][1]",
        "batch['more'][1]['names']=['a', 'b']",
        "nothing in **rest",
    )
    other = ((x,), {"batch": {"options": Options(Kind.FAST, x), "more": []}, "what": x})
    assert bnfold.inspect(module, [call, other]).assumptions == told(
        "the keys 'options', 'more' in batch", f"batch['options'].kind={Kind.FAST!r}"
    )


def test_a_part_of_a_model() -> None:
    plan = bnfold.inspect(trained(nn.Sequential(nn.Conv2d(3, 3, 1), Net())), images())
    assert plan.assumptions == tuple(
        f"{name}() of '1' is not called by itself: '1.norm' is folded into '1.fc'"
        for name in ("forward_features", "forward_head")
    )


def test_nothing_is_assumed_where_nothing_is_folded() -> None:
    assert bnfold.inspect(trained(Net()), {"x": images()[0], "features": True}).assumptions == ()


def test_sizes_that_are_fixed() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape != (2, 3, 7, 6):
                raise ValueError(x.shape)
            return super().forward(x)

    plan = bnfold.inspect(trained(Fixed(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), images())
    assert plan.assumptions == ("inputs are of 2x3x7x6, for the module takes no other sizes that were tried",)
    free = bnfold.inspect(trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), images())
    assert free.assumptions == ()
