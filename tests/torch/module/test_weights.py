"""Where new weights can be put in a module: tied, computed, functional, with and without room for a bias."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch_modules import EXACT, codes, distance, fold, folded_names, images, inputs, run, trained

import bnfold
from bnfold.reasons import StopCode


class Layers(nn.Module):
    """Layers that a subclass puts together."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_becomes_a_parameter_where_it_folds(kind: str) -> None:
    torch.manual_seed(0)
    compute = COMPUTED[kind]
    module = nn.Sequential(compute(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), compute(nn.Linear(5, 5)))
    module = trained(module)
    example = inputs((2, 3, 7, 7))
    run(module, example)
    classes = [type(module[0]), type(module[3])]
    result = fold(module, example)
    assert folded_names(result) == ["1"]
    conv = result.model[0]
    assert type(conv) is nn.Conv2d
    assert isinstance(conv.weight, nn.Parameter)
    assert conv.weight.requires_grad
    assert not conv._forward_pre_hooks
    assert sorted(result.model.state_dict())[:2] == ["0.bias", "0.weight"]
    again = copy.deepcopy(result.model)
    again.load_state_dict(result.model.state_dict())
    assert distance(run(again, example), run(module, example)) < EXACT
    # What does not fold stays computed, and the original works as before.
    assert [type(module[0]), type(module[3])] == classes
    assert [*dict(module.named_parameters())] != [*dict(result.model.named_parameters())]
    assert "3.weight" not in dict(result.model.named_parameters())


def test_one_of_two_parametrizations_of_a_layer_goes() -> None:
    class Doubled(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias * 2

    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    parametrize.register_parametrization(conv, "bias", Doubled())
    module = trained(nn.Sequential(nn.BatchNorm2d(3), conv, nn.BatchNorm2d(4)))
    folded = fold(module, images()).model
    assert type(folded[1]) is nn.Conv2d
    kept = parametrize.register_parametrization(nn.Conv2d(3, 4, 3, bias=False), "weight", Doubled())
    folded = fold(trained(nn.Sequential(kept, nn.BatchNorm2d(4))), images()).model
    assert [*dict(folded.named_parameters())] == ["0.bias", "0.weight"]


def test_spectral_norm_in_training_mode_is_no_constant() -> None:
    module = trained(nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    module[0].train()
    result = bnfold.fold(module, images())
    assert codes(result) == {"1": StopCode.WEIGHT_NOT_CONSTANT}


def test_a_tied_parametrization() -> None:
    layers = [parametrizations.weight_norm(nn.Conv2d(3, 3, 1)) for _ in range(2)]
    layers[0].parametrizations.weight.original1 = layers[1].parametrizations.weight.original1
    module = trained(nn.Sequential(*layers, nn.BatchNorm2d(3)))
    assert folded_names(fold(module, images())) == ["2"]
    reference = run(module, images())
    bnfold.fold(module, images(), inplace=True)
    assert distance(run(module, images()), reference) < 1e-10


def test_a_tied_pruned_weight() -> None:
    layers = [prune.random_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.3) for _ in range(2)]
    layers[0].weight_orig = layers[1].weight_orig
    module = trained(nn.Sequential(*layers, nn.BatchNorm2d(3)))
    assert folded_names(fold(module, images())) == ["2"]
    reference = run(module, images())
    bnfold.fold(module, images(), inplace=True)
    assert distance(run(module, images()), reference) < 1e-10


def test_tied_weights() -> None:
    class Tied(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.bn(self.encoder(x)).relu())

    module = trained(Tied(encoder=nn.Linear(4, 4), decoder=nn.Linear(4, 4, bias=False), bn=nn.BatchNorm1d(4)))
    module.decoder.weight = module.encoder.weight
    assert codes(fold(module, inputs((5, 4)))) == {"bn": StopCode.SHARED_WEIGHT}


@pytest.mark.parametrize("as_view", [False, True])
def test_tied_weights_that_change_alike_stay_tied(as_view: bool) -> None:
    class Both(Layers):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.bn(self.first(x)).relu(), self.bn(self.second(y))

    module = trained(Both(first=nn.Linear(4, 4), second=nn.Linear(4, 4, bias=False), bn=nn.BatchNorm1d(4)))
    shared = module.first.weight
    module.second.weight = nn.Parameter(shared.data.view(4, 4)) if as_view else shared
    example = inputs((5, 4), (5, 4))
    folded = fold(module, example).model
    assert type(folded.bn) is nn.Identity
    if not as_view:
        assert folded.first.weight is folded.second.weight
    reference = run(module, example)
    bnfold.fold(module, example, inplace=True)
    assert distance(run(module, example), reference) < 1e-10
    assert module.first.weight.data_ptr() == module.second.weight.data_ptr()


def test_a_weight_tied_to_a_layer_that_the_example_does_not_run() -> None:
    class Other(Layers):
        def forward(self, x: Tensor, use_other: bool = False) -> Tensor:
            return self.other(x) if use_other else self.bn(self.conv(x))

    module = trained(Other(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), other=nn.Conv2d(3, 4, 3)))
    module.other.weight = module.conv.weight
    assert codes(fold(module, images())) == {"bn": StopCode.SHARED_WEIGHT}


def test_parameters_that_overlap_in_memory() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    storage = torch.randn(20, dtype=torch.float64)
    module[0].weight = nn.Parameter(storage[:12].view(4, 3, 1, 1))
    module[3].weight = nn.Parameter(storage[4:16].view(3, 4, 1, 1))
    assert codes(fold(module, images())) == {"1": StopCode.SHARED_WEIGHT}
    module[3].weight = nn.Parameter(storage[:12].view(3, 4, 1, 1))
    assert codes(fold(module, images())) == {"1": StopCode.SHARED_WEIGHT}


