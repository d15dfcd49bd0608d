"""What is constant in a program, and what it evaluates to: compared with the same expression in float64."""

import copy

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_lifting import Net, double, export, fold, fx_node, graph_of, maps, trained

from bnfold.errors import UnsupportedModelError
from bnfold.torch.lift.constants import Constants, canonical_names
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.memory.aliases import Memory


def constants(program) -> Constants:
    memory = Memory(program.graph)
    return Constants(program, program.graph, memory.variable, canonical_names(program))


EXPRESSIONS = {
    "transposed": lambda w: w.t(),
    "scaled": lambda w: w * 0.1 / (w.var() + 1e-5).sqrt(),
    "normalised": lambda w: functional.normalize(w, dim=1),
    "standardised": lambda w: (w - w.mean((0, 1), keepdim=True)) / w.std(),
    "standardised by a batch norm": lambda w: functional.batch_norm(w[None], None, None, training=True)[0],
    "a product": lambda w: w @ w.t() @ w,
    "a softmax": lambda w: w.softmax(1),
    "put together": lambda w: torch.cat([w[:2], w[2:].flip(0)], 0),
    "a part": lambda w: w.split(2, 0)[1].repeat(2, 1),
    "with numbers made on the way": lambda w: w * torch.arange(1, w.shape[1] + 1, dtype=w.dtype) + torch.full((), 0.3),
    "outer": lambda w: torch.einsum("i,j->ij", w[0], w[:, 0]),
    "of smooth steps": lambda w: torch.exp(-w.abs()).rsqrt(),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_expressions_are_evaluated_in_float64(name, decomposed):
    expression = EXPRESSIONS[name]
    weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    module = Net(lambda self, x: functional.linear(x, expression(self.w)), w=weight)
    program = export(module, torch.randn(2, 4), decomposed=decomposed)

    (found,) = maps(lift(program))

    value = found.linear.weight.read().astype(np.float64)
    value = value if found.op_type == "Linear" else value.T
    np.testing.assert_allclose(value, expression(weight.detach().double()).numpy(), rtol=1e-12)
    assert found.linear.weight.dtype == np.float32
    assert found.linear.weight.parameter is None
    assert found.linear.weight.parameters == ("w",)


@pytest.mark.parametrize(
    "expression",
    [
        lambda w: w.bfloat16().float(),
        lambda w: (w * 8).round() / 8,
        lambda w: torch.where(w > 0.1, w, w * 0.5),
        lambda w: w.to(torch.float8_e4m3fn).to(torch.float32),
    ],
    ids=["bfloat16", "rounded", "compared", "8 bits"],
)
def test_roundings_of_weights_are_kept(expression):
    weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    module = Net(lambda self, x: functional.linear(x, expression(self.w)), w=weight)

    (found,) = maps(graph_of(module, torch.randn(2, 4)))

    np.testing.assert_array_equal(found.linear.weight.read(), expression(weight.detach()).numpy())


def test_a_cast_weight_is_read_in_its_new_type():
    module = Net(lambda self, x: functional.linear(x, self.w.bfloat16()), w=nn.Parameter(torch.randn(4, 4)))

    (found,) = maps(graph_of(module, torch.randn(2, 4).bfloat16()))

    assert found.linear.weight.dtype == np.dtype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.linear.weight.read().astype(np.float32), module.w.detach().bfloat16().float())


