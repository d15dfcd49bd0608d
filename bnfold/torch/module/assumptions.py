"""What a fold of a module is right for only because the module is called as in its examples, in sentences.

A fold is right for every input with which the code takes a path that an example takes. Other sizes are tried
(`bnfold.torch.module.trials`); flags, inputs that are left out, and methods that run a part of the module are not.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import takewhile
from types import CodeType, FunctionType

from torch import nn

from bnfold.planning.plan import Plan
from bnfold.torch.capture.example_inputs import Call

_PLAIN = (bool, int, float, str, type(None))


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
    """Arguments of forward that are no tensors, and the same in all examples."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # a forward that Python cannot look into
        return
    calls = [signature.bind(*args, **kwargs).arguments for args, kwargs in examples]
    for name, parameter in signature.parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        values = [call.get(name, parameter.default) for call in calls]
        if all(isinstance(value, _PLAIN) and value == values[0] for value in values):
            yield f"forward is called with {name}={values[0]!r}, as in the example"


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
