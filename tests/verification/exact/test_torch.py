"""The exact gate for programs and modules: what it proves and what it catches."""

import warnings
from collections.abc import Callable

import exact_mutations
import pytest
import torch
from exact_faults import MUTATIONS
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch_modules import inputs, run
from torch_programs import random_inputs
from torch_random import of_seed
from torch_random_modules import module_of_seed

import bnfold
from bnfold.report import Verdict
from bnfold.torch.capture.export import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning"),  # of hooks that compute a weight
]

EXAMPLE = inputs((2, 4, 5, 4), seed=3)
NOT_EXACT = ("it is inside of",)


def convolutions(*, affine: bool = True, bias: bool = True) -> nn.Module:
    """Two convolutions with BNs, and a residual sum."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 4, 1, bias=bias)
            self.norm, self.other = (nn.BatchNorm2d(4, affine=affine) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.first(x)).relu()
            return y + self.other(self.second(y))

    net = Net()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return net.eval()


class FrozenBatchNorm2d(nn.Module):
    """As in torchvision and detectron2, or with its epsilon in the code."""

    def __init__(self, channels: int, eps: float | None = 1e-5) -> None:
        super().__init__()
        if eps is not None:
            self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + getattr(self, "eps", 1e-3)).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Mixed(nn.Module):
    """A parametrization of two elements each."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 0.3 * weight + weight.flip(0)


def mixed(layer: nn.Module) -> nn.Module:
    for name in ("weight", "bias"):
        parametrize.register_parametrization(layer, name, Mixed())
    return layer


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda net: parametrizations.weight_norm(net.first),
    "weight_norm as a hook": lambda net: old_weight_norm(net.first),
    "spectral_norm": lambda net: parametrizations.spectral_norm(net.first),
    "spectral_norm as a hook": lambda net: nn.utils.spectral_norm(net.first),
    "pruning": lambda net: prune.random_unstructured(net.first, "weight", 0.3),
    "weight and bias": lambda net: mixed(net.first),
    "frozen": lambda net: (setattr(net, "norm", FrozenBatchNorm2d(4)), setattr(net, "other", FrozenBatchNorm2d(4))),
    "frozen, epsilon in the code": lambda net: setattr(net, "other", FrozenBatchNorm2d(4, None)),
}
"""Parameters that expressions compute anew at each call."""


def computed(name: str) -> nn.Module:
    net = convolutions()
    COMPUTED[name](net)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "mask" not in key and not key.endswith(("_u", "_v")):
                tensor.copy_(torch.rand(tensor.shape) * 1.5 + 0.5)
    return net.eval()


def exported(module: nn.Module, *, dynamic: bool = False) -> torch.export.ExportedProgram:
    shapes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC} if dynamic else {}
    return torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(shapes,), strict=False)


