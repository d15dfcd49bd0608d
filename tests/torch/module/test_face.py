"""`bnfold.fold` of a module as its caller meets it: verification on request, and arrays of another kind."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402

ARRAY = np.zeros((1, 3, 8, 8), np.float32)
X = torch.zeros(1, 3, 8, 8)


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def test_a_module_verifies_with_its_example():
    result = bnfold.fold(make(), (X,), verify=True)
    assert result.report.verdict == "pass"
    assert result.parameters == (3 * 4 * 9 + 4 + 4 * 4, 3 * 4 * 9 + 4)
    assert result.verify(samples=1, device="cpu").verdict == "pass"


def test_what_is_folded_in_place_has_no_original():
    module = make()
    with pytest.raises(bnfold.UsageError, match="its original is gone"):
        bnfold.fold(module, (X,), inplace=True, verify=True)
    assert isinstance(module[1], nn.BatchNorm2d)
    result = bnfold.fold(module, (X,), inplace=True)
    with pytest.raises(bnfold.UsageError, match="its original is gone"):
        result.verify()


@pytest.mark.parametrize("inputs", [ARRAY, (ARRAY,), {"input": ARRAY}, ((ARRAY,), {})])
def test_numpy_arrays_as_example_inputs(inputs):
    for call in (bnfold.fold, bnfold.inspect):
        with pytest.raises(bnfold.UsageError) as caught:
            call(make(), inputs)
        assert "torch.from_numpy(array)" in caught.value.hint


def test_numpy_arrays_that_a_module_takes_are_fine():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make()

        def forward(self, array):
            return self.layers(torch.from_numpy(array))

    assert bnfold.fold(Takes().eval(), (ARRAY,)).plan.batch_norms_folded == 1
