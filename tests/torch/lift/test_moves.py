"""Each row of the rule table that torch has operators for: one example that a BN moves past, exact, and one that it
does not.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_lifting import Net, double, fold, graph_of, no_shift, node, trained

from bnfold.graph import Along, Gathered, Op, Picked
from bnfold.reasons import StopCode

CHANNELS = 8


def before(op, size: int = 6) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A convolution, the operator, a BN: the BN has to go backward."""
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(op(self.conv(x)))),
        conv=nn.Conv2d(3, CHANNELS, 3),
        bn=nn.LazyBatchNorm2d(),
    )
    return _settled(module, double(2, 3, size + 2, size + 2))


def behind(op, size: int = 6, channels: int = CHANNELS) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A BN, the operator, a convolution: the BN has to go forward."""
    module = Net(
        lambda self, x: self.conv(op(self.bn(torch.sigmoid(x)))), bn=nn.BatchNorm2d(channels), conv=nn.LazyConv2d(4, 1)
    )
    return _settled(module, double(2, channels, size, size))


def _settled(module: nn.Module, *inputs: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.no_grad():
        module.double().eval()(*inputs)
    return trained(module), inputs


BOTH_WAYS = {
    "clone": lambda y: y.clone(),
    "contiguous": lambda y: y.contiguous(),
    "detach": lambda y: y.detach(),
    "alias": torch.ops.aten.alias.default,
    "to the same dtype": lambda y: y.to(torch.float64),
    "dropout": lambda y: functional.dropout(y, 0.5, training=False),
    "dropout2d": lambda y: functional.dropout2d(y, 0.5, training=False),
    "alpha_dropout": lambda y: functional.alpha_dropout(y, 0.5, training=False),
    "transpose": lambda y: y.transpose(2, 3),
    "transpose to the back and again": lambda y: y.permute(0, 2, 3, 1).movedim(-1, 1),
    "swapaxes": lambda y: y.swapaxes(-1, -2),
    "mT": lambda y: y.mT,
    "flatten and unflatten": lambda y: y.flatten(2).unflatten(2, (6, 6)),
    "view": lambda y: y.view(2, CHANNELS, 36).view(2, CHANNELS, 4, 9),
    "reshape in two axes": lambda y: y.reshape(2, 2, 4, 6, 6).reshape(2, CHANNELS, 6, 6),
    "squeeze and unsqueeze": lambda y: y.unsqueeze(0).squeeze(0),
    "slice": lambda y: y[:, :, 1:-1, ::2],
    "narrow": lambda y: y.narrow(1, 2, 4),
    "slice of channels": lambda y: y[:, 2:6],
    "gather": lambda y: y.gather(2, torch.zeros(2, CHANNELS, 3, 6, dtype=torch.long)),
    "hstack": lambda y: torch.hstack(y.chunk(2, 1)),
    "index_select": lambda y: y.index_select(1, torch.tensor([3, 1, 4])),
    "index": lambda y: y[:, torch.tensor([3, -1, 4, 2])],
    "index in both axes": lambda y: y[:, :, torch.arange(3)[:, None], torch.tensor([1, 1, 2])[None]],
    "roll": lambda y: y.roll((1, -2), (1, 2)),
    "flip": lambda y: y.flip(1, 3),
    "channel_shuffle": lambda y: functional.channel_shuffle(y, 2),
    "avg_pool2d": lambda y: functional.avg_pool2d(y, 2, ceil_mode=True),
    "avg_pool2d without the padding": lambda y: functional.avg_pool2d(y, 3, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda y: functional.adaptive_avg_pool2d(y, 4),
    "max_pool2d": lambda y: functional.max_pool2d(y, 3, 2, 1),
    "adaptive_max_pool2d": lambda y: functional.adaptive_max_pool2d(y, 4),
    "mean": lambda y: y.mean((2, 3), keepdim=True),
    "mean without the axes": lambda y: y.mean((2, 3))[:, :, None, None],
    "amax": lambda y: y.amax((2, 3), keepdim=True),
    "max along an axis": lambda y: y.max(3, keepdim=True).values,
    "interpolate": lambda y: functional.interpolate(y, scale_factor=2.0),
    "interpolate bilinear": lambda y: functional.interpolate(y, scale_factor=1.5, mode="bilinear"),
    "interpolate bicubic": lambda y: functional.interpolate(y, size=(7, 9), mode="bicubic", align_corners=True),
    "interpolate antialiased": lambda y: functional.interpolate(y, size=(3, 4), mode="bilinear", antialias=True),
    "interpolate nearest-exact": lambda y: functional.interpolate(y, size=(3, 9), mode="nearest-exact"),
    "pad reflect": lambda y: functional.pad(y, (1, 2, 0, 1), mode="reflect"),
    "pad replicate": lambda y: functional.pad(y, (1, 2, 0, 1), mode="replicate"),
    "pad circular": lambda y: functional.pad(y, (1, 2, 0, 1), mode="circular"),
    "pad that only cuts": lambda y: functional.pad(y, (-1, -1, 0, -2)),
    "repeat in space": lambda y: y.repeat(1, 1, 2, 1),
    "repeat_interleave": lambda y: y.repeat_interleave(2, 3),
    "tile": lambda y: y.tile((2, 1)),
    "split": lambda y: torch.cat(y.split((2, 5, 1), 1)[::-1], 1),
    "chunk": lambda y: torch.cat(y.chunk(2, -3), -3),
    "tensor_split": lambda y: torch.cat(y.tensor_split((3, 5), 1), 1),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("where", [before, pytest.param(behind, marks=pytest.mark.slow)])
def test_a_batch_norm_moves_past(name, where):
    module, inputs = where(BOTH_WAYS[name])

    plan = fold(module, *inputs)

    assert plan.batch_norms_folded == 1, plan.left


DECOMPOSED_FURTHER = {"interpolate bicubic", "pad circular", "adaptive_max_pool2d", "tensor_split"}
"""What core aten has no operator for: an affine does not move past every piece of it."""


MASK = torch.tensor([[True, False, True, False, True, False]])
CHOICES = {
    "maximum": torch.maximum,
    "max of two": torch.max,
    "min of two": torch.min,
    "where": lambda one, other: torch.where(MASK, one, other),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_norm_moves_to_both_that_are_chosen_from(name, decomposed):
    module, inputs = before(lambda y: CHOICES[name](*y.chunk(2, 1)))

    assert fold(module, *inputs, decomposed=decomposed).batch_norms_folded == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BOTH_WAYS if name not in DECOMPOSED_FURTHER])
@pytest.mark.parametrize("where", [before, behind])
def test_a_batch_norm_moves_past_in_core_aten(name, where):
    module, inputs = where(BOTH_WAYS[name])

    plan = fold(module, *inputs, decomposed=True)

    assert plan.batch_norms_folded == 1, plan.left


def test_unbind_moves_forward():
    module, inputs = behind(lambda y: torch.cat([part[:, :, None] for part in y.unbind(2)[1:3]], 2))

    assert fold(module, *inputs).batch_norms_folded == 1


def test_pixel_unshuffle_moves_forward():
    module, inputs = behind(lambda y: functional.pixel_unshuffle(y, 2))

    assert fold(module, *inputs).batch_norms_folded == 1


ONLY_SCALES = {
    "relu": functional.relu,
    "leaky_relu": lambda y: functional.leaky_relu(y, 0.1),
    "prelu": lambda y: functional.prelu(y, torch.linspace(-0.5, 0.5, CHANNELS, dtype=torch.float64)),
    "rrelu": lambda y: functional.rrelu(y, training=False),
    "clamp": lambda y: y.clamp(min=0),
    "sum": lambda y: y.sum((2, 3), keepdim=True),
    "avg_pool2d with the padding": lambda y: functional.avg_pool2d(y, 3, padding=1),
    "avg_pool2d with a divisor": lambda y: functional.avg_pool2d(y, 3, divisor_override=4),
    "pad with zeros": lambda y: functional.pad(y, (1, 1, 2, 0)),
}


@pytest.mark.parametrize("name", ONLY_SCALES)
@pytest.mark.parametrize("shift", [False, True])
def test_only_scales_move_past(name, shift):
    module, inputs = behind(ONLY_SCALES[name])
    if not shift:
        no_shift(module.bn)

    plan = fold(module, *inputs)

    assert plan.batch_norms_left == shift
    if shift:
        assert plan.left[0].code in (StopCode.SHIFT, StopCode.NONLINEAR, StopCode.MODEL_INPUT)


@pytest.mark.parametrize("name", ["relu", "max_pool2d", "amax"])
def test_negative_scales_do_not_pass_what_keeps_order(name):
    op = {**ONLY_SCALES, **BOTH_WAYS}[name]
    module, inputs = behind(op)
    no_shift(module.bn)
    with torch.no_grad():
        module.bn.weight[2] *= -1

    plan = fold(module, *inputs)

    assert "is negative" in plan.left[0].reason


STOPS = {
    "to another dtype": (lambda y: y.to(torch.float32).to(torch.float64), StopCode.CHANGES_DTYPE),
    "gelu": (functional.gelu, StopCode.NONLINEAR),
    "dropout in training": (lambda y: functional.dropout(y, 0.5, training=True), StopCode.NO_RULE),
    "max_pool2d whose indices are read": (
        lambda y: functional.max_unpool2d(*functional.max_pool2d(y, 2, return_indices=True), 2),
        StopCode.NO_RULE,
    ),
    "pad with ones": (lambda y: functional.pad(y, (1, 1), value=1.0), StopCode.NO_RULE),
    "the same channels twice": (lambda y: y.index_select(1, torch.tensor([0, 0, 1])), StopCode.VARIES),
    "channels repeated": (lambda y: y.repeat(1, 2, 1, 1), StopCode.VARIES),
    "a mean over channels": (lambda y: y.mean(1, keepdim=True).expand(-1, 3, -1, -1), StopCode.VARIES),
    "roll of everything": (lambda y: y.roll(1), StopCode.NO_RULE),
    "bits as other numbers": (lambda y: y.view(torch.int64).view(torch.float64), StopCode.NO_RULE),
    "div rounded": (lambda y: torch.div(y, 3.0, rounding_mode="floor"), StopCode.NO_RULE),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_batch_norm_stops_behind(name):
    op, code = STOPS[name]
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(op(self.conv(x)))),
        conv=nn.Conv2d(3, CHANNELS, 1),
        bn=nn.LazyBatchNorm2d(),
    )
    module, inputs = _settled(module, double(2, 3, 6, 6))

    plan = fold(module, *inputs)

    assert [left.code for left in plan.left] == [code], plan.left


def test_sums_of_two_values_with_a_factor_are_opaque():
    module = Net(
        lambda self, x: self.bn(torch.add(self.one(x), self.two(x), alpha=2)),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
    )

    plan = fold(trained(module), double(2, 3, 5, 5))

    assert plan.left[0].code is StopCode.NO_RULE


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        torch.rsub,
        lambda a, b: torch.add(a, b, alpha=-1),
        lambda a, b: torch.concat((a, b), -3)[:, :4],
    ],
)
def test_a_batch_norm_goes_into_both_terms(combine):
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(combine(self.one(x), self.two(x)))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1, bias=False),
        bn=nn.BatchNorm2d(4),
    )
    plan = fold(trained(module, positive=False), double(2, 3, 5, 5))

    assert plan.batch_norms_folded == 1


@pytest.mark.parametrize(
    ("combine", "folds"),
    [(lambda a, b: a * b, True), (lambda a, b: a / (b * b + 1), True), (lambda a, b: (b * b + 1) / a, False)],
)
def test_scales_go_into_one_factor(combine, folds):
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(combine(self.one(x), torch.sigmoid(x[:, :1])))),
        one=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
    )
    trained(module)
    no_shift(module.bn)

    assert fold(module, double(2, 3, 5, 5)).batch_norms_folded == folds


def test_pixel_shuffle_moves_with_the_channels_of_its_blocks():
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(functional.pixel_shuffle(self.conv(x), 2))),
        conv=nn.Conv2d(3, 12, 1),
        bn=nn.BatchNorm2d(3),
    )

    assert fold(trained(module), double(2, 3, 5, 5)).batch_norms_folded == 1


def test_unknown_sizes_are_symbols():
    module = Net(lambda self, x: self.conv(x).flatten(2).mean(2), conv=nn.Conv2d(3, 4, 1))
    batch = torch.export.Dim("batch", min=2, max=9)

    graph = graph_of(trained(module), double(4, 3, 5, 5), dynamic=(({0: batch},),))

    found = node(graph, "flatten")
    assert found.inputs[0].shape is not None
    assert isinstance(found.inputs[0].shape[0], str)
    assert found.inputs[0].shape[1:] == (4, 5, 5)
    assert found.op is Op.RESHAPE
    assert node(graph, "mean").parameters == Along(frozenset({2}), keep=False)


def test_cuts_at_symbolic_positions_are_not_known():
    module = Net(lambda self, x, y: self.conv(x)[: y.shape[0]], conv=nn.Conv2d(3, 4, 1))
    sizes = ({0: torch.export.Dim("a", min=4, max=9)}, {0: torch.export.Dim("b", min=2, max=3)})

    graph = graph_of(trained(module), double(5, 3, 5, 5), double(3, 1), dynamic=(sizes,))

    parameters = node(graph, "slice").parameters
    assert isinstance(parameters, Picked)
    assert parameters.outputs == ({0: None},)


def test_positions_from_a_mask_are_opaque():
    graph = graph_of(Net(lambda self, x: (x * x)[x > 0]), double(2, 3, 4))

    assert node(graph, "index").op is Op.OPAQUE


def test_select_drops_its_axis():
    graph = graph_of(Net(lambda self, x: (x * x)[:, 1]), double(2, 3, 4))

    assert node(graph, "select").parameters == Gathered(1, 0, (1,))


def test_shape_reads_are_no_uses():
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y).view(y.shape[0], -1)

    module = Net(
        forward,
        conv=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
    )
    batch = torch.export.Dim("batch", min=2, max=9)

    plan = fold(trained(module), double(4, 3, 5, 5), dynamic=(({0: batch},),))

    assert plan.batch_norms_folded == 1
