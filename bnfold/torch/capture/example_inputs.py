"""What a module is called with."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError

ExampleInputs = Sequence[object] | Mapping[str, object]
"""A tuple of positional inputs, a dict of named ones, or (args, kwargs); where it says so, a list of such examples."""

Call = tuple[tuple[object, ...], dict[str, object]]
"""Positional and named inputs."""

DynamicShapes = Mapping[str, object] | Sequence[object]
"""Which dimensions vary, as torch.export.export takes it."""

_FORMS = "Give a tuple of tensors, a dict of named ones, or (args, kwargs)."


def split_examples(examples: ExampleInputs) -> list[Call]:
    """The positional and the named inputs of each example.

    Args:
        examples: One example, or a list of examples, each a tuple or a dict.

    Raises:
        UsageError: It is nothing of this.
    """
    if type(examples) is list and examples and all(type(item) is tuple or _is_named(item) for item in examples):
        return [split_inputs(example) for example in examples]
    return [split_inputs(examples)]


def split_inputs(example: ExampleInputs) -> Call:
    """The positional and the named inputs of an example.

    Args:
        example: A tuple of positional inputs, a dict of named ones, or (args, kwargs): two items, the first a tuple or
            list, the second a dict with names as keys.

    Raises:
        UsageError: It is nothing of this.
    """
    if isinstance(example, torch.Tensor):
        message = "example_inputs is a tensor, not a tuple of inputs"
        raise UsageError(message, hint="Write (x,) for one tensor x.")
    if _is_named(example):
        return (), dict(example)
    if isinstance(example, tuple | list):
        if len(example) == 2 and isinstance(example[0], tuple | list) and _is_named(example[1]):
            return tuple(example[0]), dict(example[1])
        return tuple(example), {}
    if isinstance(example, np.ndarray):
        message = "example_inputs is a numpy array, not a tuple of tensors"
        raise UsageError(message, hint="Write (torch.from_numpy(array),) for one array.")
    message = f"example_inputs is a {type(example).__name__}"
    raise UsageError(message, hint=_FORMS)


def check_inputs(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Checks that a module's forward can be called like this.

    Raises:
        UsageError: It takes more, fewer or other arguments.
    """
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # a forward that Python cannot look into
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        message = f"the example inputs do not fit {type(module).__name__}.forward{signature}: {error}"
        raise UsageError(message, hint=_FORMS) from error


def array_hint(inputs: object) -> str:
    """What to do about numpy arrays among the inputs of a module that fails with them; "" if there are none."""
    if any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(inputs)):
        return "Some inputs are numpy arrays: give torch.from_numpy(array) instead."
    return ""


def _is_named(example: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(example, Mapping) and all(isinstance(name, str) for name in example)