def test_parameters_side_by_side_in_memory() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    storage = torch.randn(24, dtype=torch.float64)
    module[0].weight = nn.Parameter(storage[:12].view(4, 3, 1, 1))
    module[3].weight = nn.Parameter(storage[12:].view(3, 4, 1, 1))
    assert folded_names(fold(module, images())) == ["1"]
    reference = run(module, images())
    bnfold.fold(module, images(), inplace=True)
    assert distance(run(module, images()), reference) < 1e-10


def test_an_expanded_weight() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    module[0].weight = nn.Parameter(torch.randn(1, 3, 1, 1, dtype=torch.float64).expand(4, 3, 1, 1))
    assert codes(bnfold.fold(module, images())) == {"1": StopCode.SHARED_WEIGHT}


def test_a_weight_that_something_else_reads() -> None:
    class Penalised(Layers):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.bn(self.conv(x)), self.conv.weight.square().sum()

    module = trained(Penalised(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    assert codes(fold(module, images())) == {"bn": StopCode.SHARED_WEIGHT}


def test_a_weight_that_is_returned() -> None:
    class Returned(Layers):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.bn(self.conv(x)), self.conv.weight

    module = trained(Returned(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    assert codes(fold(module, images())) == {"bn": StopCode.SHARED_WEIGHT}


def test_a_weight_that_code_computes() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    class Inner(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight * 2, bias)

    for layer in (Standardised(3, 4, 3), Inner(3, 4, 3)):
        module = trained(nn.Sequential(layer, nn.BatchNorm2d(4)))
        assert codes(fold(module, images())) == {"1": StopCode.NEEDS_GRAPH}


def test_a_weight_with_code_on_the_instance() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    conv = module[0]
    conv.forward = lambda x: functional.conv2d(x, conv.weight * 2, conv.bias)
    assert codes(bnfold.fold(module, images())) == {"1": StopCode.NEEDS_GRAPH}


def test_functional_layers_with_parameters() -> None:
    class Functional(nn.Module):
        def __init__(self, bias: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.bias = nn.Parameter(torch.randn(4)) if bias else None
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(functional.conv2d(x, self.weight, self.bias))

    assert folded_names(fold(trained(Functional(True)), images())) == ["bn"]
    assert codes(fold(trained(Functional(False)), images())) == {"bn": StopCode.NEEDS_GRAPH}


def test_a_bias_of_another_size_than_the_output() -> None:
    class OneBias(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(1, size))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.matmul(x, self.weight) + self.bias)

    example = inputs((5, 3))
    assert [*codes(fold(trained(OneBias(1)), example))] == ["bn"]
    result = fold(trained(OneBias(4)), example)
    assert folded_names(result) == ["bn"]
    assert result.model.bias.shape == (1, 4)


def test_a_matrix_product_has_no_place_for_a_bias() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bn = nn.Parameter(torch.randn(3, 4)), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.matmul(x, self.weight))

    assert codes(fold(trained(Product()), inputs((5, 3)))) == {"bn": StopCode.NEEDS_GRAPH}
    module = trained(Product())
    with torch.no_grad():
        module.bn.bias.zero_()
        module.bn.running_mean.zero_()
    assert folded_names(fold(module, inputs((5, 3)))) == ["bn"]


def test_a_scaled_bias() -> None:
    class Scaled(nn.Module):
        def __init__(self, beta: int) -> None:
            super().__init__()
            self.weight, self.bias, self.beta = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4)), beta
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.addmm(self.bias, x, self.weight, beta=self.beta, alpha=3))

    assert codes(fold(trained(Scaled(2)), inputs((5, 3)))) == {"bn": StopCode.NEEDS_GRAPH}
    assert folded_names(fold(trained(Scaled(1)), inputs((5, 3)))) == ["bn"]


def test_a_layer_of_its_own_uses_a_bias_or_not() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)

    class Bare(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight)

    result = fold(trained(nn.Sequential(Same(3, 4, 3, bias=False), nn.BatchNorm2d(4))), images())
    assert folded_names(result) == ["1"]
    assert isinstance(result.model[0].bias, nn.Parameter)
    module = trained(nn.Sequential(Bare(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    result = fold(module, images())
    assert codes(result) == {"1": StopCode.NEEDS_GRAPH}
    assert module[0].bias is result.model[0].bias is None


def test_a_bias_only_where_there_is_a_shift() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)

    for layer in (Same(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)):
        module = trained(nn.Sequential(layer, nn.BatchNorm2d(4)))
        with torch.no_grad():
            module[1].bias.zero_()
            module[1].running_mean.zero_()
        result = fold(module, images())
        assert folded_names(result) == ["1"]
        assert result.model[0].bias is None


def test_a_weight_in_a_buffer() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(4, 3, 3, 3))
            self.register_buffer("bias", torch.randn(4), persistent=False)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(functional.conv2d(x, self.weight, self.bias))

    result = fold(trained(Fixed()), images())
    assert folded_names(result) == ["bn"]
    assert [*dict(result.model.named_buffers())] == ["weight", "bias"]
    assert [*result.model.state_dict()] == ["weight"]


def test_attention_without_a_bias_in_its_output() -> None:
    """nn.MultiheadAttention reads weights of its submodule itself."""

    class Attention(nn.Module):
        def __init__(self, bias: bool) -> None:
            super().__init__()
            self.attention, self.bn = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.attention(x, x, x, need_weights=False)[0].transpose(1, 2))

    example = inputs((2, 5, 8))
    assert folded_names(fold(trained(Attention(True)), example)) == ["bn"]
    assert [*codes(fold(trained(Attention(False)), example))] == ["bn"]
