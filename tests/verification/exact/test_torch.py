"""The exact gate for programs and modules: what it proves and what it catches."""

import exact_mutations
import pytest
import torch
from exact_faults import MUTATIONS
from torch import nn
from torch_modules import inputs, run
from torch_programs import random_inputs
from torch_random import of_seed
from torch_random_modules import module_of_seed

import bnfold
from bnfold.report import Verdict
from bnfold.torch.capture.export import quiet

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

EXAMPLE = inputs((2, 4, 5, 4), seed=3)
NOT_EXACT = ("the sums were not exact", "it is inside of")


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
