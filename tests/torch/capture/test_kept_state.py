"""Modules that keep tensors on themselves, and folds of several at once."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch_modules import EXACT, distance, fold, folded_names, images, inputs, run, trained

import bnfold
from bnfold.torch.capture.export import trace
from bnfold.torch.capture.kept_state import kept


class Grids(nn.Module):
    """Keeps the grid of its last input, everything that it has seen, and one grid of each size."""

    shape = None

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.seen: list[Tensor] = []
        self.by_size: dict[int, tuple[Tensor, ...]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.shape != y.shape:
            self.grid, self.shape = torch.arange(y.shape[-1], dtype=y.dtype) + 0.5, y.shape
        if y.shape[-1] not in self.by_size:
            self.by_size[y.shape[-1]] = (torch.arange(y.shape[-1], dtype=y.dtype),)
        self.seen.append(self.grid)
        return y + self.grid + self.by_size[y.shape[-1]][0]


class Branches(Grids):
    """The same where torch.export has to go down."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if float(y.sum()) > -1e9 else y + 1


def has_fakes(module: nn.Module) -> bool:
    kept_there = [*vars(module).values(), *module.seen, *(grid for (grid,) in module.by_size.values())]
    return any(isinstance(value, FakeTensor) for value in kept_there)


def test_a_module_that_keeps_its_grid() -> None:
    for kind in (Grids, Branches):
        module = trained(kind())
        result = bnfold.fold(module, images())
        assert not module.seen
        assert not module.by_size
        assert not has_fakes(result.model)
        assert bnfold.verify(module, result.model, example_inputs=images()).verdict == "pass"
        for example in (images(), inputs((1, 3, 5, 8))):
            assert distance(run(result.model, example), run(module, example)) < EXACT


def test_a_part_that_keeps_its_grid() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.last = Grids(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.part(x)
            return self.last(y if float(y.sum()) > -1e9 else y + 1)

    assert folded_names(fold(trained(Around()), images())) == ["part.bn", "last.1"]


def test_what_an_export_leaves_is_put_back() -> None:
    module = trained(Grids())
    run(module, images())
    before = {**vars(module)}, [*module.seen], {**module.by_size}
    trace(module, (inputs((2, 3, 4, 4)), {}))
    assert all(vars(module)[name] is value for name, value in before[0].items())
    assert len(module.seen) == len(before[1])
    assert all(now is then for now, then in zip(module.seen, before[1], strict=True))
    assert module.by_size == before[2]
    module.counts = [SimpleNamespace(calls=1)]
    with kept(module):
        module.counts[0].calls, module.counts[0].last = 2, module.grid
        del module.grid
        module.other = {1}
        module.by_size.clear()
    assert "other" not in vars(module)
    assert module.by_size == before[2]
    assert vars(module.counts[0]) == {"calls": 1}


def test_several_folds_at_once() -> None:
    modules = [trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), seed) for seed in range(4)]
    stderr = sys.stderr
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda module: bnfold.fold(module, images()), modules)]
    assert sys.stderr is stderr
    for module, result in zip(modules, results, strict=True):
        assert folded_names(result) == ["1"]
        assert distance(run(result.model, images()), run(module, images())) < EXACT


@functools.lru_cache
def grid_of(width: int) -> Tensor:
    return torch.arange(width, dtype=torch.float64)


def test_what_code_keeps_elsewhere_has_values() -> None:
    class Remembers(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y + grid_of(y.shape[-1])

    grid_of.cache_clear()
    module = trained(Remembers(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["1"]
    for example in (images(), inputs((1, 3, 7, 5))):
        assert type(grid_of(example[0].shape[-1] - 2)) is Tensor
        assert distance(run(result.model, example), run(module, example)) < EXACT
    grid_of.cache_clear()
    assert bnfold.verify(module, result.model, example_inputs=images()).verdict == "pass"
    assert type(grid_of(images()[0].shape[-1] - 2)) is Tensor


def test_what_a_hook_keeps_on_the_module() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    seen: list[Tensor] = []
    module.seen = seen
    module[1].register_forward_hook(lambda _, __, result: seen.append(result))
    assert not fold(module, images()).changed
    assert not any(isinstance(result, FakeTensor) for result in seen)
