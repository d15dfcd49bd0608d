"""Modules that torch.export follows only in part, or not with these inputs."""

import warnings
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch_modules import codes, fold, folded_names, images, inputs, run, trained

import bnfold
from bnfold.errors import UsageError
from bnfold.reasons import StopCode


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Detector(nn.Module):
    """A backbone, a head shared by all levels, and code that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([Block(3, 4), Block(4, 4)])
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.unused = Block(4, 4)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        found = []
        x = torch.stack(images)
        for block in self.backbone:
            x = block(x)
            scores = self.head(x)
            found.append(scores[scores > float(scores.mean())])
            x = nn.functional.max_pool2d(x, 2)
        return found


def detector_example() -> tuple[list[Tensor]]:
    return ([*inputs((3, 8, 8), (3, 8, 8))],)


def test_a_detector_is_folded_in_parts() -> None:
    module = trained(Detector())
    result = bnfold.fold(module, detector_example())
    assert folded_names(result) == ["backbone.0.norm", "head.1", "backbone.1.norm"]
    assert codes(result) == {"unused.norm": StopCode.NOT_REACHED}
    ours, theirs = run(result.model, detector_example()), run(module, detector_example())
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


class Framed(nn.Module):
    """A module whose own code torch.export cannot follow, around what a subclass does."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x)
        return y if float(y.sum()) > -1e9 else y + 1


def test_a_pair_in_code_that_cannot_be_followed() -> None:
    class Loose(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    result = fold(trained(Loose(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))), images())
    assert codes(result) == {"norm": StopCode.NOT_CAPTURED}
    assert "data-dependent" in result.plan.left[0].reason