@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "parametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
    ],
    ids=["weight_norm", "spectral_norm", "spectral_norm by a hook", "weight_norm by a hook"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrized_weights_take_a_batch_norm(parametrize, decomposed):
    conv = parametrize(nn.Conv2d(3, 4, 3))
    module = nn.Sequential(conv, nn.BatchNorm2d(4)).double().eval()
    trained(module[1])

    assert fold(module, double(2, 3, 5, 5), decomposed=decomposed).batch_norms_folded == 1


def test_the_bodies_of_programs_are_told_from_their_inputs():
    module = Net(
        lambda self, x, y: functional.linear(x, self.w) * torch.rand(4) + y + self.b.sum() + torch.empty(4).zero_(),
        w=nn.Parameter(torch.randn(4, 4)),
        b=torch.ones(3),
    )
    program = export(module, torch.randn(2, 4), torch.randn(2, 4))
    found = constants(program)

    constant = {node.name for node in program.graph.nodes if found.is_constant(node)}

    assert constant == {"p_w", "b_b", "sum_1"}


def test_tied_parameters_have_one_name():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    program = export(nn.Sequential(one, two), torch.randn(2, 4))

    names = [found.linear.weight.parameters for found in maps(lift(program))]

    assert names == [("0.weight",), ("0.weight",)]


def test_tied_parameters_of_a_saved_program_have_one_name(tmp_path):
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    torch.export.save(export(nn.Sequential(one, two), torch.randn(2, 4)), tmp_path / "tied.pt2")

    names = [found.linear.weight.parameter for found in maps(lift(torch.export.load(tmp_path / "tied.pt2")))]

    assert names == ["0.weight", "0.weight"]


def test_parts_of_one_tensor_have_names_of_their_own():
    whole = torch.randn(8, 4)
    program = export(
        Net(lambda self, x: functional.linear(x, self.a) + functional.linear(x, self.b), a=whole[:4], b=whole[4:]),
        torch.randn(2, 4),
    )

    assert [found.linear.weight.parameter for found in maps(lift(program))] == ["a", "b"]


def test_a_tied_buffer_that_changes_is_constant_under_neither_name():
    shared = torch.ones(4)

    def forward(self, x):
        self.a.add_(1)
        return functional.linear(x, self.b.view(1, 4))

    program = export(Net(forward, a=shared, b=shared[:]), torch.randn(2, 4))

    assert maps(lift(program)) == []


def test_a_prefix_comes_before_all_names():
    program = export(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))

    (found,) = maps(lift(program, prefix="head.0"))

    assert found.linear.weight.parameter == "head.0.0.weight"
    assert found.handle.parameters == ("head.0.0.weight", "head.0.0.bias")


@pytest.mark.parametrize("change", ["meta", "fake"])
def test_parameters_without_values_are_no_constants(change):
    module = nn.Linear(4, 4)
    program = export(module, torch.randn(2, 4))
    if change == "meta":
        program.state_dict["weight"] = program.state_dict["weight"].to("meta")
    else:
        program.state_dict["weight"] = fx_node(program, "p_weight").meta["val"]

    assert maps(lift(program)) == []


def test_an_expression_that_is_wrong_is_refused():
    program = export(
        Net(lambda self, x: functional.linear(x, self.w.t()), w=nn.Parameter(torch.randn(4, 4))), torch.randn(2, 4)
    )
    transposed = next(node for node in program.graph.nodes if node.op == "call_function")
    transposed.target = torch.ops.aten.unsqueeze.default

    (found,) = maps(lift(program))
    with pytest.raises(UnsupportedModelError, match="cannot be evaluated"):
        found.linear.weight.read()


def test_an_expression_of_another_shape_is_refused():
    program = export(
        Net(lambda self, x: functional.linear(x, self.w.t()), w=nn.Parameter(torch.randn(4, 3))), torch.randn(2, 4)
    )
    transposed = next(node for node in program.graph.nodes if node.op == "call_function")
    transposed.target = torch.ops.aten.clone.default

    (found,) = maps(lift(program))
    with pytest.raises(UnsupportedModelError, match="another shape"):
        found.linear.weight.read()


def test_an_expression_that_would_not_fit_into_memory_is_not_constant():
    def forward(self, x):
        return x * self.w.expand(1 << 15, 1 << 15).sum()

    program = export(Net(forward, w=torch.ones(1)), torch.randn(2))

    assert lift(program).affines == []


def test_values_are_kept_while_they_are_read_and_evaluated_anew_afterwards():
    weight = nn.Parameter(torch.randn(300, 300))
    program = export(Net(lambda self, x: functional.linear(x, self.w * 2), w=weight), torch.randn(2, 300))
    (found,) = maps(lift(program))

    first = found.linear.weight.read()

    assert np.shares_memory(first, found.linear.weight.read())
    np.testing.assert_array_equal(first, weight.detach().double().numpy() * 2)


def test_a_constant_of_forward_is_lifted():
    module = Net(lambda self, x: x * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(4.0))

    (found,) = graph_of(module, torch.randn(2, 3)).affines

    np.testing.assert_array_equal(found.affine.scale, [[1, 2, 3]])
    np.testing.assert_array_equal(found.affine.shift, [[4]])
    assert found.handle.parameters == ()


def test_lifting_changes_nothing():
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    program = export(module, double(2, 3, 5, 5))
    before, code = copy.copy(program.state_dict), str(program.graph)

    lift(program)

    assert str(program.graph) == code
    assert all(program.state_dict[name] is tensor for name, tensor in before.items())
