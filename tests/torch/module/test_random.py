"""Random modules: whatever the fold makes of them computes the same, and the module itself is as it was."""

import pytest
from torch_modules import EXACT, distance, fold, inputs, run
from torch_random_modules import module_of_seed

import bnfold
from bnfold.torch.capture.export import quiet

EXAMPLE = inputs((2, 4, 5, 4), seed=3)
OTHER_SIZES = ((1, 4, 5, 4), (3, 4, 7, 6), (2, 4, 4, 9), (1, 4, 6, 8))


def check_seed(seed: int) -> int:
    module = module_of_seed(seed)
    try:
        run(module, EXAMPLE)
    except RuntimeError:
        return 0
    with quiet():
        result = fold(module, EXAMPLE)
        if seed % 5 == 0:
            assert not bnfold.fold(result.model, EXAMPLE).changed
    for shape in OTHER_SIZES:
        other = inputs(shape, seed=seed)
        try:
            reference = run(module, other)
        except RuntimeError:
            continue
        assert distance(run(result.model, other), reference) < EXACT
    return len(result.plan.folds)


@pytest.mark.parametrize("seed", range(8))
def test_random_modules(seed: int) -> None:
    check_seed(seed)


@pytest.mark.slow
def test_many_random_modules() -> None:
    assert sum(map(check_seed, range(100, 140))) > 25
