"""Exported programs: every linear map takes the BN next to it, whatever reads its weight."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch_programs import export, fold, fold_module, random_inputs, randomised


def conv_bn(conv: nn.Module, channels: int) -> nn.Sequential:
    norms = {nn.Conv1d: nn.BatchNorm1d, nn.Conv3d: nn.BatchNorm3d, nn.ConvTranspose1d: nn.BatchNorm1d}
    norm = norms.get(type(conv), nn.BatchNorm3d if type(conv) is nn.ConvTranspose3d else nn.BatchNorm2d)
    return nn.Sequential(conv, norm(channels), nn.ReLU())


pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning")


CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 4, 3, bias=False), (2, 3, 9)),
    "2d": (nn.Conv2d(3, 4, 3), (2, 3, 8, 8)),
    "3d": (nn.Conv3d(3, 4, 2), (2, 3, 4, 5, 6)),
    "same": (nn.Conv2d(3, 4, 3, padding="same", bias=False), (2, 3, 8, 8)),
    "even same": (nn.Conv2d(3, 4, (2, 4), padding="same"), (2, 3, 8, 8)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 8, 8)),
    "strided and dilated": (nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=1), (2, 3, 9, 9)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 8, 8)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 9)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1, bias=False), (2, 3, 8, 8)),
    "transposed 3d": (nn.ConvTranspose3d(3, 4, 2), (2, 3, 3, 4, 5)),
    "transposed, as many in as out": (nn.ConvTranspose2d(4, 4, 3, groups=2), (2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    conv, shape = CONVOLUTIONS[name]
    folded = fold_module(conv_bn(conv, 4), shape)
    assert folded.count("BatchNorm") == 0
    assert set(folded.program.state_dict) == {"0.weight", "0.bias"}
    assert "batch_norm" in folded.names
    assert not any(found.startswith(("conv", "_")) for found in folded.names)


def test_unbatched() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv1d(5, 5, 3, padding=1), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))  # (5, 5): the BN takes the positions for the channels

    folded = fold_module(Net(), (5, 5))
    assert folded.codes == ["channel_axis"]
    assert (folded.count("Conv"), folded.count("mul"), folded.count("add")) == (1, 1, 1)


def test_linear() -> None:
    folded = fold_module(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()), (5, 3))
    assert folded.count("BatchNorm") == 0
    assert set(folded.program.state_dict) == {"0.weight", "0.bias"}
    assert set(folded.program.graph_signature.parameters) == {"0.weight", "0.bias"}


def test_linear_on_a_square_sequence_is_not_what_a_batch_norm_normalises() -> None:
    """(N, L, C) with L == C: the BN normalises the positions, whose axis is none of the Linear."""
    folded = fold_module(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (2, 4, 3))
    assert folded.plan.batch_norms_left == 1


def test_batch_norm_in_front_of_a_map() -> None:
    folded = fold_module(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    assert folded.names == ["conv2d"]  # what it computes is what it was


def test_scale_backward_and_shift_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.bn(self.first(x)).relu())

    folded = fold_module(Net(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0


class MatMul(nn.Module):
    def __init__(self, *, left: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3) if left else torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(4, 1) if left else torch.randn(4)) if bias else None
        self.bn = nn.BatchNorm1d(4)
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight @ x if self.left else x @ self.weight
        return self.bn(y if self.bias is None else y + self.bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_matmul(left: bool, bias: bool) -> None:
    folded = fold_module(MatMul(left=left, bias=bias), (2, 3, 5) if left else (5, 3))
    assert folded.count("BatchNorm") == 0
    assert folded.names[-1] == "batch_norm"
    assert (folded.count("MatMul"), folded.count("add")) == (1, 1)
    assert set(folded.program.state_dict) == {"weight", "bias"}


def test_addmm_with_beta() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=2.0))

    folded = fold_module(Net(), (5, 3))
    assert folded.count("BatchNorm") == 0
    assert folded.count("Addmm") == 1


class Twice(nn.Module):
    """One conv called twice; what follows decides whether its weight may change."""

    def __init__(self, *, same_norm: bool) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second = self.first if same_norm else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


@pytest.mark.parametrize("same_norm", [False, True])
def test_conv_called_twice(same_norm: bool) -> None:
    folded = fold_module(Twice(same_norm=same_norm), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    names = {"conv.weight_folded", "conv.weight_folded_2", "conv.bias_folded", "conv.bias_folded_2"}
    assert set(folded.program.state_dict) == names


def test_conv_used_elsewhere() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.conv(x.sigmoid())

    folded = fold_module(Net(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    names = {"conv.weight", "conv.bias", "conv.weight_folded", "conv.bias_folded"}
    assert set(folded.program.state_dict) == names
    for name in ("conv.weight", "conv.bias"):
        assert folded.program.state_dict[name] is folded.original.state_dict[name]


def test_one_conv_with_two_batch_norms() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.one(x).relu() - self.other(x).sigmoid()

    folded = fold_module(Net(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0  # written as convolutions
    assert folded.codes == ["other_consumers"] * 2


class Tied(nn.Module):
    """A Linear whose weight is that of another, or a part of it."""

    def __init__(self, *, part: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.bn = nn.BatchNorm1d(4)
        self.part = part
        if not part:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        other = F.linear(x, self.first.weight[1:]) if self.part else self.second(x)
        return self.bn(self.first(x)).sum() + other.sum()


@pytest.mark.parametrize("part", [False, True])
def test_tied_weights_are_not_changed_for_others(part: bool) -> None:
    folded = fold_module(Tied(part=part), (5, 4))
    assert folded.count("BatchNorm") == 0
    assert "first.weight_folded" in folded.program.state_dict
    assert folded.program.state_dict["first.weight"] is folded.original.state_dict["first.weight"]
    assert set(folded.program.state_dict) >= {"first.weight", "first.bias", "first.weight_folded"}


def test_a_module_under_two_names_stays_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.alias = self.conv

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    folded = fold_module(Net(), (2, 3, 8, 8))
    state = folded.program.state_dict
    assert set(state) == {"conv.weight", "conv.bias", "alias.weight", "alias.bias"}
    assert state["conv.weight"] is state["alias.weight"]


def test_weight_norm_becomes_a_plain_weight() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    folded = fold_module(conv_bn(conv, 4), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    assert set(folded.program.state_dict) == {"0.weight", "0.bias"}
    assert len(folded.names) == 2


def test_operators_on_weights_are_not_counted() -> None:
    class Standardised(nn.Module):
        """As in BiT: the weight is normalised by a batch_norm with its own statistics."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, 4, -1)
            return F.conv2d(x, F.batch_norm(flat, None, None, training=True).reshape_as(self.weight))

    folded = fold_module(Standardised(), (2, 3, 8, 8))
    assert folded.result.ops_before == folded.result.ops_after == {"Conv": 1}
    assert folded.plan.batch_norms == 0


