"""Nested graphs: branches of torch.cond, regions of autocast and no_grad."""

import torch
from torch import nn
from torch_lifting import Net, batch_norms, double, export, fold, graph_of, handle, maps, trained

from bnfold.planning.planner import plan
from bnfold.reasons import StopCode
from bnfold.torch.lift.lift import lift

IMAGE = (2, 3, 5, 5)


def in_branches(self, x):
    return torch.cond(x.sum() > 0, lambda y: self.bn(self.conv(y)), lambda y: self.conv(y) * 2, (x,))


def conv_bn(forward) -> nn.Module:
    return trained(Net(forward, conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), out=nn.Conv2d(4, 2, 1)))


def test_a_branch_of_a_condition_is_folded():
    module = conv_bn(in_branches)

    for sign in (1, -1):
        assert fold(module, sign * double(*IMAGE).abs()).batch_norms_folded == 1


def test_nodes_of_branches_are_told_apart():
    program = export(conv_bn(in_branches), double(*IMAGE))

    graph = lift(program)

    names = [found.name for found in maps(graph)]
    assert len(set(names)) == 2
    assert {handle(found).scope.region for found in maps(graph)} == {"true_graph_0", "false_graph_0"}
    for found in maps(graph):
        scope, call = handle(found).scope.caller
        assert scope.graph is program.graph
        assert str(call.target) == "cond"
        assert handle(found).node.graph is handle(found).scope.graph
        assert found.linear.weight.parameter == "conv.weight"
        assert found.linear.weight.parameters == ("conv.weight",)


def test_what_crosses_a_boundary_stays():
    def forward(self, x):
        y = self.conv(x)
        return torch.cond(x.sum() > 0, self.bn, lambda y: y * 2, (y,))

    (left,) = fold(conv_bn(forward), double(*IMAGE)).left

    assert left.code is StopCode.CAPTURED


def test_what_a_branch_returns_stays():
    def forward(self, x):
        y = torch.cond(x.sum() > 0, lambda y: self.bn(y.sin()), self.conv, (x,))
        return self.out(y)

    module = trained(Net(forward, conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3), out=nn.Conv2d(3, 2, 1)))
    (left,) = fold(module, double(*IMAGE)).left

    assert "output of a nested graph" in left.reason


def test_regions_without_gradients_are_folded_and_named_by_their_modules():
    def forward(self, x):
        with torch.no_grad():
            y = self.bn(self.conv(x)).sin()
        return self.out(y)

    with torch.enable_grad():
        module = conv_bn(forward)
        graph = graph_of(module, double(*IMAGE))

    assert [found.name for found in batch_norms(graph)] == ["bn"]
    assert {found.name for found in maps(graph)} == {"conv", "out"}
    assert plan(graph).batch_norms_folded == 1


def test_autocast_regions_keep_their_types():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.bn(self.conv(x)).sin()

    graph = graph_of(conv_bn(forward).float(), double(*IMAGE).float())

    (found,) = maps(graph)
    assert found.outputs[0].dtype == "bfloat16"
    assert found.linear.weight.dtype.name == "float32"
    assert plan(graph).batch_norms_folded == 1


def test_a_bias_that_changes_the_type_is_no_bias_under_autocast():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ self.w + self.b).sin()

    graph = graph_of(Net(forward, w=torch.randn(3, 4), b=torch.randn(4)), torch.randn(2, 3))

    (found,) = maps(graph)
    assert found.linear.bias is None
    assert graph.affines == []


def test_a_loop_stays_closed():
    def forward(self, x):
        def step(index, y):
            return index + 1, self.bn(self.conv(y))

        return torch.ops.higher_order.while_loop(lambda index, y: index < 3, step, (torch.tensor(0), x), ())[1]

    module = trained(Net(forward, conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)))
    graph = graph_of(module, double(*IMAGE))

    assert maps(graph) == []
    assert batch_norms(graph) == []


def test_a_region_inside_a_region():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(x)
            with torch.autocast("cpu", enabled=False):
                y = self.bn(y.double()).sin()
            return self.out(y)

    graph = graph_of(conv_bn(forward), double(*IMAGE))

    (found,) = batch_norms(graph)
    assert "." in handle(found).scope.region
    assert plan(graph).left[0].code in (StopCode.CHANGES_DTYPE, StopCode.CAPTURED)
