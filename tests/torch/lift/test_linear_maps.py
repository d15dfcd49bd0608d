"""Linear maps, batch norms and spelled-out affines of torch, compared with their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_lifting import Net, batch_norms, double, export, fold, fold_program, graph_of, maps, node, trained

from bnfold.algebra.linear_map import Folding
from bnfold.errors import UnsupportedModelError
from bnfold.graph import Kind
from bnfold.planning.planner import plan
from bnfold.reasons import StopCode
from bnfold.torch.lift.lift import lift

ROUND_A_BATCH_NORM = {
    "Conv1d": (lambda: (nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, 2, dilation=2), nn.BatchNorm1d(6)), (2, 4, 12)),
    "Conv2d": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, (3, 2), groups=2), nn.BatchNorm2d(6)), (2, 4, 6, 5)),
    "Conv2d padding='valid'": (
        lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="valid"), nn.BatchNorm2d(6)),
        (2, 4, 6, 5),
    ),
    "Conv2d padding='same', 1x1": (
        lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same"), nn.BatchNorm2d(6)),
        (2, 4, 6, 5),
    ),
    "Conv2d padding_mode='reflect'": (
        lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
        (2, 4, 6, 5),
    ),
    "Conv3d": (lambda: (nn.BatchNorm3d(2), nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4)), (2, 2, 4, 3, 3)),
    "depthwise": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 5, 5)),
    "ConvTranspose2d 1x1": (
        lambda: (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    "ConvTranspose2d without its border": (
        lambda: (
            nn.BatchNorm2d(4),
            nn.ConvTranspose2d(4, 6, (3, 2), padding=(4, 1), dilation=(2, 1)),
            nn.BatchNorm2d(6),
        ),
        (2, 4, 8, 5),
    ),
    "Linear": (lambda: (nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6)), (5, 4)),
    "Linear without bias": (lambda: (nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), (5, 4)),
}


@pytest.mark.parametrize("name", ROUND_A_BATCH_NORM)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_map_takes_what_is_before_and_behind_it(name, decomposed):
    layers, shape = ROUND_A_BATCH_NORM[name]
    module = trained(nn.Sequential(nn.Sigmoid(), *layers(), nn.Sigmoid()), positive=False)

    assert fold(module, double(*shape), decomposed=decomposed).batch_norms_folded == 2


PARTIAL = {
    "padded": lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
    "padding='same'": lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, (1, 2), padding="same")),
    "transposed": lambda: (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 2)),
    "transposed, part of its border": lambda: (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, padding=(2, 1))),
    "transposed with stride": lambda: (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, stride=2)),
    "transposed, output padded": lambda: (
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 6, 1, stride=2, output_padding=1),
    ),
}


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shift_stops_where_outputs_miss_taps(name, decomposed):
    module = trained(nn.Sequential(nn.Sigmoid(), *PARTIAL[name]()))

    (left,) = fold(module, double(2, 4, 6, 6), decomposed=decomposed).left

    # In core aten asymmetric padding is an operator of its own.
    assert left.code is (StopCode.SHIFT if decomposed and name == "padding='same'" else StopCode.PADDED_SHIFT)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transposed_convolutions_take_what_is_behind_them(count, groups, decomposed):
    kind, norm = getattr(nn, f"ConvTranspose{count}d"), getattr(nn, f"BatchNorm{count}d")
    layers = nn.Sequential(kind(4, 4, 3, stride=2, padding=1, output_padding=1, groups=groups, dilation=2), norm(4))

    plan = fold(trained(layers, positive=False), double(2, 4, *(4,) * count), decomposed=decomposed)

    assert plan.batch_norms_folded == 1


@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_unbatched_convolution_has_its_channels_first(decomposed):
    """Rank 3 for Conv2d: (C, H, W), with as many rows as channels. The BN sees (C, H, W) as (N, C, L)."""
    module = Net(lambda self, x: self.bn(self.conv(x)), conv=nn.Conv2d(3, 6, 1), bn=nn.BatchNorm1d(6))

    (left,) = fold(trained(module), double(3, 6, 6), decomposed=decomposed).left

    assert left.code is StopCode.CHANNEL_AXIS


def test_linear_on_sequences_keeps_its_channels_last():
    """On (N, L, C) with L == C a BatchNorm1d acts on L."""
    module = Net(lambda self, x: self.bn(self.linear(x)), linear=nn.Linear(6, 6), bn=nn.BatchNorm1d(6))

    (left,) = fold(trained(module), double(2, 6, 6)).left

    assert left.code is StopCode.CHANNEL_AXIS


def weight(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns))


PRODUCTS = {
    "matmul": (lambda self, x: x @ self.w, (5, 4)),
    "matmul of a batch": (lambda self, x: (x.unsqueeze(0) @ self.w).squeeze(0), (5, 4)),
    "matmul and bias": (lambda self, x: x @ self.w + self.b, (5, 4)),
    "bias first": (lambda self, x: self.b + torch.mm(x, self.w), (5, 4)),
    "mm": (lambda self, x: torch.mm(x, self.w), (5, 4)),
    "addmm, as transformers' Conv1D": (lambda self, x: torch.addmm(self.b, x, self.w), (5, 4)),
    "addmm with factors": (lambda self, x: torch.addmm(self.b, x, self.w, beta=0.5, alpha=-3), (5, 4)),
    "addmm with a full bias": (lambda self, x: torch.addmm(self.full, x, self.w), (5, 4)),
    "linear with a view of the weight": (lambda self, x: functional.linear(x, self.w.t(), self.b), (5, 4)),
    "linear with a bias of its own": (lambda self, x: functional.linear(x, self.w.T, self.b * 2 + 1), (5, 4)),
    "from the left": (lambda self, x: (self.w.t() @ x.t()).t(), (5, 4)),
    "from the left with bias": (lambda self, x: (self.w.t() @ x.t() + self.b[:, None]).t(), (5, 4)),
    "einsum": (lambda self, x: torch.einsum("ij, jk", x, self.w), (5, 4)),
    "einsum and bias": (lambda self, x: torch.einsum("jk,ij->ki", self.w, x).add(self.b[:, None]).t(), (5, 4)),
    "einsum of a layer's weight": (lambda self, x: torch.einsum("...j,kj->...k", x, self.w.t()), (5, 4)),
    "addmm from the left": (lambda self, x: torch.addmm(self.b[:, None], self.w.t(), x.t(), beta=2).t(), (5, 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_matrix_products_take_what_is_before_and_behind_them(name, decomposed):
    product, shape = PRODUCTS[name]
    module = Net(
        lambda self, x: torch.sigmoid(self.after(product(self, self.before(torch.sigmoid(x))))),
        before=nn.BatchNorm1d(4),
        after=nn.BatchNorm1d(6),
        w=weight(4, 6),
        b=nn.Parameter(torch.randn(6)),
        full=nn.Parameter(torch.randn(5, 6)),
    )

    plan = fold(trained(module, positive=False), double(*shape), decomposed=decomposed)

    assert plan.batch_norms_folded == 2, plan.left


def repeat(self, x):
    return self.w.expand(x.shape[0], -1, -1)


BATCHED = {
    "a repeated matrix": lambda self, x: torch.bmm(x, self.w.expand(x.shape[0], 4, 6)),
    "sizes as they are": lambda self, x: torch.bmm(x, repeat(self, x)),
    "arguments given by name": lambda self, x: torch.ops.aten.bmm.default(
        mat2=torch.ops.aten.expand.default(self.w, size=[x.shape[0], 4, 6]), self=x
    ),
    "with a batch axis of its own": lambda self, x: torch.bmm(x, self.w[None].expand(x.shape[0], -1, -1)),
    "a view of a matrix": lambda self, x: torch.bmm(x, self.turned.t().expand(x.shape[0], -1, -1).contiguous()),
    "over two axes": lambda self, x: torch.bmm(
        x.clone(memory_format=torch.contiguous_format).reshape(-1, 2, 4),
        self.w.expand(x.shape[0], 2, 4, 6).reshape(-1, 4, 6),
    ).reshape(-1, 4, 6),
    "and bias": lambda self, x: torch.bmm(x, repeat(self, x)) + self.b,
    "from the left": lambda self, x: torch.bmm(self.turned.expand(x.shape[0], -1, -1), x.mT).mT,
    "from the left with bias": lambda self, x: (
        (torch.bmm(self.turned.expand(x.shape[0], -1, -1), x.mT) + self.b[:, None]).mT
    ),
    "one matrix twice": lambda self, x: torch.bmm(x, repeat(self, x)) + torch.bmm(x.tanh(), repeat(self, x)),
}


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", ["static", "dynamic"])
def test_a_batched_product_with_one_matrix_takes_what_is_before_and_behind_it(name, batch, decomposed):
    module = Net(
        lambda self, x: torch.sigmoid(self.after(BATCHED[name](self, self.before(torch.sigmoid(x).mT).mT).mT).mT),
        before=nn.BatchNorm1d(4),
        after=nn.BatchNorm1d(6),
        w=weight(4, 6),
        turned=weight(6, 4),
        b=nn.Parameter(torch.randn(6)),
    )

    dynamic = (({0: torch.export.Dim("batch", min=2)},),) if batch == "dynamic" else None
    plan = fold(trained(module, positive=False), double(3, 4, 4), dynamic=dynamic, decomposed=decomposed)

    assert plan.batch_norms_folded == (1 if name == "one matrix twice" else 2), plan.left


def changed_beside(self, x):
    """The matrices are equal when they are repeated, and differ when they are used."""
    repeated = self.w.expand(x.shape[0], -1, -1).clone()
    repeated[0].mul_(2)
    return torch.bmm(x, repeated)


SEVERAL = {
    "a matrix for each element of the batch": lambda self, x: torch.bmm(x, self.several),
    "a batch laid out as rows": lambda self, x: torch.bmm(x, self.several.expand(3, -1, -1)),
    "from the left": lambda self, x: (self.several @ x.mT).mT,
    "a batch of one": lambda self, x: (x + 1) @ self.several[:1],
    "in index notation": lambda self, x: torch.einsum("bnd,bdf->bnf", x, self.several),
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_of_matrices_takes_what_acts_alike_on_all_of_them(name, decomposed):
    module = Net(
        lambda self, x: torch.sigmoid(self.bn(SEVERAL[name](self, torch.sigmoid(x)).mT)),
        bn=nn.BatchNorm1d(4),
        several=nn.Parameter(torch.randn(3, 4, 4)),
    )

    assert fold(trained(module, positive=False), double(3, 4, 4), decomposed=decomposed).batch_norms_folded == 1


NO_MAPS = {
    "two values": lambda self, x: torch.bmm(x, x.mT)[..., :1] * x,
    "two constants": lambda self, x: torch.bmm(self.w.expand(3, -1, -1), self.w.t().expand(3, -1, -1)) + x,
    "repeated columns": lambda self, x: torch.bmm(x, self.column.expand(x.shape[0], -1, 4)),
    "changed in place": changed_beside,
}
CONSTANT = ("repeated columns", "static")
"""With a batch that is known, what repeats them is a constant of several matrices."""


@pytest.mark.parametrize(
    ("name", "batch"),
    [(name, batch) for name in NO_MAPS for batch in ("static", "dynamic") if (name, batch) != CONSTANT],
)
def test_a_batched_product_with_several_matrices_is_no_map(name, batch):
    """A vector along the channels of the first matrix would scale the others as well."""
    module = Net(
        lambda self, x: self.bn(NO_MAPS[name](self, torch.sigmoid(x)).mT),
        bn=nn.BatchNorm1d(4),
        w=weight(4, 4),
        column=weight(4, 1),
    )
    dynamic = None if batch == "static" or name == "two constants" else (({0: torch.export.Dim("batch", min=2)},),)

    assert not maps(graph_of(trained(module), double(3, 4, 4), dynamic=dynamic))
    fold(trained(module), double(3, 4, 4), dynamic=dynamic)


def test_a_matrix_product_and_its_bias_are_one_map():
    module = Net(lambda self, x: x @ self.w + self.b, w=weight(4, 6), b=nn.Parameter(torch.randn(6)))

    (found,) = maps(graph_of(trained(module), double(5, 4)))

    assert found.linear.bias is not None
    assert found.handle.last.name == "add"
    assert found.handle.parameters == ("w", "b")
    assert found.outputs[0].name == "add"


def read_twice(self, x):
    y = x @ self.w
    return y + self.b + y


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x @ self.w + self.full,
        lambda self, x: x @ self.w + self.full[:, :1],
        lambda self, x: torch.add(x @ self.w, self.b, alpha=2),
        read_twice,
        lambda self, x: x @ self.w + self.b.float(),
    ],
    ids=["one for each row", "a column", "with a factor", "the product is read again", "of another type"],
)
def test_an_addition_that_is_no_bias_stays_apart(forward):
    module = Net(forward, w=weight(4, 6), b=nn.Parameter(torch.randn(6)), full=nn.Parameter(torch.randn(5, 6)))

    (found,) = maps(graph_of(trained(module), double(5, 4)))

    assert found.linear.bias is None


OPAQUE = {
    "a weight that is computed": (
        lambda self, x: functional.linear(x, x @ self.w @ x.t()),
        "Linear",
        StopCode.WEIGHT_NOT_CONSTANT,
    ),
    "a bias that is computed": (
        lambda self, x: torch.addmm(x, x, self.w),
        "Addmm",
        StopCode.WEIGHT_NOT_CONSTANT,
    ),
    "two values": (lambda self, x: x @ x.t(), "MatMul", StopCode.WEIGHT_NOT_CONSTANT),
    "a weight of rank 1": (lambda self, x: x @ self.w[0], "MatMul", StopCode.NO_RULE),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_no_map_says_why(name):
    forward, op_type, code = OPAQUE[name]
    graph = graph_of(trained(Net(forward, w=weight(4, 4))), double(4, 4))

    stops = [found.stop for found in graph.nodes if found.op_type == op_type and getattr(found, "stop", None)]

    assert [stop.code for stop in stops] == [code]


@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_is_its_definition(decomposed, affine):
    norm = trained(nn.BatchNorm2d(3, eps=0.25, affine=affine), positive=False)

    (found,) = batch_norms(graph_of(norm, double(2, 3, 4, 4), decomposed=decomposed))

    gamma, beta = (norm.weight, norm.bias) if affine else (torch.ones(3), torch.zeros(3))
    scale = gamma.detach().numpy() / np.sqrt(norm.running_var.numpy() + 0.25)
    assert found.affine is not None
    np.testing.assert_allclose(found.affine.scale.reshape(-1), scale, rtol=1e-15)
    shift = beta.detach().numpy() - scale * norm.running_mean.numpy()
    np.testing.assert_allclose(found.affine.shift.reshape(-1), shift, rtol=1e-12)
    assert found.affine.scale.shape == (1, 3, 1, 1)
    learned = ("weight", "bias") if affine else ()
    assert found.handle.parameters == (*learned, "running_mean", "running_var")


def test_functional_batch_norms_with_bare_parameters():
    module = Net(
        lambda self, x: functional.batch_norm(self.conv(x), self.mean, self.var, None, self.shift),
        conv=nn.Conv2d(3, 4, 3),
        mean=torch.rand(4),
        var=torch.rand(4) + 0.5,
        shift=torch.rand(4),
    )

    assert fold(trained(module), double(2, 3, 5, 5)).batch_norms_folded == 1


def test_a_statistic_that_is_computed_from_constants():
    module = Net(
        lambda self, x: functional.batch_norm(self.conv(x), self.mean * 2, self.std**2, eps=1e-3),
        conv=nn.Conv2d(3, 4, 3),
        mean=torch.rand(4),
        std=torch.rand(4) + 0.5,
    )

    assert fold(trained(module), double(2, 3, 5, 5)).batch_norms_folded == 1


def broken(change) -> nn.Module:
    norm = trained(nn.BatchNorm2d(3))
    with torch.no_grad():
        change(norm)
    return norm


REFUSED = {
    "training": (lambda: trained(nn.BatchNorm2d(3)).train(), StopCode.TRAINING_MODE),
    "no running statistics": (
        lambda: trained(nn.BatchNorm2d(3, track_running_stats=False)),
        StopCode.TRAINING_MODE,
    ),
    "nan": (lambda: broken(lambda norm: norm.weight[1].fill_(float("nan"))), StopCode.PARAMETERS_NOT_FINITE),
    "a negative variance": (lambda: broken(lambda norm: norm.running_var[1].fill_(-1)), StopCode.PARAMETERS_NOT_FINITE),
    "a weight from the input": (
        lambda: trained(
            Net(
                lambda self, x: functional.batch_norm(x, self.m, self.v, x[0, :, 0, 0]),
                m=torch.zeros(3),
                v=torch.ones(3),
            )
        ),
        StopCode.PARAMETERS_NOT_CONSTANT,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_norm_that_is_no_affine_says_why(name):
    build, code = REFUSED[name]

    (found,) = batch_norms(graph_of(build(), double(2, 3, 4, 4)))

    assert found.affine is None
    assert found.stop is not None
    assert found.stop.code is code


def test_a_decomposed_batch_norm_in_training_mode():
    (found,) = batch_norms(graph_of(trained(nn.BatchNorm2d(3)).train(), double(2, 3, 4, 4), decomposed=True))

    assert found.stop is not None
    assert found.stop.code is StopCode.TRAINING_MODE


def test_mixed_precision_keeps_the_type_of_the_value():
    norm = trained(nn.BatchNorm2d(3)).float()

    (found,) = batch_norms(graph_of(norm, double(2, 3, 4, 4).half()))

    assert found.affine is not None
    assert found.inputs[0].dtype == found.outputs[0].dtype == "float16"


AFFINES = {
    "add": (lambda self, x: x + self.c, (1, "c")),
    "add from the left": (lambda self, x: self.c + x, (1, "c")),
    "add with alpha": (lambda self, x: torch.add(x, self.c, alpha=3), (1, "3c")),
    "alpha on the value": (lambda self, x: torch.add(self.c, x, alpha=3), (3, "c")),
    "sub": (lambda self, x: x - self.c, (1, "-c")),
    "sub from": (lambda self, x: self.c - x, (-1, "c")),
    "sub with alpha": (lambda self, x: torch.sub(self.c, x, alpha=2), (-2, "c")),
    "rsub": (lambda self, x: torch.rsub(x, 2.5, alpha=2), (-2, 2.5)),
    "rsub of a tensor": (lambda self, x: torch.rsub(self.c, x, alpha=2), (1, "-2c")),
    "mul": (lambda self, x: x * self.c, ("c", 0)),
    "mul by a number": (lambda self, x: x * 0.1, (0.1, 0)),
    "div": (lambda self, x: x / self.c, ("1/c", 0)),
    "div by a number": (lambda self, x: x / 3, (1 / 3, 0)),
    "neg": (lambda self, x: -x, (-1, 0)),
    "in place": (lambda self, x: (x * x).mul_(self.c), ("c", 0)),
    "several": (lambda self, x: (x - 1) * self.c + 2, ("c", "2-c")),
}


@pytest.mark.parametrize("name", AFFINES)
def test_arithmetic_with_constants_is_an_affine(name):
    forward, (scale, shift) = AFFINES[name]
    constant = np.array([0.5, -2.0, 3.0]).reshape(1, 3, 1)
    named = {
        "c": constant,
        "-c": -constant,
        "3c": 3 * constant,
        "-2c": -2 * constant,
        "1/c": 1 / constant,
        "2-c": 2 - constant,
    }
    module = Net(forward, c=torch.from_numpy(constant))

    (found,) = graph_of(module, double(2, 3, 4)).affines

    assert found.kind is Kind.AFFINE
    assert found.affine is not None
    np.testing.assert_allclose(
        found.affine.scale + np.zeros((1, 3, 1)), named.get(scale, scale) + np.zeros((1, 3, 1)), rtol=1e-15
    )
    np.testing.assert_allclose(
        found.affine.shift + np.zeros((1, 3, 1)), named.get(shift, shift) + np.zeros((1, 3, 1)), rtol=1e-15
    )


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x / self.zero,
        lambda self, x: x[:, :1] + self.c,
        lambda self, x: x[0, 0] + self.c,
        lambda self, x: x.float() + self.c,
        lambda self, x: x * torch.tensor(1j),
        lambda self, x: (x > 0) * self.c,
        lambda self, x: torch.div(x, self.c, rounding_mode="trunc"),
        lambda self, x: x * float("inf"),
    ],
    ids=["zero", "broadcast", "of larger rank", "promoted", "complex", "a mask", "rounded", "infinite"],
)
def test_arithmetic_that_is_no_affine(forward):
    module = Net(forward, c=torch.ones(1, 3, 1, dtype=torch.float64), zero=torch.zeros(3, 1, dtype=torch.float64))

    assert graph_of(module, double(2, 3, 4)).affines == []


def test_layer_scale_goes_into_the_convolution_before_it():
    module = Net(
        lambda self, x: x + self.gamma * self.conv(x), conv=nn.Conv2d(4, 4, 1), gamma=nn.Parameter(torch.rand(4, 1, 1))
    )

    plan = fold(trained(module), double(2, 4, 5, 5))

    assert [made.targets for made in plan.folds] == [("conv",)]


def test_weights_are_the_parameters_themselves():
    conv = trained(nn.Conv2d(3, 4, 3))
    program = export(conv, double(2, 3, 5, 5))

    (found,) = maps(lift(program))

    assert np.shares_memory(found.linear.weight.read(), program.state_dict["weight"].detach().numpy())
    assert found.linear.weight.parameter == "weight"
    np.testing.assert_array_equal(Folding(found.linear).weight(), conv.weight.detach().numpy())


def test_a_program_whose_parameters_contradict_it_is_refused():
    program = export(trained(nn.BatchNorm2d(3)), double(2, 3, 4, 4))
    (found,) = [node for node in program.graph.nodes if node.op == "call_function"]
    found.args[0].meta["val"] = found.args[0].meta["val"].new_empty(2, 5, 4, 4)

    with pytest.raises(UnsupportedModelError, match="5 channels"):
        lift(program)


def test_a_node_that_export_does_not_make_is_refused():
    program = export(trained(nn.Conv2d(3, 4, 1)), double(2, 3, 4, 4))
    (found,) = [node for node in program.graph.nodes if node.op == "call_function"]
    found.op = "call_method"

    with pytest.raises(UnsupportedModelError, match="call_method"):
        lift(program)


def test_dead_items_of_a_batch_norm_are_no_batch_statistics():
    program = export(
        Net(
            lambda self, x: torch.ops.aten._native_batch_norm_legit_no_training(
                self.conv(x), None, None, self.m, self.v, 0.1, 1e-5
            )[0],
            conv=trained(nn.Conv2d(3, 4, 1)),
            m=torch.zeros(4, dtype=torch.float64),
            v=torch.ones(4, dtype=torch.float64),
        ),
        double(2, 3, 4, 4),
    )

    assert fold_program(program, double(2, 3, 4, 4)).batch_norms_folded == 1


def test_batch_statistics_that_are_read():
    module = Net(
        lambda self, x: torch.ops.aten.native_batch_norm(x, None, None, self.m, self.v, False, 0.1, 1e-5)[:2],
        m=torch.zeros(3, dtype=torch.float64),
        v=torch.ones(3, dtype=torch.float64),
    )

    (left,) = plan(graph_of(module, double(2, 3, 4, 4))).left

    assert left.code is StopCode.TRAINING_MODE


def test_the_map_that_stays_opaque_is_named_by_its_kind():
    graph = graph_of(Net(lambda self, x, w: functional.conv2d(x, w)), double(2, 3, 4, 4), double(4, 3, 1, 1))

    assert node(graph, "Conv").stop.code is StopCode.WEIGHT_NOT_CONSTANT