def test_weight_that_is_a_view_or_a_cast() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(F.linear(x, self.weight.t().float().double()))

    folded = fold_module(Net(), (5, 3))
    assert folded.count("BatchNorm") == 0
    assert folded.names == ["batch_norm"]
    assert set(folded.program.state_dict) == {"weight_folded", "bias"}


def test_weight_that_is_a_buffer_or_a_literal() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.randn(4, 3, 1))
            self.register_buffer("lost", torch.randn(4, 3, 1), persistent=False)
            self.one, self.two, self.three = (nn.BatchNorm1d(4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            literal = torch.tensor([[[1.0], [2], [3]]] * 4, dtype=torch.float64)
            one, two = self.one(F.conv1d(x, self.kept)), self.two(F.conv1d(x.sin(), self.lost))
            return one + two + self.three(F.conv1d(x.cos(), literal))

    folded = fold_module(Net(), (5, 3, 7))
    assert folded.count("BatchNorm") == 0
    signature = folded.program.graph_signature
    assert set(signature.buffers) == {"kept", "lost"}
    assert set(folded.program.constants) == {"lost"}
    assert not torch.equal(folded.program.constants["lost"], folded.original.constants["lost"])


def test_new_names_do_not_collide() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.conv.register_buffer("bias_folded", torch.ones(1))
            self.conv.bias_other = nn.Identity()
            self.register_parameter("conv_bias", nn.Parameter(torch.zeros(1)))
            self.conv.register_parameter("extra", nn.Parameter(torch.ones(1)))

        def forward(self, x: Tensor) -> Tensor:
            p_conv_bias = self.bn(self.conv(x))
            return p_conv_bias * self.conv_bias + self.conv.bias_folded + self.conv.extra

    folded = fold_module(Net(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    assert "conv.bias" in folded.program.state_dict


def test_kept_properties() -> None:
    """dtype, device, memory format and requires_grad of what changes are those of the original."""
    module = conv_bn(nn.Conv2d(3, 4, 3, bias=False), 4).to(memory_format=torch.channels_last)
    module[0].weight.requires_grad_(False)
    module[1].requires_grad_(True)
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold(export(module, inputs), inputs)
    weight = folded.program.state_dict["0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(weight, nn.Parameter)
    assert not weight.requires_grad


def test_new_weights_are_laid_out_like_those_before() -> None:
    """A conv with its channels last in the weight gives an output with its channels last."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(F.conv2d(x, self.weight * 2))

    folded = fold_module(Net(), (2, 3, 8, 8))
    assert folded.program.state_dict["weight_folded"].is_contiguous(memory_format=torch.channels_last)


def test_arguments_given_by_name() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    program = export(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)), inputs)
    conv = next(node for node in program.graph.nodes if node.name == "conv2d")
    data, weight, bias, stride = conv.args
    conv.args, conv.kwargs = (data,), {"stride": stride, "bias": bias, "weight": weight}
    program.graph_module.recompile()
    folded = fold(program, inputs)
    assert folded.count("BatchNorm") == 0


def test_bias_of_a_product_in_a_region_of_autocast() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bn = nn.Parameter(torch.randn(3, 4)), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.bn(x @ self.weight)

    inputs = random_inputs((5, 3), dtype=torch.float32)
    program = torch.export.export(randomised(Net()).float(), inputs, strict=False)
    folded = fold(program, inputs, tolerance=0.02)
    assert folded.count("BatchNorm") == 0
    assert folded.count("add") == 1
