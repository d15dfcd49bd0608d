"""What a fold of a module is right for only because the module is called as in its examples, in sentences.

A fold is right for every input with which the code takes a path that an example takes. Other sizes are tried
(`bnfold.torch.module.trials`), and so are calls without what may be left out; flags, inputs that the example leaves
out, how many elements a list has, and methods that run a part of the module are not.
"""

import dis
import inspect
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import takewhile
from types import CodeType, FunctionType

import torch
from torch import nn

from bnfold.planning.plan import Plan
from bnfold.text.tables import plural
from bnfold.torch.capture.example_inputs import Call
from bnfold.torch.module.trials.parts import parts

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device, torch.layout)


def assumptions(module: nn.Module, examples: Sequence[Call], plan: Plan) -> tuple[str, ...]:
    """What a plan takes for granted.

    Args:
        module: The module.
        examples: What it was planned for.
        plan: The plan; nothing is assumed where it folds nothing.
    """
    if not plan.folds:
        return ()
    return tuple(dict.fromkeys([*_arguments(module, examples), *_methods(module, plan)]))


def _arguments(module: nn.Module, examples: Sequence[Call]) -> Iterator[str]:
    """What is the same in all examples about arguments of forward, besides sizes and numbers in tensors."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # a forward that Python cannot look into
        return
    calls = [signature.bind(*args, **kwargs).arguments for args, kwargs in examples]
    for name, parameter in signature.parameters.items():
        match parameter.kind:
            case inspect.Parameter.VAR_POSITIONAL:
                facts = _facts(f"*{name}", [call.get(name, ()) for call in calls]) if _reads(module, name) else ()
            case inspect.Parameter.VAR_KEYWORD:
                facts = _facts(f"**{name}", [call.get(name, {}) for call in calls]) if _reads(module, name) else ()
            case _:
                facts = _facts(name, [call.get(name, parameter.default) for call in calls])
        yield from (f"forward is called with {fact}, as in the example" for fact in facts)


def _facts(name: str, values: Sequence[object], above: frozenset[int] = frozenset()) -> Iterator[str]:
    """What all values have in common that code may branch on.

    Args:
        name: As Python reads them.
        values: What the examples have there.
        above: The containers that the first one is in, by their ids: one that holds itself is followed once.
    """
    first = values[0]
    if _is_plain(first):
        if all(type(value) is type(first) and value == first for value in values):
            yield f"{name}={first!r}"
        return
    if id(first) in above or any(type(value) is not type(first) for value in values):
        return
    inside = [{part.name: part.value for part in parts(value)} for value in values]
    common = [part for part in inside[0] if all(part in others for others in inside)]
    if all(len(others) == len(common) for others in inside):
        match first:
            case Mapping():
                what = f"the key{'' if len(first) == 1 else 's'} {', '.join(map(repr, first))}" if first else "nothing"
                yield f"{what} in {name}"
            case list() | tuple() if not hasattr(first, "_fields"):
                yield f"{plural(len(first), 'element')} in {name}"
            case _:
                pass
    for part in common:
        yield from _facts(f"{name}{part}", [others[part] for others in inside], above | {id(first)})


def _is_plain(value: object) -> bool:
    """Whether something is a flag, a number, a name, or a list of some."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _reads(module: nn.Module, name: str) -> bool:
    """Whether forward does anything with one of its arguments."""
    code = getattr(inspect.unwrap(module.forward), "__code__", None)
    return code is None or any(
        instruction.opname.startswith("LOAD") and name in _words(instruction.argval)
        for instruction in dis.get_instructions(code)
    )


def _words(read: object) -> tuple[object, ...]:
    """What an instruction names: one variable, or the two that it reads at once."""
    return read if isinstance(read, tuple) else (read,)


def _methods(module: nn.Module, plan: Plan) -> Iterator[str]:
    """Methods that run one side of a fold without the other."""
    for fold in plan.folds:
        for target in fold.targets:
            source_path, target_path = (name.partition("/")[0].split(".") for name in (fold.nodes[0], target))
            shared = [*takewhile(lambda pair: pair[0] == pair[1], zip(source_path, target_path, strict=False))]
            ends = {path[len(shared)] for path in (source_path, target_path) if len(path) > len(shared)}
            owner = _module(module, source_path[: len(shared)])
            for method in _methods_of(owner) if owner is not None else ():
                if len(ends & _names(method.__code__)) == 1 < len(ends):
                    where = ".".join(source_path[: len(shared)])
                    called = f"{method.__name__}() of '{where}'" if where else f"{method.__name__}()"
                    yield f"{called} is not called by itself: '{fold.nodes[0]}' is folded into '{target}'"


def _module(module: nn.Module, path: Sequence[str]) -> nn.Module | None:
    for name in path:
        found = module._modules.get(name)
        if found is None:
            return None
        module = found
    return module


def _methods_of(module: nn.Module) -> Iterator[FunctionType]:
    """The public methods that the class of a module has besides forward and those of torch."""
    found: dict[str, object] = {}
    for kind in reversed(type(module).__mro__):
        if not kind.__module__.startswith("torch.") and kind is not object:
            found.update(vars(kind))
    for name, method in found.items():
        if isinstance(method, FunctionType) and name != "forward" and not name.startswith("_"):
            yield method


def _names(code: CodeType) -> set[str]:
    """The attributes that the code of a method names, that of functions inside of it included."""
    inside = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    texts = (constant for constant in code.co_consts if isinstance(constant, str))
    return {*code.co_names, *texts}.union(*inside)
