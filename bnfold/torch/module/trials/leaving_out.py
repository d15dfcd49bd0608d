"""Calls like an example without something in it that may be left out: an argument or a field that has a default, a key.

What may be left out only a module knows, so these are suggestions. Flags stay as they are: with another one a module
is asked for something else.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count, islice

from torch import Tensor, nn

from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.returned_values import leaves
from bnfold.torch.module.trials.parts import parts

_MOST = 8
"""More are not left out one by one: each is a run of the module."""


def without(module: nn.Module, example: Arguments) -> list[tuple[str, Arguments]]:
    """Calls of a module without one part of an example.

    Args:
        module: The module.
        example: What it is called with.

    Returns:
        What is left out, as Python reads it, such as "batch['mask']", and the call.
    """
    found = _arguments(module, example)
    with suppress(Exception):  # whatever copies of an object raise
        return [*islice(found, _MOST)]
    return []


def _arguments(module: nn.Module, example: Arguments) -> Iterator[tuple[str, Arguments]]:
    args, kwargs = example
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # a forward that Python cannot look into
        return
    for position, (value, (name, default)) in enumerate(zip(args, _positions(parameters.values()), strict=False)):
        if default is not inspect.Parameter.empty and _has_tensors(value):
            yield name, ((*args[:position], default, *args[position + 1 :]), kwargs)
        for words, other in _inside(name, value):
            yield words, ((*args[:position], other, *args[position + 1 :]), kwargs)
    for name, value in kwargs.items():
        is_optional = name not in parameters or parameters[name].default is not inspect.Parameter.empty
        if is_optional and _has_tensors(value):
            yield name, (args, {other: kwargs[other] for other in kwargs if other != name})
        for words, other in _inside(name, value):
            yield words, (args, {**kwargs, name: other})


def _positions(parameters: Iterable[inspect.Parameter]) -> Iterator[tuple[str, object]]:
    """What positional arguments are called, one after the other, and their defaults."""
    for parameter in parameters:
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            yield parameter.name, parameter.default
        else:
            yield from ((f"{parameter.name}[{index}]", inspect.Parameter.empty) for index in count())


def _inside(name: str, value: object) -> Iterator[tuple[str, object]]:
    """A value without one of the parts that it has."""
    if not _has_tensors(value):
        return
    for part in parts(value):
        words = f"{name}{part.name}"
        if part.left_out is not None and _has_tensors(part.value):
            yield words, part.left_out()
        for deeper, other in _inside(words, part.value):
            yield deeper, part.replaced(other)


def _has_tensors(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))
