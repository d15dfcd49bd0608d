"""Spelled-out affines behind products: a layer of their own moves, a piece of what runtimes know as a whole stays."""

import numpy as np
import pytest
import torch
from onnx_fold import fold, parse, random
from torch import Tensor, nn

import bnfold

ONE = {"one": np.array(1.0), "three": np.array(3.0), "six": np.array(6.0), "zero": np.array(0.0)}
NUMBERS = {**ONE, "half": np.array(0.5), "root2": np.array(2**0.5), "two": np.array(2.0), "eps": np.array(1e-5)}

GATES = {
    "SiLU": "g = Sigmoid (c) r = Mul (c, g)",
    "SiLU, the other way round": "g = Sigmoid (c) r = Mul (g, c)",
    "a gate": "pooled = GlobalAveragePool (c) g = Sigmoid (pooled) r = Mul (c, g)",
    "a quotient": "p = Abs (c) q = Add (p, one) r = Div (c, q)",
    "hard swish": "c3 = Add (c, three) g = Clip (c3, zero, six) p = Mul (c, g) r = Div (p, six)",
    "Gelu": "d = Div (c, root2) e = Erf (d) f = Add (e, one) p = Mul (c, f) r = Mul (p, half)",
}
"""What lies between a convolution `c` and an affine, with what is in it that must stay."""


