"""Exported programs: branches that become one map, and maps in a row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from merging_as_written import BORDERED, WRITTEN
from torch import Tensor, nn
from torch_programs import check_outputs, export, fold, fold_module, random_inputs, saved_and_loaded

from bnfold.algebra.linear_map import Window
from bnfold.algebra.tensor import ArrayTensor
from bnfold.graph import MapNode
from bnfold.torch.lift.lift import lift
from bnfold.torch.program.fold import fold_program
from bnfold.torch.program.windows import can_have_window

pytestmark = [  # of torch's own making
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning"),
]


class RepVGG(nn.Module):
    """A 3×3 and a 1×1 convolution and the identity, each with a BN, added up."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norms[0](self.wide(x)) + self.norms[1](self.point(x)) + self.norms[2](x)).relu()


class Difference(nn.Module):
    """Two branches that become one map, and a map behind it that becomes one with that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 8, 1, bias=False) for _ in range(2))
        self.last = nn.Conv2d(8, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.first(x) - self.second(x)))


@pytest.mark.parametrize("decomposed", [False, True])
def test_branches_and_a_map_behind_them(decomposed: bool) -> None:
    inputs = random_inputs((2, 4, 6, 6))
    program = export(Difference(), inputs)
    folded = fold(program.run_decompositions() if decomposed else program, inputs)
    assert (folded.count("Conv"), folded.count("BatchNorm"), folded.count("sub")) == (1, 0, 0)


@pytest.mark.parametrize("decomposed", [False, True])
def test_branches(decomposed: bool) -> None:
    inputs = random_inputs((2, 4, 6, 6))
    program = export(nn.Sequential(RepVGG(), RepVGG()), inputs, dynamic=True)
    folded = fold(program.run_decompositions() if decomposed else program, inputs)
    assert (folded.count("Conv"), folded.count("BatchNorm"), folded.count("add")) == (2, 0, 0)
    assert set(folded.program.state_dict) == {"0.wide.weight", "0.wide.bias", "1.wide.weight", "1.wide.bias"}
    check_outputs(program, saved_and_loaded(folded.program), random_inputs((3, 4, 6, 6)))
    check_outputs(program, folded.program.run_decompositions(), inputs)


class Linear(RepVGG):
    """Without an activation, and a 1×1 convolution to fewer channels behind it: that becomes one with the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.last(self.norms[0](self.wide(x)) + self.norms[1](self.point(x)) + self.norms[2](x))


def test_branches_and_what_is_behind_them() -> None:
    """The sum is gone by the time that the maps in a row become one of another shape."""
    folded = fold(export(Linear(), random_inputs((2, 4, 6, 6))), random_inputs((2, 4, 6, 6)))
    assert (folded.count("Conv"), folded.count("add"), len(folded.plan.merges)) == (1, 0, 2)


FORMS = {
    "yolo": {"Conv": 5},
    "qarepvgg": {"Conv": 4},
    "replknet": {"Conv": 7, "add": 2},
    "unireplknet": {"Conv": 3},
    "pp_lcnet_v3": {"Conv": 4, "mul": 2, "add": 2},
}
"""What is left of networks as they are written: the deployment form of their authors, or less (see the ONNX files)."""


@pytest.mark.parametrize(
    "name", [name if name in ("yolo", "qarepvgg") else pytest.param(name, marks=pytest.mark.slow) for name in WRITTEN]
)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_networks_as_they_are_written(name: str, decomposed: bool) -> None:
    inputs = random_inputs((2, 3, 20, 28))
    program = export(WRITTEN[name](), inputs)
    folded = fold(program.run_decompositions() if decomposed else program, inputs)
    assert folded.plan.batch_norms > 0
    assert folded.plan.batch_norms_left == 0
    for op, count in {"AvgPool2d": 0, "sub": 0, **FORMS[name]}.items():
        assert folded.count(op) == count


