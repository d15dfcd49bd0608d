"""Modules whose code asks how they are made: no graph shows that, and each would be folded wrong by its graph alone."""

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch_modules import EXACT, codes, distance, fold, folded_names, images, inputs, is_wrong, naive, run, trained

import bnfold
from bnfold.reasons import StopCode


class Pair(nn.Module):
    """A convolution and a BN that a subclass calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)


class AsksForBias(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * 2 if self.conv.bias is None else y


class AsksForClass(Pair):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
            x = x.relu() if isinstance(layer, nn.BatchNorm2d) else x
        return x


class Counts(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * len([*self.parameters()])


class AsksForType(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.to(self.norm.weight.dtype)))


class AsksForSize(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).reshape(len(x), len(self.norm.running_mean), -1)


class Collects(Pair):
    """Returns other values, of which each is computed all the same."""

    def forward(self, x: Tensor) -> list[Tensor]:
        found = {type(layer): (x := layer(x)) for layer in self.children()}
        return [found.get(nn.BatchNorm2d, x.detach() + 1)]


ASKING = (AsksForBias, AsksForClass, Counts, AsksForType, AsksForSize, Collects)


@pytest.mark.parametrize("kind", ASKING)
def test_code_that_asks(kind: type[Pair]) -> None:
    module = trained(kind())
    result = fold(module, images())
    assert codes(result) == {"norm": StopCode.NEEDS_GRAPH}
    assert "looks at" in result.plan.left[0].reason
    assert "torch.export.export" in result.plan.left[0].reason
    by_graph = naive(module, ("conv", "norm"))
    try:
        assert is_wrong(module, by_graph, images())
    except (AttributeError, TypeError):
        assert kind in (AsksForType, AsksForSize)


@pytest.mark.parametrize("kind", ASKING[:4])
def test_only_what_is_asked_about_stays(kind: type[Pair]) -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(5)]
    result = fold(trained(nn.Sequential(kind(), *blocks)), images())
    assert codes(result) == {"0.norm": StopCode.NEEDS_GRAPH}
    assert folded_names(result) == [f"{position}.1" for position in range(1, 6)]


@pytest.mark.slow
def test_what_stays_because_each_change_counts() -> None:
    class All(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * len(self.state_dict())

    layers = [layer for _ in range(12) for layer in (nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))]
    result = fold(trained(All(*layers)), images())
    assert set(codes(result).values()) == {StopCode.NEEDS_GRAPH}


@pytest.mark.parametrize("kind", ASKING)
def test_code_that_asks_where_torch_export_cannot_follow(kind: type[Pair]) -> None:
    class Framed(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > -1e9 else x + 1)

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.pair = kind()

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.pair(x if float(x.sum()) > -1e9 else x + 1)

    assert [*codes(fold(trained(Framed()), images()))] == ["norm"]
    result = fold(trained(Inside()), images())
    assert codes(result) == {"pair.norm": StopCode.NEEDS_GRAPH}
    assert folded_names(result) == ["stem.1"]


def test_code_outside_of_the_parts_that_asks() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
            self.second = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            x += 1 if float(x.sum()) > -1e9 else 2
            return x * 3 if self.first[0].bias is None else x

    result = fold(trained(Outside()), images())
    assert codes(result) == {"first.1": StopCode.NEEDS_GRAPH}
    assert folded_names(result) == ["second.1"]


def test_code_that_looks_without_a_consequence() -> None:
    class Looks(Pair):
        def forward(self, x: Tensor) -> Tensor:
            assert hasattr(self.norm, "eps")
            assert self.norm.num_features == 4
            getattr(self.norm, "weight", None)
            return self.norm(self.conv(x.to(self.conv.weight.device)))

    assert folded_names(fold(trained(Looks()), images())) == ["norm"]


def test_what_is_remembered_from_one_call_to_the_next() -> None:
    """Only the first calls in a process copy their input, so that two runs differ without any fold."""
    calls: list[int] = []

    class Warming(Pair):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return self.norm(self.conv(x.clone() if len(calls) < 4 else x))

    assert folded_names(fold(trained(Warming()), images())) == ["norm"]


class Held(Pair):
    """A list and a closure, of which nn.Module knows nothing, have the weight and the BN as well."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.weights = [self.conv.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.weights[0].sum()


def test_a_weight_that_is_also_in_a_list() -> None:
    assert codes(fold(trained(Held()), images())) == {"norm": StopCode.SHARED_WEIGHT}


@pytest.mark.parametrize("inplace", [False, True])
def test_a_batch_norm_that_is_also_in_a_closure(inplace: bool) -> None:
    """A copy of the module has a BN of its own, but not the closure, which goes on with the original's."""

    class Closed(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm = nn.BatchNorm2d(4, affine=False)
            self.again = lambda y: norm(y) * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.again(x[:, :1].expand(-1, 4, -1, -1))

    module = trained(Closed())
    reference = run(module, images())
    result = bnfold.fold(module, images(), inplace=inplace)
    assert distance(run(result.model, images()), reference) < EXACT
    assert "norm" in codes(result)


def test_a_batch_norm_that_only_a_closure_calls_is_one_entry() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.pair = lambda x: norm(conv(x))

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)

    result = fold(trained(Closed()), images())
    assert codes(result) == {"norm": StopCode.NEEDS_GRAPH}
    assert result.plan.batch_norms == 1


def test_a_computed_weight_in_code_that_asks() -> None:
    """The weight and the bias of such a layer are two places, tried one by one."""
    module = AsksForBias()
    parametrizations.weight_norm(module.conv)
    assert codes(fold(trained(module), images())) == {"norm": StopCode.NEEDS_GRAPH}


class NormHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.drop, self.linear = nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.bn(x)))


def test_heads_with_a_dropout_each() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(NormHead() for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [head(x) for head in self.heads]

    assert folded_names(fold(trained(Heads()), inputs((3, 8)))) == ["heads.0.bn", "heads.1.bn"]


def test_what_is_written_into_is_not_passed_on() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.bn(x)
            return [self.linear(y.neg_()), x]

    module = trained(Writes())
    result = fold(module, inputs((3, 8)))
    assert not folded_names(result)