def constants(text: str, **others: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers that a model reads, and others."""
    words = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    return {**{name: number for name, number in NUMBERS.items() if name in words}, **others}


def behind(gate: str, pads: int = 0) -> str:
    return (
        f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ c = Conv (x, v) {gate} m = Mul (r, s) a = Add (m, t)"
        f" y = Conv <pads=[{pads},{pads},{pads},{pads}]> (a, w) }}"
    )


@pytest.mark.parametrize("size", [(1, 4, 1, 1), (1,)], ids=["per channel", "one number"])
@pytest.mark.parametrize("name", GATES)
def test_an_affine_behind_a_product_moves_and_leaves_the_activation_whole(name: str, size: tuple[int, ...]) -> None:
    gate = GATES[name]
    arrays = {"s": random(*size), "t": random(*size, seed=2)}
    text = behind(gate)
    folded = fold(parse(text, **constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 1, 1), **arrays)))
    expected = [line.split(" (")[0].split(" = ")[-1] for line in gate.split(") ")]
    assert [node.op_type for node in folded.model.graph.node] == ["Conv", *expected, "Conv"]


@pytest.mark.parametrize("name", GATES)
def test_what_stays_behind_a_product_is_listed(name: str) -> None:
    arrays = {"s": random(4, 1, 1), "t": random(4, 1, 1, seed=2)}
    text = behind(GATES[name], pads=1)
    folded = fold(parse(text, **constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3), **arrays)))
    assert "Mul(m)" in [name for left in folded.plan.left for name in left.nodes]


@pytest.mark.parametrize("name", ["hard swish", "Gelu"])
def test_the_number_that_an_activation_ends_in_stays_and_is_listed(name: str) -> None:
    text = (
        f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ c = Conv (x, v) {GATES[name]}"
        " y = Conv <pads=[1,1,1,1]> (r, w) }"
    )
    folded = fold(parse(text, **constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3))))
    assert folded.model == folded.original
    assert "activation" in folded.plan.left[-1].reason


@pytest.mark.parametrize("name", ["hard swish", "Gelu"])
def test_an_activation_stays_whole_through_what_passes_values_on(name: str) -> None:
    body = GATES[name].replace("r = ", "i = Identity (p) r = ").replace("(p, ", "(i, ")
    assert "Identity" in body
    body = f"c = Conv (x, v) {body} j = Identity (r) y = Conv (j, w)"
    text = f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ {body} }}"
    folded = fold(parse(text, **constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3))))
    assert folded.model == folded.original


@pytest.mark.parametrize("body", ["i = Identity (c) y = Add (i, k)", "i = Mul (c, k) j = Identity (i) y = Conv (j, w)"])
def test_a_number_beside_a_map_moves_past_what_passes_values_on(body: str) -> None:
    text = f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ s = Sigmoid (x) c = Conv (s, v) {body} }}"
    given = constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3), k=np.array([[[[0.25]]]]))
    folded = fold(parse(text, **given))
    assert folded.count("Add") == folded.count("Mul") == 0


@pytest.mark.parametrize("name", ["hard swish", "Gelu"])
def test_the_exact_gate_recognises_the_same(name: str) -> None:
    """Its own small numbers are not what an activation ends in, so that number has to stay."""
    text = (
        f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ b = Conv (x, v) c = Mul (b, s) {GATES[name]}"
        " y = Conv <pads=[1,1,1,1]> (r, w) }"
    )
    given = constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3), s=random(4, 1, 1))
    result = bnfold.fold(parse(text, **given))
    assert [(fold.nodes, fold.targets) for fold in result.plan.folds] == [(("Mul(c)",), ("Conv(b)",))]
    assert result.check().verdict == "pass", result.check().reason


def test_a_number_that_only_looks_like_that_moves() -> None:
    """A half behind SiLU, and a third behind Gelu's function, belong to nothing."""
    for function, number in (("g = Sigmoid (c)", 0.5), ("e = Erf (c) g = Add (e, one)", 1 / 3)):
        text = (
            f"agraph (double[2,3,6,6] x) => (double[2,4,h,w] y) {{ c = Conv (x, v) {function} p = Mul (c, g)"
            " r = Mul (p, k) y = Conv <pads=[1,1,1,1]> (r, w) }"
        )
        given = constants(text, v=random(4, 3, 1, 1), w=random(4, 4, 3, 3), k=np.array(number))
        assert fold(parse(text, **given)).count("Mul") == 1


NORMALISATIONS = {
    "LayerNorm": "mu = ReduceMean <axes=[-1]> (x) d = Sub (x, mu) q = Mul (d, d) v = ReduceMean <axes=[-1]> (q)"
    " ve = Add (v, eps) sd = Sqrt (ve) n = Div (d, sd)",
    "by Pow and Reciprocal": "mu = ReduceMean <axes=[-1]> (x) d = Sub (x, mu) q = Pow (d, two)"
    " v = ReduceMean <axes=[-1]> (q) ve = Add (v, eps) sd = Sqrt (ve) rs = Reciprocal (sd) n = Mul (d, rs)",
    "the factors swapped": "mu = ReduceMean <axes=[-1]> (x) d = Sub (x, mu) q = Mul (d, d) v = ReduceMean <axes=[-1]>"
    " (q) ve = Add (v, eps) sd = Sqrt (ve) rs = Div (one, sd) n = Mul (rs, d)",
    "root mean square": "q = Pow (x, two) v = ReduceMean <axes=[-1]> (q) ve = Add (v, eps) sd = Sqrt (ve)"
    " rs = Div (one, sd) n = Mul (x, rs)",
    "vectors": "sd = ReduceL2 <axes=[-1]> (x) n = Div (x, sd)",
}


def normalised(name: str) -> str:
    return (
        f"agraph (double[2,5,4] x) => (double[2,5,4] y) {{ {NORMALISATIONS[name]} ng = Mul (n, gamma)"
        " nb = Add (ng, beta) y = MatMul (nb, w) }"
    )


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_stays_whole(name: str) -> None:
    text = normalised(name)
    given = constants(text, gamma=random(4), beta=random(4, seed=2), w=random(4, 4))
    folded = fold(parse(text, **given))
    assert folded.model == folded.original
    assert "end of a normalisation" in folded.plan.left[-1].reason


def test_the_root_of_another_value_makes_no_normalisation() -> None:
    """Divided by the root of the mean of something else, as a cosine classifier or a gate may be."""
    text = """agraph (double[2,5,4] x, double[2,5,4] z) => (double[2,5,4] y) {
        q = Mul (z, z) v = ReduceMean <axes=[-1]> (q) ve = Add (v, eps) sd = Sqrt (ve) n = Div (x, sd)
        ng = Mul (n, gamma) nb = Add (ng, beta) p = MatMul (nb, w) y = Add (p, b)
    }"""
    given = constants(text, gamma=random(4), beta=random(4, seed=2), w=random(4, 4), b=random(4))
    folded = fold(parse(text, **given))
    assert [node.op_type for node in folded.model.graph.node][-3:] == ["Div", "MatMul", "Add"]


class Behind(nn.Module):
    """A convolution, an activation, an affine, a convolution."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)
        self.activation = activation
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)) * self.scale + self.shift)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)


@pytest.mark.parametrize(("activation", "moves"), [(Gate, True), (Normalised, False)])
def test_programs_are_read_in_the_same_way(activation: type[nn.Module], moves: bool) -> None:
    torch.manual_seed(0)
    module = Behind(activation()).double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    result = bnfold.fold(torch.export.export(module, (x,)))
    assert bool(result.plan.folds) is moves
    assert bool(result.plan.left) is not moves
    folded = result.model.module()(x)
    assert torch.allclose(folded, module(x), rtol=1e-12, atol=1e-12)
