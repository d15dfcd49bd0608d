"""What is changed in place, and who reads it afterwards: folds that would be wrong are refused, all others made.

Every test runs original and folded program twice, and compares results, inputs and buffers; the naive twin of a
refusal, which takes in-place operators for pure ones, is wrong in the same comparison.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_lifting import Net, double, export, fold, fold_program, fx_node, graph_of, no_shift, node, trained

from bnfold.graph import Op
from bnfold.reasons import StopCode
from bnfold.torch.lift import lift as lifting
from bnfold.torch.lift.memory.aliases import Memory


def net(forward, *, positive: bool = True, shift: bool = True) -> nn.Module:
    module = Net(
        forward,
        conv=nn.Conv2d(4, 4, 1),
        bn=nn.BatchNorm2d(4),
        two=nn.Conv2d(4, 4, 1, bias=False),
        bn2=nn.BatchNorm2d(4),
        count=torch.zeros(4, 1, 1),
    )
    trained(module, positive=positive)
    if not shift:
        no_shift(module.bn)
        no_shift(module.bn2)
    return module


IMAGE = (2, 4, 5, 5)


def residual(self, x):
    y = self.bn(self.conv(x))
    y = functional.relu_(y)
    z = self.bn2(self.two(y))
    z += y
    return functional.relu(z, inplace=True)


def densely(self, x):
    parts = [x]
    parts.append(self.conv(functional.relu_(self.bn(torch.cat(parts, 1)))))
    return torch.cat(parts, 1)


def squared_in_place(self, x):
    y = self.bn(self.conv(x))
    return y.mul_(y)


def read_before(self, x):
    y = self.bn(self.conv(x))
    mean = y.mean()
    return functional.relu_(y) + mean


CLEAN = {
    "conv, BN, relu_": (lambda self, x: functional.relu_(self.bn(self.conv(x))), 1),
    "residual": (residual, 2),
    "added in place, then BN": (lambda self, x: self.bn(self.conv(x).add_(self.two(x))), 1),
    "a value that its writer reads as well": (squared_in_place, 1),
    "detach_": (lambda self, x: self.bn(self.conv(x).detach_()), 1),
    "a view that replaces its base": (lambda self, x: functional.relu_(self.bn(self.conv(x)).flatten(2)), 1),
    "squeeze_": (lambda self, x: self.bn(self.conv(x)).unsqueeze_(0), 1),
    "dropout in place": (
        lambda self, x: functional.dropout(self.bn(self.conv(x)), 0.5, training=False, inplace=True),
        1,
    ),
    "the value is read before it changes": (read_before, 1),
}


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_place_operators_are_like_pure_ones(name, decomposed):
    forward, count = CLEAN[name]

    assert fold(net(forward), double(*IMAGE), decomposed=decomposed).batch_norms_folded == count


def test_a_scale_moves_past_an_in_place_relu():
    module = net(lambda self, x: self.conv(functional.relu_(self.bn(x * x))), shift=False)

    (made,) = fold(module, double(*IMAGE)).folds

    assert made.path == ("relu_",)


def a_view_is_read_again(self, x):
    y = torch.tanh(x)
    kept = y[:, :, 1:]
    z = y.mul_(self.bn(torch.tanh(x - 1)))
    return self.conv(z)[:, :, 1:] + self.two(kept)


def the_input_of_the_batch_norm_is_read_again(self, x):
    y = torch.tanh(x)
    z = functional.relu_(self.bn(y))
    return self.conv(z) + y


def the_input_of_the_batch_norm_is_changed(self, x):
    y = torch.tanh(x)
    z = self.bn(y)
    y.mul_(2)
    return self.conv(z) + y


def a_view_of_the_input_is_changed(self, x):
    y = torch.tanh(x)
    z = self.bn(y)
    y.view(-1).mul_(2)
    return self.conv(z)


def the_input_of_the_model(self, x):
    return self.conv(functional.relu_(self.bn(x)))


def a_part_of_what_is_read_again(self, x):
    a, b = torch.tanh(x).chunk(2)
    y = torch.cat([a, b])
    z = functional.relu_(self.bn(y.view(2, 4, 5, 5)))
    return self.conv(z) + y.sum()


def two_batch_norms_in_a_row(self, x):
    y = torch.tanh(x)
    z = functional.relu_(self.bn2(self.bn(y)))
    return self.conv(z) + y


def changed_by_an_operator_that_is_unknown(self, x):
    y = torch.tanh(x)
    z = self.bn(y)
    y.index_fill_(1, torch.tensor([0]), 3.0)
    return self.conv(z) + y


def saved_by_dropout(self, x):
    """Dropout at inference returns its argument, whatever its schema says."""
    y = torch.tanh(x)
    kept = functional.dropout(y, 0.5, training=False)
    z = functional.relu_(self.bn(y))
    return self.conv(z) + kept


def saved_by_reshape(self, x):
    y = torch.tanh(x)
    kept = y.reshape(2, -1)
    z = functional.relu_(self.bn(y))
    return self.conv(z).reshape(2, -1) + kept


REFUSED = {
    forward.__name__: forward
    for forward in (
        a_view_is_read_again,
        the_input_of_the_batch_norm_is_read_again,
        the_input_of_the_batch_norm_is_changed,
        a_view_of_the_input_is_changed,
        the_input_of_the_model,
        a_part_of_what_is_read_again,
        two_batch_norms_in_a_row,
        changed_by_an_operator_that_is_unknown,
        saved_by_dropout,
        saved_by_reshape,
    )
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fold_forward_stops_at_what_is_changed_in_place(name):
    plan = fold(net(REFUSED[name], shift=False), double(*IMAGE))

    assert any("changed in place" in left.reason for left in plan.left)


@pytest.mark.parametrize("name", REFUSED)
def test_without_the_guard_it_would_be_wrong(name, monkeypatch):
    monkeypatch.setattr(lifting, "Memory", Blind)

    with pytest.raises(AssertionError, match="off by"):
        fold(net(REFUSED[name], shift=False), double(*IMAGE))


class Blind(Memory):
    """Takes every operator for a pure one."""

    def stop(self, node):
        return None

    def endangered(self, affines):
        return iter(())


def read_after(self, x):
    y = self.bn(self.conv(x))
    kept = y.view(-1)
    z = functional.relu_(y)
    return kept + z.view(-1)


def test_a_value_that_is_changed_later_still_takes_a_batch_norm_backward():
    """The convolution then computes what the BN computed, and the same operator changes it."""
    module = net(read_after)

    assert fold(module, double(*IMAGE)).batch_norms_folded == 1


def test_an_operator_on_memory_that_is_read_again_is_opaque():
    graph = graph_of(net(a_view_is_read_again), double(*IMAGE))

    found = node(graph, "mul")

    assert found.op is Op.OPAQUE
    assert found.stop.code is StopCode.MUTATED


EQUAL = {
    "of one value": (lambda self, x: both(self, self.conv(x), lambda c: c, torch.relu), True),
    "of one value, then changed": (lambda self, x: both(self, self.conv(x), lambda c: c, functional.relu_), False),
    "of overlapping parts": (
        lambda self, x: both(self, self.conv(x), lambda c: c[:, :, :4], functional.relu_, lambda c: c[:, :, 1:]),
        False,
    ),
    "of a value and its dropout": (
        lambda self, x: both(self, self.conv(x), lambda c: torch.dropout(c, 0.5, False), functional.relu_),
        False,
    ),
}


def both(self, value, one, change, other=lambda value: value):
    first, second = self.bn(one(value)), self.bn2(other(value))
    return change(first) * second


@pytest.mark.parametrize("name", EQUAL)
def test_equal_batch_norms_do_not_share_what_is_changed(name):
    forward, goes = EQUAL[name]
    module = net(forward)
    module.bn2.load_state_dict(module.bn.state_dict())

    assert fold(module, double(*IMAGE)).batch_norms_folded == 2 * goes


def test_two_results_that_get_out_stay_two():
    def forward(self, x):
        value = self.conv(x)
        return self.bn(value).flatten(1), self.bn2(value).flatten(2)

    module = net(forward)
    module.bn2.load_state_dict(module.bn.state_dict())

    assert {left.code for left in fold(module, double(*IMAGE)).left} == {StopCode.OTHER_CONSUMERS}


def test_a_value_that_is_read_again_by_name():
    """Not as torch.export writes it, which lets later readers read the result of the in-place operator."""
    program = export(
        net(lambda self, x: self.conv(functional.relu_(self.bn(torch.tanh(x)))), shift=False), double(*IMAGE)
    )
    fx_node(program, "conv2d").args = (fx_node(program, "batch_norm"), *fx_node(program, "conv2d").args[1:])

    memory = Memory(program.graph)

    assert memory.stop(fx_node(program, "batch_norm")).code is StopCode.MUTATED


def test_a_buffer_that_counts_is_no_constant():
    def forward(self, x):
        self.count += 1
        return self.bn(self.conv(x) * self.count)

    for decomposed in (False, True):
        (left,) = fold(net(forward), double(*IMAGE), decomposed=decomposed).left
        assert "count" not in str(left.nodes)


def test_a_weight_that_changes_is_no_constant():
    def forward(self, x):
        self.count.mul_(0.5)
        return self.bn(functional.conv2d(x, self.count[..., None].expand(4, 4, 1, 1)))

    (left,) = fold(net(forward), double(*IMAGE)).left

    assert left.code is StopCode.WEIGHT_NOT_CONSTANT


def test_statistics_that_another_call_trains_are_no_constants():
    def forward(self, x):
        functional.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)
        return self.bn(self.conv(x))

    codes = {left.code for left in fold(net(forward), double(*IMAGE)).left}

    assert codes == {StopCode.TRAINING_MODE, StopCode.PARAMETERS_NOT_CONSTANT}


def test_an_input_that_is_changed_stays_changed():
    def forward(self, x):
        x.relu_()
        return self.bn(self.conv(x))

    assert fold(net(forward), double(*IMAGE)).batch_norms_folded == 1


def test_a_nested_graph_may_change_what_it_is_given():
    def forward(self, x):
        y = torch.tanh(x)
        z = self.bn(y)
        with torch.no_grad():
            y.mul_(2)
        return self.conv(z) + y

    with torch.enable_grad():
        program = export(net(forward, shift=False), double(*IMAGE))
    assert any("wrap_with_set_grad_enabled" in str(found.target) for found in program.graph.nodes)

    (left,) = fold_program(program, double(*IMAGE)).left

    assert "changed in place" in left.reason


def test_memory_knows_views_and_writes():
    def forward(self, x):
        y = torch.tanh(x)
        kept = y.flatten(2)
        fresh = y.clone()
        z = y.add_(1)
        return kept, fresh, z

    program = export(Net(forward), double(*IMAGE))
    memory = Memory(program.graph)

    assert memory.variable == {fx_node(program, name) for name in ("tanh", "flatten", "add_")}
    assert memory.stop(fx_node(program, "flatten")).code is StopCode.MUTATED
    assert memory.stop(fx_node(program, "clone")) is None
    assert memory.written_placeholders == set()