def test_a_part_called_with_several_shapes() -> None:
    class Pyramid(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.block(x).mean((2, 3)) + self.block(x[:, :, ::2, ::2]).mean((2, 3)) + self.block(x).mean((2, 3))

    assert folded_names(fold(trained(Pyramid(block=Block(3, 4))), images())) == ["block.norm"]


def test_a_part_called_in_two_ways_that_do_not_agree() -> None:
    class Switched(Block):
        def forward(self, x: Tensor, normalise: bool) -> Tensor:
            return self.norm(self.conv(x)) if normalise else self.conv(x)

    class Both(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.block(x, True) + self.block(x, False)

    assert codes(fold(trained(Both(block=Switched(3, 4))), images())) == {"block.norm": StopCode.SHARED_WEIGHT}


def test_a_part_whose_layer_is_also_called_from_outside() -> None:
    class Reaching(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.block(x) + self.block.conv(x)

    result = fold(trained(Reaching(block=Block(3, 4))), images())
    assert codes(result) == {"block.norm": StopCode.SHARED_WEIGHT}


def test_a_part_whose_weight_is_also_read_from_outside() -> None:
    class Reading(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.block(x) * self.block.conv.weight.sum()

    result = fold(trained(Reading(block=Block(3, 4))), images())
    assert codes(result) == {"block.norm": StopCode.NOT_CAPTURED}


def test_a_part_whose_weight_is_given_to_another() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return x * weight.sum()

    class Giving(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.scaled(self.block(x), self.block.conv.weight)

    result = fold(trained(Giving(block=Block(3, 4), scaled=Scaled())), images())
    assert codes(result) == {"block.norm": StopCode.NOT_CAPTURED}


def test_a_part_whose_statistics_are_also_read_from_outside() -> None:
    class Reading(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.block(x) * self.block.norm.running_var.sum()

    result = fold(trained(Reading(block=Block(3, 4))), images())
    assert codes(result) == {"block.norm": StopCode.NOT_CAPTURED}


def test_a_functional_batch_norm_in_code_that_cannot_be_followed() -> None:
    class Functional(Framed):
        def inside(self, x: Tensor) -> Tensor:
            norm = self.norm
            return nn.functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)

    result = fold(trained(Functional(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))), images())
    assert codes(result) == {"norm": StopCode.NOT_CAPTURED}


def test_two_levels_down() -> None:
    class Inner(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.first(x)

    class Outer(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.second(self.inner(x))

    module = trained(Outer(inner=Inner(first=Block(3, 4)), second=Block(4, 4)))
    assert sorted(folded_names(fold(module, images()))) == ["inner.first.norm", "second.norm"]


def test_weights_tied_between_parts() -> None:
    class Tied(Framed):
        def inside(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    module = trained(Tied(first=Block(3, 3), second=Block(3, 3)))
    module.second.conv.weight = module.first.conv.weight
    result = fold(module, images())
    assert set(codes(result).values()) == {StopCode.SHARED_WEIGHT}
    module.second.norm.load_state_dict(module.first.norm.state_dict())
    assert len(fold(module, images()).plan.folds) == 2


def test_the_state_of_a_module_is_kept_when_the_example_is_run() -> None:
    class Counting(Framed):
        def inside(self, x: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return self.norm(self.block(x))

    module = trained(Counting(block=Block(3, 4), norm=nn.BatchNorm2d(4)))
    module.norm.train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    random = torch.get_rng_state()
    (x,) = images()
    before = x.clone()
    result = bnfold.fold(module, (x,))
    assert folded_names(result) == ["block.norm"]
    assert not hasattr(module, "calls")
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(result.model.norm.running_mean, module.norm.running_mean)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, before)


def test_a_script_module_inside() -> None:
    module = trained(nn.Sequential(Block(3, 4), Block(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module[1] = torch.jit.trace(module[1], inputs((2, 4, 7, 6)))
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["0.norm", "3"]
    (left,) = result.plan.left
    assert "it is inside of TorchScript" in left.reason
    assert all(torch.allclose(a, b) for a, b in zip(run(result.model, images()), run(module, images()), strict=True))


def test_an_output_that_torch_export_does_not_know() -> None:
    Found = namedtuple("Found", "boxes scores")

    class Answer:
        def __init__(self, features: Tensor) -> None:
            self.features = features

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(3, 4)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.block(x))

    class Named(Odd):
        def forward(self, x: Tensor) -> Found:
            return Found(self.block(x), x)

    for kind in (Odd, Named):
        assert folded_names(bnfold.fold(trained(kind()), images())) == ["block.norm"]


def test_dynamic_shapes() -> None:
    module = trained(
        nn.Sequential(Block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5))
    )
    batch = torch.export.Dim("batch", min=2)
    for shapes in ({"input": {0: batch}}, ({0: batch, 2: torch.export.Dim.AUTO},)):
        assert len(fold(module, images(), dynamic_shapes=shapes).plan.folds) == 2


def test_dynamic_shapes_that_do_not_hold() -> None:
    module = trained(nn.Sequential(Block(3, 4)))
    with pytest.raises(UsageError, match="dynamic_shapes"):
        bnfold.fold(module, images(), dynamic_shapes=({1: torch.export.Dim("channels")},))


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ((), "missing"),
        ((*images(), *images()), "too many"),
        ({"pixels": images()[0]}, "missing"),
        (images()[0], "tensor, not a tuple"),
        (3, "int"),
        (inputs((2, 5, 7, 6)), "channels"),
        (("text",), "fails with the example inputs"),
    ],
)
def test_examples_that_do_not_fit(example: object, says: str) -> None:
    module = trained(nn.Sequential(Block(3, 4)))
    with pytest.raises(UsageError, match=says):
        bnfold.fold(module, example)
    with pytest.raises(UsageError, match=says):
        bnfold.inspect(module, example)


def test_nothing_is_said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    bnfold.fold(trained(Detector()), detector_example())
    bnfold.fold(trained(Block(3, 4)), images())
    assert capfd.readouterr() == ("", "")


def test_a_branch_of_torch_cond_and_a_region_of_autocast() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = Block(3, 4), Block(4, 4), Block(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cond(x.sum() > 0, self.first, lambda x: self.first(x) * 2, (x,))
            with torch.autocast("cpu", enabled=False):
                x = self.second(x)
            return self.third(x)

    result = fold(trained(Regions()), images())
    assert folded_names(result) == ["second.norm", "third.norm"]
    # Inside the branches torch.export does not say which module runs.
    assert codes(result) == {"first.norm": StopCode.NEEDS_GRAPH}
    assert codes(fold(trained(Regions()), images(), skip=("first.*", "second.*"))) == {
        "second.norm": StopCode.SKIPPED,
        "first.norm": StopCode.NEEDS_GRAPH,
    }


def test_torch_cond_in_code_that_cannot_be_followed() -> None:
    """What its branches read is not to be seen, so everything may be."""

    class Branching(Framed):
        def inside(self, x: Tensor) -> Tensor:
            y = self.block(x)
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y * self.block.conv.weight.sum(), (y,))

    module = trained(Branching(block=Block(3, 4)))
    assert codes(bnfold.fold(module, images())) == {"block.norm": StopCode.NOT_CAPTURED}
