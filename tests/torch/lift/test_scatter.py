"""Sums at places that an index names, as graph networks have them, on the outputs of the original in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch_lifting import Net, double, fold, no_shift, trained

from bnfold.reasons import StopCode

PLACES = torch.tensor([0, 1, 1, 4, 4, 4, 2])


def rows(messages: Tensor) -> Tensor:
    return PLACES[:, None].expand_as(messages)


ON_ZEROS = {
    "index_add": lambda m: torch.zeros(5, 4, dtype=m.dtype).index_add(0, PLACES, m),
    "index_add in place": lambda m: m.new_zeros(5, 4).index_add_(0, PLACES, m),
    "scatter_add": lambda m: torch.zeros(5, 4, dtype=m.dtype).scatter_add(0, rows(m), m),
    "scatter_add in place": lambda m: m.new_zeros(5, 4).scatter_add_(-2, rows(m), m),
    "scatter_reduce": lambda m: m.new_zeros(5, 4).scatter_reduce(0, rows(m), m, "sum"),
}


def network(op, *, shift: bool) -> nn.Module:
    net = Net(
        lambda self, e: torch.tanh(self.bn(op(self.lin(e)))), lin=nn.Linear(3, 4, bias=False), bn=nn.BatchNorm1d(4)
    )
    trained(net, positive=False)
    if not shift:
        no_shift(net.bn)
    return net


@pytest.mark.parametrize("name", ON_ZEROS)
def test_a_scale_goes_to_the_updates_of_zeros_and_a_shift_does_not(name):
    assert fold(network(ON_ZEROS[name], shift=False), double(7, 3)).batch_norms_folded == 1

    (left,) = fold(network(ON_ZEROS[name], shift=True), double(7, 3)).left
    assert left.code is StopCode.SHIFT


def test_a_base_that_is_computed_takes_the_shift():
    module = Net(
        lambda self, e, x: torch.tanh(self.bn(self.own(x).index_add(0, PLACES, self.lin(e)))),
        lin=nn.Linear(3, 4),
        own=nn.Linear(3, 4),
        bn=nn.BatchNorm1d(4),
    )
    assert fold(trained(module, positive=False), double(7, 3), double(5, 3)).batch_norms_folded == 1


def written_before(m: Tensor) -> Tensor:
    base = m.new_zeros(5, 4)
    base.add_(1)
    return base.index_add(0, PLACES, m)


NO_SUMS = {
    "a base of other numbers": lambda m: torch.ones(5, 4, dtype=m.dtype).index_add(0, PLACES, m),
    "zeros that were written to": written_before,
    "with a factor": lambda m: m.new_zeros(5, 4).index_add(0, PLACES, m, alpha=2),
    "the largest": lambda m: m.new_zeros(5, 4).scatter_reduce(0, rows(m), m, "amax"),
    "without the base": lambda m: m.new_zeros(5, 4).scatter_reduce(0, rows(m), m, "sum", include_self=False),
    "along the channels": lambda m: m.new_zeros(7, 4).index_add(1, torch.tensor([0, 0, 1, 2]), m),
}


@pytest.mark.parametrize("name", NO_SUMS)
def test_what_is_no_such_sum_stays(name):
    plan = fold(network(NO_SUMS[name], shift=False), double(7, 3))
    assert plan.batch_norms_left == 1
