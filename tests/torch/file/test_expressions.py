"""Texts that torch would evaluate: those that it writes itself pass, everything else does not."""

import pytest

pytest.importorskip("torch")

import sympy
from torch.utils._sympy import functions

from bnfold.torch.file.pt2.expressions import is_guard, is_symbolic

S, T = sympy.Symbol("s0", integer=True, positive=True), sympy.Symbol("u1", integer=True)
WRITTEN = [
    S,
    2 * S + 1,
    S**2 / 3,
    sympy.Rational(1, 2) * S + 1.5,
    sympy.Max(1, S, T),
    sympy.Eq(S, 3) | (S > 2) & ~(T <= 4),
    sympy.Ne(S, 1),
    sympy.Piecewise((1, S > 2), (2, True)),
    sympy.floor(S / 2) + sympy.ceiling(T / 3),
    sympy.sqrt(2) * S,
    sympy.oo,
    sympy.true,
    functions.FloorDiv(S, 2) + functions.Mod(S, 3),
    functions.CeilDiv(S + T, 4),
    functions.PowByNatural(S, T),
    functions.OpaqueUnaryFn_sqrt(S),
    functions.Where(S > 2, S, T),
]


@pytest.mark.parametrize("expression", WRITTEN, ids=str)
def test_what_torch_writes_passes(expression):
    assert is_symbolic(sympy.srepr(expression))
    assert is_symbolic(str(expression)) or isinstance(expression, sympy.Piecewise)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('id')",
        "open('x')",
        "exec('1')",
        "Symbol('s0').__class__",
        "s0.diff",
        "().__class__.__bases__",
        "Symbol(open('x'))",
        "Symbol('s0', real=open('x'))",
        "Symbol('s0', **{})",
        "Symbol('s 0); open(0')",
        "Float('1.5); open(0')",
        "Max(*s0)",
        "Integer('9' * 9)",
        "lambda: 0",
        "[s0 for s0 in (1, 2)]",
        "(s0 := 3)",
        "f'{open(0)}'",
        "s0; open(0)",
        "s0\nopen(0)",
        "'s0'",
        "__builtins__",
        "9**9**9",
        "9**99999999",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Integer(9), Integer(99999999))",
        "PowByNatural(9, Add(Integer(999999999), Mul(Integer(0), Symbol('s0'))))",
        "LShift(1, 99999999)",
        "9" * 50,
        "(" * 5000 + "s0" + ")" * 5000,
        "s0 + " * 20000 + "s0",
        "",
    ],
)
def test_what_torch_does_not_write_is_refused(text):
    assert not is_symbolic(text)
    assert not is_guard(text.replace("s0", "L['x'].size()[0]"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L['x'].size()[0] == L['y'].size()[0]", True),
        ("L['x']['deep'][0].size()[1] % 2 == 0", True),
        ("Max(1, L['x'].size()[0]) >= 2 and not (2 > L['x'].stride()[0])", True),
        ("math.isnan(L['x'])", True),
        ("L['x'] == math.inf", True),
        ("L['x'] == 'text'", True),
        ("L['x'] == None", True),
        ("L['x'].tofile('name')", False),
        ("L['x'].__class__", False),
        ("torch.load('x')", False),
        ("math.__loader__", False),
        ("exit()", False),
        ("L['x\"); print(1); (\"'] == 3", False),
        ("L['x'] == 'a' + open('x').read()", False),
        ("L[f'{print(1)}'] == 3", False),
        ("L['x'].size()[0] == 9**9**9", False),
    ],
)
def test_guards(text, expected):
    assert is_guard(text) is expected
