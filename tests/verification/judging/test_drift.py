"""How rounding of partial sums adds up, against sums in float32 one term after the other."""

import numpy as np
import pytest

from bnfold.verification.judging.drift import drift, terms_of_transposed

UNIT = 2.0**-24


@pytest.mark.parametrize("terms", [16, 256, 4096])
def test_sums_of_one_sign_scatter_by_about_the_drift(terms):
    values = np.random.default_rng(0).random((2000, terms)).astype(np.float32)
    one_by_one = np.add.accumulate(values, axis=1)[:, -1]
    exact = values.sum(axis=1, dtype=np.float64)
    scatter = np.std((one_by_one - exact) / (UNIT * exact))
    assert 0.5 * drift(terms) < scatter < 1.5 * drift(terms)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (3, 1), (1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_terms_of_a_transposed_convolution_are_those_that_meet(kernel, stride, groups):
    torch = pytest.importorskip("torch")
    weight = torch.ones(4, 3, kernel, kernel)
    result = torch.nn.functional.conv_transpose2d(torch.ones(1, 4, 9, 9), weight, stride=stride, groups=groups)
    assert terms_of_transposed(weight.shape, groups, (stride, stride)) == result.max()
