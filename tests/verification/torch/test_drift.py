"""The bound of sums whose terms have one sign, for each operator of PyTorch that adds up products."""

import pytest
import torch
from torch import nn

import bnfold
from bnfold.report import Verdict
from bnfold.verification.judging.sites import SITE_LIMIT
from bnfold.verification.torch.sites import bounds


class Product(nn.Module):
    """A product with a stored matrix."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.weight = operation, nn.Parameter(torch.rand(2048, 16))
        self.bias = nn.Parameter(torch.rand(16))

    def forward(self, x):
        return self.operation(x, self.weight, self.bias)


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(512, 16, 3), nn.BatchNorm1d, (1, 512, 8)),
    "conv2d": (lambda: nn.Conv2d(512, 16, 3, groups=2), nn.BatchNorm2d, (1, 512, 6, 6)),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(1024, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d,
        (1, 1024, 4, 4),
    ),
    "linear": (lambda: nn.Linear(2048, 16), nn.BatchNorm1d, (32, 2048)),
    "matmul": (lambda: Product(lambda x, weight, _: x @ weight), nn.BatchNorm1d, (32, 2048)),
    "addmm": (lambda: Product(lambda x, weight, bias: torch.addmm(bias, x, weight)), nn.BatchNorm1d, (32, 2048)),
}


@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS.values(), ids=LAYERS)
def test_sums_of_terms_with_one_sign_keep_their_margin(monkeypatch, layer, norm, shape):
    torch.manual_seed(0)
    model = nn.Sequential(layer(), norm(16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        model[1].running_var.uniform_(0.5, 2)
    x = torch.rand(shape)
    folded = bnfold.fold(model, (x,)).model

    def worst():
        (site,) = bnfold.verify(model, folded, inputs=(x,), device="cpu").sites
        return site

    site = worst()
    assert site.verdict is Verdict.PASS
    assert site.ratio < SITE_LIMIT / 3
    monkeypatch.setattr(bounds, "drift", lambda terms: 0.0)
    assert worst().ratio > 4 * site.ratio