@pytest.mark.parametrize(
    ("decomposed", "code", "words"),
    [
        (False, "mutated", "is changed in place by 'copy_"),
        pytest.param(True, "no_rule", "no exact rule moves an affine past slice_scatter", marks=pytest.mark.slow),
    ],
)
def test_borders_that_are_written_into_slices_stay(decomposed: bool, code: str, words: str) -> None:
    inputs = random_inputs((2, 3, 20, 28))
    for name, left, convs in (("dbb_dense", 2, 1 + 2 * 4), ("dbb_depthwise", 0, 1 + 2 * 3)):
        program = export(BORDERED[name](), inputs)
        folded = fold(program.run_decompositions() if decomposed else program, inputs, leftover="keep")
        assert folded.codes == [code] * left
        assert all(words in entry.reason for entry in folded.plan.left)
        assert folded.count("Conv") == convs


@pytest.mark.slow
def test_a_network_of_transformers() -> None:
    """PP-LCNetV3: sums of up to six branches, each with a BN, and a learnable affine behind the sum."""
    from transformers import PPLCNetV3Backbone, PPLCNetV3Config  # who runs the quick tests need not wait for it

    inputs = random_inputs((1, 3, 64, 64))
    program = export(PPLCNetV3Backbone(PPLCNetV3Config()), inputs)
    assert len([node for node in program.graph.nodes if "conv2d" in str(node.target)]) == 131
    folded = fold(program, inputs)
    assert (folded.plan.batch_norms, folded.plan.batch_norms_left, folded.count("Conv")) == (146, 0, 33)


def test_branches_stay_where_that_is_asked_for() -> None:
    inputs = random_inputs((2, 4, 6, 6))
    result = fold_program(export(RepVGG(), inputs), merge=False)
    assert result.ops_after == {"Conv": 3, "add": 2, "relu": 1}  # the last is what the BN of the identity became
    assert not result.plan.merges


def test_two_maps_in_a_row_get_the_window_of_both() -> None:
    inputs = random_inputs((2, 4, 6, 6))
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3, stride=2, padding=0, dilation=2), nn.Sigmoid())
    folded = fold(export(module, inputs), inputs)
    assert folded.count("Conv") == 1
    conv = next(node for node in folded.program.graph.nodes if node.name == "conv2d_1")
    assert conv.args[3:6] == ([2, 2], [0, 0], [2, 2])
    assert conv.meta["val"].shape == (2, 2, 1, 1)


def test_same_padding_of_an_even_kernel_stays_what_it_is() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.point = nn.Conv2d(3, 4, 4, padding="same"), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x) - self.point(x)

    folded = fold_module(Net(), (2, 3, 6, 6))
    assert folded.count("Conv") == 1


@pytest.mark.parametrize(
    ("window", "kernel", "possible"),
    [
        (Window((1, 1), (1, 1), (1, 1), (1, 1)), (3, 3), True),
        (Window((1, 1), (1, 1), (1, 0), (2, 0)), (4, 1), True),  # what padding="same" means
        (Window((1, 1), (1, 1), (2, 0), (1, 0)), (4, 1), False),
        (Window((2, 2), (1, 1), (1, 0), (2, 0)), (4, 1), False),
    ],
)
def test_windows_that_a_convolution_can_have(window: Window, kernel: tuple[int, int], possible: bool) -> None:
    inputs = random_inputs((2, 3, 6, 6))
    program = export(nn.Sequential(nn.Conv2d(3, 4, 3)), inputs)
    (node,) = (node for node in lift(program).nodes if isinstance(node, MapNode))
    weight = ArrayTensor(np.zeros((4, 3, *kernel)))
    assert can_have_window(node, replace(node.linear, weight=weight, window=window)) == possible
    (decomposed,) = (node for node in lift(program.run_decompositions()).nodes if isinstance(node, MapNode))
    even = window.before == window.after
    assert can_have_window(decomposed, replace(decomposed.linear, weight=weight, window=window)) == even


def test_a_window_that_no_convolution_can_have_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs((2, 4, 6, 6))
    program = export(RepVGG(), inputs)
    monkeypatch.setattr("bnfold.torch.program.fold.can_have_window", lambda *_: False)
    result = fold_program(program)
    assert not result.plan.merges
    check_outputs(program, result.program, inputs)


def test_parallel_linears() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.norm = nn.Linear(4, 3), nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.norm(self.one(x)) + self.other(x)) / 2

    inputs = random_inputs((5, 4))
    program = export(Heads(), inputs)
    for one in (program, program.run_decompositions()):
        folded = fold(one, inputs)
        assert folded.plan.merges
        assert folded.count("Linear") + folded.count("Addmm") == 1


