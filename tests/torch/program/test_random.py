"""Random networks: a fold of their programs changes no output and no value that keeps its name."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_programs import TOLERANCE, check_values, fold, random_inputs
from torch_random import of_seed

from bnfold.torch.program.fold import fold_program

SHAPE = (2, 4, 4, 4)
OTHER_SHAPES = ((1, 4, 4, 4), (3, 4, 6, 8), (2, 4, 5, 4))
FORMS = ("conv", "mul-add", "keep")

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


def fold_seed(seed: int, *, decomposed: bool = False) -> None:
    inputs = random_inputs(SHAPE, seed=seed)
    open_ = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),) if seed % 4 > 1 else None
    program = torch.export.export(of_seed(seed), inputs, dynamic_shapes=open_, strict=False)
    program = program.run_decompositions() if decomposed else program
    folded = fold(program, inputs, leftover=FORMS[seed % 3]).program
    for other in map(random_inputs, OTHER_SHAPES) if open_ else ():
        try:
            program.module()(*other)
        except (AssertionError, RuntimeError):
            continue  # what the code does fixes a size
        check_values(program, folded, other, TOLERANCE)


@pytest.mark.parametrize("seed", range(20))
def test_folding_changes_no_value(seed: int) -> None:
    fold_seed(seed)


@pytest.mark.parametrize("seed", range(1000, 1005))
def test_folding_changes_no_value_after_decomposition(seed: int) -> None:
    fold_seed(seed, decomposed=True)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True)
@given(seed=st.integers(0, 2**32 - 1), decomposed=st.booleans())
def test_folding_changes_no_value_at_length(seed: int, decomposed: bool) -> None:
    fold_seed(seed, decomposed=decomposed)


def test_most_batch_norms_fold() -> None:
    """The networks are such that there is something to do, in many ways."""
    plans = [fold_program(_program(seed)).plan for seed in range(2000, 2015)]
    assert sum(plan.batch_norms_folded for plan in plans) > sum(plan.batch_norms_left for plan in plans) > 0
    assert {str(step.direction) for plan in plans for step in plan.steps} >= {"backward", "forward"}
    assert any(plan.merges for plan in plans)


def test_the_comparison_can_fail() -> None:
    """A bias that is off by one part in 10^8 is seen."""
    seen = 0
    for program in map(_program, range(10)):
        folded = fold_program(program).program
        new = (tensor for name, tensor in folded.state_dict.items() if tensor is not program.state_dict.get(name))
        bias = next((tensor for tensor in new if tensor.ndim == 1), None)
        if bias is None:
            continue
        bias += 1e-8 * bias.abs().max()
        try:
            check_values(program, folded, random_inputs(SHAPE), 1e-10)
        except AssertionError:
            seen += 1
    assert seen > 5


def _program(seed: int) -> torch.export.ExportedProgram:
    return torch.export.export(of_seed(seed), random_inputs(SHAPE), strict=False)