class TestPrograms:
    @pytest.mark.parametrize("leftover", ["conv", "mul-add", "keep"])
    @pytest.mark.parametrize("affine", [True, False])
    def test_a_right_fold_is_proved(self, leftover: str, affine: bool) -> None:
        found = bnfold.fold(exported(convolutions(affine=affine)), leftover=leftover).check()
        assert (found.verdict, found.sizes) == (Verdict.PASS, 1), found.reason
        assert found.equal == found.regions > 0

    def test_open_sizes_are_tried_twice(self) -> None:
        found = bnfold.fold(exported(convolutions(), dynamic=True), check=True).check()
        assert (found.verdict, found.sizes) == (Verdict.PASS, 2), found.reason

    @pytest.mark.parametrize("seed", range(12))
    def test_random_programs_are_equal(self, seed: int) -> None:
        program = torch.export.export(of_seed(seed), random_inputs((3, 4, 4, 4)), strict=False)
        assert bnfold.fold(program).check().verdict is Verdict.PASS

    @pytest.mark.parametrize("name", ["channels reversed at a map", "bias not scaled", "other readers not looked at"])
    def test_faults_are_caught(self, name: str) -> None:
        mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
        verdicts = set()
        for seed in range(12):
            program = torch.export.export(of_seed(seed), random_inputs((3, 4, 4, 4)), strict=False)
            # A merge that overlooks a reader makes a plan that nobody can carry out; there is nothing to compare then.
            with exact_mutations.broken(mutation):
                verdicts.add(bnfold.fold(program, merge=False).check().verdict)
        assert Verdict.FAIL in verdicts

    @pytest.mark.parametrize("name", COMPUTED)
    def test_computed_parameters_are_exact(self, name: str) -> None:
        result = bnfold.fold(exported(computed(name)))
        found = result.check()
        assert len(result.plan.folds) == 2
        assert (found.verdict, found.equal) == (Verdict.PASS, found.regions), found.reason

    def test_an_expression_that_no_parametrization_computes_is_exact(self) -> None:
        class Standardised(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
                return self._conv_forward(x, weight / weight.std(), self.bias)

        net = convolutions()
        net.first = Standardised(3, 4, 3, padding=1)
        result = bnfold.fold(exported(net))
        assert len(result.plan.folds) == 2
        assert result.check().verdict is Verdict.PASS

    @pytest.mark.parametrize("name", ["weight_norm", "frozen"])
    @pytest.mark.parametrize("fault", ["channels reversed at a map", "bias not scaled"])
    def test_faults_in_computed_parameters_are_caught(self, name: str, fault: str) -> None:
        with exact_mutations.broken(next(mutation for mutation in MUTATIONS if mutation.name == fault)):
            assert bnfold.fold(exported(computed(name))).check().verdict is Verdict.FAIL
            assert bnfold.fold(computed(name), (torch.randn(2, 3, 8, 8),)).check().verdict is Verdict.FAIL

    @pytest.mark.parametrize(
        ("pool", "verdict"),
        [
            (nn.AvgPool2d(56), Verdict.PASS),
            (nn.AvgPool2d(49, padding=5, count_include_pad=False), Verdict.INCONCLUSIVE),
        ],
    )
    def test_averages_over_large_windows(self, pool: nn.Module, verdict: Verdict) -> None:
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.BatchNorm2d(4)).eval()
        program = torch.export.export(layers, (torch.randn(1, 3, 114, 58),), strict=False)
        assert bnfold.fold(program).check().verdict is verdict

    @pytest.mark.parametrize("seed", range(3))
    def test_weights_in_bfloat16(self, seed: int) -> None:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16).eval()
        module[1].load_state_dict(
            {
                key: torch.rand_like(value, dtype=torch.bfloat16) + 0.5 if value.dim() else value
                for key, value in module[1].state_dict().items()
            }
        )
        program = torch.export.export(module, (torch.randn(2, 3, 8, 8, dtype=torch.bfloat16),))
        assert bnfold.fold(program).check().verdict is Verdict.PASS

    @pytest.mark.parametrize(
        "activation", [lambda x: x * nn.functional.relu6(x + 3) / 6, lambda x: 0.5 * x * (1 + torch.erf(x * 0.7))]
    )
    def test_an_activation_is_recognised_by_its_own_number(
        self, activation: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.parts = convolutions()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                first: torch.Tensor = self.parts.norm(self.parts.first(x))
                second: torch.Tensor = self.parts.other(self.parts.second(activation(first)))
                return second

        found = bnfold.fold(exported(Net().eval())).check()
        assert (found.verdict, found.regions) == (Verdict.PASS, 2), found.reason

    def test_verify_runs_it_first(self) -> None:
        report = bnfold.fold(exported(convolutions())).verify(device="cpu", samples=1)
        assert report.verdict is Verdict.PASS
        assert report.exact is not None
        assert report.exact.equal == report.exact.regions > 0


class TestModules:
    @pytest.mark.parametrize("affine", [True, False])
    def test_a_right_fold_is_proved(self, affine: bool) -> None:
        module = convolutions(affine=affine)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        found = bnfold.fold(module, (torch.randn(2, 3, 8, 8),)).check()
        assert (found.verdict, found.equal) == (Verdict.PASS, found.regions), found.reason
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert module.norm.eps == 1e-5

    @pytest.mark.parametrize("name", COMPUTED)
    def test_computed_parameters_are_exact(self, name: str) -> None:
        module = computed(name)
        before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        result = bnfold.fold(module, (torch.randn(2, 3, 8, 8),))
        found = result.check()
        assert len(result.plan.folds) == 2
        assert (found.verdict, found.equal) == (Verdict.PASS, found.regions), found.reason
        assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())

    def test_in_place_there_is_nothing_to_compare_with(self) -> None:
        result = bnfold.fold(convolutions(), (torch.randn(2, 3, 8, 8),), inplace=True)
        with pytest.raises(bnfold.UsageError, match="its original is gone"):
            result.check()

    @pytest.mark.parametrize("seed", range(6))
    def test_random_modules_are_equal_or_not_exact(self, seed: int) -> None:
        module = module_of_seed(seed)
        try:
            run(module, EXAMPLE)
        except RuntimeError:
            pytest.skip("torch refuses the module")
        with quiet():
            found = bnfold.fold(module, EXAMPLE).check()
        assert all(any(reason in region.reason for reason in NOT_EXACT) for region in found.unproved), found.reason

    def test_a_wrong_fold_is_an_error(self) -> None:
        mutation = next(mutation for mutation in MUTATIONS if mutation.name == "channels reversed at a map")
        with (
            exact_mutations.broken(mutation),
            pytest.raises(bnfold.VerificationError, match="the fold is wrong") as caught,
        ):
            bnfold.fold(convolutions(), (torch.randn(2, 3, 8, 8),), check=True)
        assert caught.value.exit_code == 1


