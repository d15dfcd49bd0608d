"""Which texts in an archive of torch.export may be evaluated.

torch evaluates the symbolic sizes of a program with sympy, and writes its input guards into a Python function. Both are
texts in the file, so both are parsed here first, and refused unless they consist of names, numbers, arithmetic,
comparisons and the few functions that torch itself writes.
"""

import ast
import re
from functools import lru_cache

_SYMBOLIC_FUNCTIONS = frozenset(
    [
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
        *("LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt"),
        *("IsNonOverlappingAndDenseIndicator", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
        *(f"OpaqueUnaryFn_{name}" for name in ("sqrt", "exp", "log", "log2", "cos", "cosh", "sin", "sinh", "tan")),
        *(f"OpaqueUnaryFn_{name}" for name in ("tanh", "asin", "acos", "atan", "asinh")),
        *(f"BitwiseFn_bitwise_{name}" for name in ("and", "or", "xor")),
        *("Add", "Mul", "Pow", "Max", "Min", "Abs", "Integer", "Rational", "floor", "ceiling", "sqrt", "log", "exp"),
        *("And", "Or", "Not", "Xor", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality"),
        *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Piecewise", "ExprCondPair"),
    ]
)
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel", "is_integer"})
_GUARD_FUNCTIONS = frozenset({"isnan", "floor", "ceil", "trunc", "sqrt", "max", "min", "abs", "len"})
_SHARED = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Name, ast.Load, ast.Call, ast.IfExp),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_LENGTH_LIMIT = 20_000
_EXPONENT_LIMIT = 64
_NUMBER_LIMIT = 2**64
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "exp"})
_NAME = re.compile(r"\w+")
_DECIMAL = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?")
_KEY = re.compile(r"[\w.\- :/]*")


def is_symbolic(text: str) -> bool:
    """Whether a text is a symbolic size such as `2*s77 + FloorDiv(s3, 2)`, and nothing else."""
    tree = _parsed(text)
    if tree is None:
        return False
    return _is_symbolic_tree(tree.body)


@lru_cache(maxsize=256)
def is_guard(text: str) -> bool:
    """Whether a text is a guard on inputs such as `L['x'].size()[0] >= 2`, and nothing else."""
    tree = _parsed(text)
    if tree is None:
        return False
    nodes = [*ast.walk(tree)]
    methods = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return all(_is_guard_node(node, called=id(node) in methods) for node in nodes)


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > _LENGTH_LIMIT:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_symbolic_tree(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("Symbol", "Float"):
            return _is_atom(node, _NAME if name == "Symbol" else _DECIMAL)
        harmless = name in _SYMBOLIC_FUNCTIONS and not node.keywords and not _is_huge_power(name, node.args)
        return harmless and all(map(_is_symbolic_tree, node.args))
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant):
        return _is_number(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_huge_power("Pow", [node.left, node.right]):
        return False
    return isinstance(node, _SHARED) and all(map(_is_symbolic_tree, ast.iter_child_nodes(node)))


def _is_atom(call: ast.Call, form: re.Pattern[str]) -> bool:
    """Whether this is `Symbol('s77', positive=True)`, `Float('1.5', precision=53)` or the like."""
    flags = [keyword.value for keyword in call.keywords]
    texts = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
    return (
        all(isinstance(flag, ast.Constant) and isinstance(flag.value, int) and flag.value <= 64 for flag in flags)
        and all(keyword.arg for keyword in call.keywords)
        and len(texts) == 1
        and isinstance(texts[0], str)
        and form.fullmatch(texts[0]) is not None
    )


def _is_huge_power(function: str, arguments: list[ast.expr]) -> bool:
    """Whether sympy might write out a number with no end of digits."""
    return function in _POWERS and not (arguments and _is_small(arguments[-1]))


def _is_small(exponent: ast.expr) -> bool:
    """Whether an exponent is a small number or a symbol, of which nothing is written out."""
    if isinstance(exponent, ast.UnaryOp):
        return _is_small(exponent.operand)
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name):
        name = exponent.func.id
        return name == "Symbol" or (name in ("Integer", "Rational", "Float") and all(map(_is_small, exponent.args)))
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    if isinstance(value, str):  # within Float, which is checked apart
        return _DECIMAL.fullmatch(value) is not None and abs(float(value)) <= _EXPONENT_LIMIT
    return isinstance(exponent, ast.Name) or (isinstance(value, int | float) and abs(value) <= _EXPONENT_LIMIT)


def _is_guard_node(node: ast.AST, *, called: bool) -> bool:
    if isinstance(node, ast.Name):
        return (node.id in _GUARD_FUNCTIONS | _SYMBOLIC_FUNCTIONS - _POWERS) if called else "__" not in node.id
    if isinstance(node, ast.Attribute):
        return node.attr in _GUARD_METHODS | (_GUARD_FUNCTIONS | {"inf"} if _is_math(node.value) else set())
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute) and not node.keywords
    if isinstance(node, ast.Constant):
        text = node.value
        return _KEY.fullmatch(text) is not None if isinstance(text, str) else text is None or _is_number(text)
    if isinstance(node, ast.BinOp):
        sides = [node.left, node.right]
        has_text = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
        return not has_text and not (isinstance(node.op, ast.Pow | ast.LShift) and _is_huge_power("Pow", sides))
    return isinstance(node, (*_SHARED, ast.Subscript))


def _is_math(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "math"


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _NUMBER_LIMIT)