class Merging(nn.Module):
    """What is done with some layers of four channels."""

    def __init__(self, does, **layers: nn.Module) -> None:
        super().__init__()
        self.does = does
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor, z: Tensor | None = None):
        return self.does(self, x) if z is None else self.does(self, x, z)


def wide(channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, padding=1)


def transposed(kernel: int, **options: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, 4, kernel, **options)


SHAPE_READERS = {
    "ones_like": torch.ones_like,
    "zeros_like": torch.zeros_like,
    "full_like": lambda y: torch.full_like(y, 2.0),
    "new_ones": lambda y: y.new_ones(y.shape),
    "expand_as": lambda y: y.new_zeros(()).expand_as(y),
    "a size": lambda y: torch.ones(y.size(0) + 1),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", SHAPE_READERS)
def test_a_shape_that_is_read_stays(name: str, dynamic: bool) -> None:
    read = SHAPE_READERS[name]

    def branches(net: Merging, x: Tensor) -> tuple[Tensor, ...]:
        one, two = net.a(x), net.b(x)
        return net.n(one) + net.m(two), read(one), read(two)

    def chain(net: Merging, x: Tensor) -> tuple[Tensor, ...]:
        middle = net.a(x)
        return net.n(net.b(middle)), read(middle)

    norms = {"n": nn.BatchNorm2d(4), "m": nn.BatchNorm2d(4)}
    stay = fold_module(Merging(branches, a=wide(), b=nn.Conv2d(4, 4, 1), **norms), (2, 4, 6, 6), dynamic=dynamic)
    row = fold_module(
        Merging(chain, a=nn.Conv2d(4, 8, 1), b=nn.Conv2d(8, 4, 3), **norms), (2, 4, 6, 6), dynamic=dynamic
    )
    known = name == "a size"  # which is that of the input
    for folded in (stay, row):
        assert bool(folded.plan.merges) == known
        assert [str(entry.code) for entry in folded.plan.apart] == ([] if known else ["shape_is_read"])


@pytest.mark.parametrize("small", [(2, 4, 6, 6), (1, 4, 1, 1), (4, 1, 1)])
def test_an_operand_that_is_left_keeps_its_name(small: tuple[int, ...]) -> None:
    """x goes out of x + z into the conv; z is an input, and may be broadcast; one more sum is smaller for that."""
    module = Merging(lambda net, x, z: (x + z) + net.n(net.a(x)), a=wide(), n=nn.BatchNorm2d(4))
    folded = fold_module(module, (2, 4, 6, 6), small)
    assert (len(folded.plan.merges), folded.count("add")) == (1, 1)
    twice = Merging(lambda net, x, z: ((x + z) + z.sigmoid()) + net.n(net.a(x)), a=wide(), n=nn.BatchNorm2d(4))
    inputs = random_inputs((2, 4, 6, 6), small)
    folded = fold(export(twice, inputs), inputs)
    assert (len(folded.plan.merges), folded.count("add")) == (1, 2)
    inner = next(node for node in folded.program.graph.nodes if "add" in str(node.target))
    assert inner.meta["val"].shape == small


TRANSPOSED = {
    "a smaller kernel": ({"kernel": 1}, {"kernel": 3, "padding": 1}),
    "other groups": ({"kernel": 3, "padding": 1, "groups": 4}, {"kernel": 3, "padding": 1}),
    "an output padding": (
        {"kernel": 1, "stride": 2, "output_padding": 1},
        {"kernel": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_transposed_convolution_that_stays_is_made_for_all(name: str, swapped: bool, decomposed: bool) -> None:
    """The other cannot stand for both: what is subtracted with it would have to change its sign."""
    one, two = TRANSPOSED[name][::-1] if swapped else TRANSPOSED[name]

    def forward(net: Merging, x: Tensor, z: Tensor) -> Tensor:
        return net.n(net.q(x) - (z.relu() - net.p(x)))

    module = Merging(forward, p=transposed(**two), q=transposed(**one), n=nn.BatchNorm2d(4))
    inputs = random_inputs((2, 4, 6, 5), (1, 4, 1, 1))
    program = export(module, inputs)
    folded = fold(program.run_decompositions() if decomposed else program, inputs)
    assert (len(folded.plan.merges), folded.count("ConvTranspose")) == (1, 1)