def exports(module: nn.Module, count: list[None], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often torch.export is asked while a fold that is right is checked."""
    result = bnfold.fold(module, (torch.rand(2, 3, 5, 4),))
    real = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: (count.append(None), real(*args, **kwargs))[1])
    found = result.check()
    assert (found.verdict, found.unproved) == (Verdict.PASS, ())
    assert found.regions
    return len(count)


def test_a_stand_in_is_planned_without_running_it(monkeypatch):
    assert exports(convolutions(bias=False), [], monkeypatch) == 1


class EpsilonElsewhere(nn.Module):
    """The epsilon of a layer is read by code that is not the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolutions()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) / (1 + self.inner.norm.eps)


class EpsilonInConstant(EpsilonElsewhere):
    """It is read by code that computes with parameters alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.inner.first.bias.reshape(4, 1, 1) / (0.5 + self.inner.norm.eps)


class OwnForward(nn.BatchNorm2d):
    """A batch norm that hands another epsilon on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=2 * self.eps
        )


def with_own_forward() -> nn.Module:
    net = convolutions()
    norm = OwnForward(4).eval()
    norm.load_state_dict(net.norm.state_dict())
    net.norm = norm
    return net


def with_parametrization() -> nn.Module:
    net = convolutions()
    parametrizations.weight_norm(net.first)
    return net


class WithConstant(nn.Module):
    """A tensor that is no parameter and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factor = convolutions(), torch.tensor([2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.factor


@pytest.mark.parametrize(
    ("make", "times"),
    [
        (EpsilonElsewhere, 3),
        (EpsilonInConstant, 3),
        (with_own_forward, 1),
        (with_parametrization, 2),
        (WithConstant, 2),
    ],
)
def test_a_stand_in_is_run_where_more_than_tensors_and_epsilons_differ(make, times, monkeypatch):
    assert exports(make().eval(), [], monkeypatch) == times


@pytest.mark.parametrize("idle", [nn.Dropout(), nn.Sequential(nn.Identity(), nn.Dropout2d())])
def test_what_a_region_begins_with_twice_is_fed_once(idle: nn.Module) -> None:
    """The BN takes the skip over: what is behind the dropout stays, and the original reads what is before it, too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.idle = nn.BatchNorm2d(4), idle

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.relu()
            return (self.norm(self.idle(y)) + y).relu()

    with quiet():
        program = torch.export.export(Net().double().eval(), EXAMPLE)
    result = bnfold.fold(program)
    assert len(result.plan.merges) == 1
    assert result.verify().exact.verdict is Verdict.PASS
