"""Which functions a program that came from a file may call: operators, never Python functions by their path."""

from enum import StrEnum

import torch

_ARITHMETIC = frozenset(
    [
        *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "abs", "mul", "add", "sub", "floordiv", "truediv", "mod"),
        *("pow", "and_", "or_", "xor", "not_", "inv", "invert", "lshift", "rshift", "getitem", "index"),
    ]
)
_MATH = frozenset(
    {"trunc", "ceil", "floor", "sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "acos", "atan", "log2"}
)
_REACHING_OUT = frozenset({"debugprims", "image", "c10d", "_c10d_functional", "symm_mem", "inductor", "streams"})
"""Namespaces with operators that read or write files, or talk to other processes."""

_REACHING_OUT_OPERATORS = frozenset({"aten.from_file"})


class Target(StrEnum):
    """What the name of a function in an archive stands for."""

    OPERATOR = "operator"
    UNKNOWN_OPERATOR = "unknown operator"
    FORBIDDEN = "forbidden"


def classify(target: str) -> Target:
    """What `target` names, as torch.export writes it.

    Args:
        target: Such as "torch.ops.aten.conv2d.default", "_operator.getitem" or "torch.sym_max".

    Returns:
        OPERATOR if calling it computes and does nothing else; UNKNOWN_OPERATOR if it names an operator that nobody has
        registered; FORBIDDEN for everything else.
    """
    root, _, path = target.partition(".")
    if root == "_operator":
        return Target.OPERATOR if path in _ARITHMETIC else Target.FORBIDDEN
    if root == "math":
        return Target.OPERATOR if path in _MATH else Target.FORBIDDEN
    parts = target.split(".")
    if root != "torch" or "" in parts:
        return Target.FORBIDDEN
    if len(parts) == 2:
        is_symbolic = parts[1].startswith("sym_") or parts[1].startswith("_sym_")
        return Target.OPERATOR if is_symbolic and callable(getattr(torch, parts[1], None)) else Target.FORBIDDEN
    if parts[1] != "ops" or len(parts) not in (4, 5) or parts[2] in _REACHING_OUT:
        return Target.FORBIDDEN
    if ".".join(parts[2:4]) in _REACHING_OUT_OPERATORS:
        return Target.FORBIDDEN
    return _registered(parts[2:])


def _registered(parts: list[str]) -> Target:
    """Looks an operator up step by step, so that no attribute of anything else is ever reached."""
    if parts[0].startswith("__"):
        return Target.FORBIDDEN
    namespace = getattr(torch.ops, parts[0])
    if not isinstance(namespace, torch._ops._OpNamespace | torch._ops._HigherOrderNamespace):
        return Target.FORBIDDEN
    packet = getattr(namespace, parts[1], None)
    if isinstance(packet, torch._ops.HigherOrderOperator) and len(parts) == 2:
        return Target.OPERATOR
    if packet is None:
        return Target.UNKNOWN_OPERATOR
    if not isinstance(packet, torch._ops.OpOverloadPacket) or len(parts) != 3:
        return Target.FORBIDDEN
    overloads: list[str] = packet.overloads()  # type: ignore[no-untyped-call]
    if parts[2] not in overloads:
        return Target.UNKNOWN_OPERATOR
    # TorchScript has operators of its own, such as aten::save, that no exported program calls.
    name = f"{parts[0]}::{parts[1]}" + ("" if parts[2] == "default" else f".{parts[2]}")
    return Target.OPERATOR if torch._C._dispatch_has_kernel(name) else Target.FORBIDDEN
