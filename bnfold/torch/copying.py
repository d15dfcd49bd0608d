"""Copies of modules.

`copy.deepcopy` refuses tensors that were computed with gradients, such as the weight that torch.nn.utils.weight_norm
leaves in a module; here they are copied without their history.
"""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.errors import UnsupportedModelError
from bnfold.torch.tracing import first_line

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def shadow(module: ModuleT) -> ModuleT:
    """A copy that shares the parameters: to be traced and run, so that the module itself sees nothing of it.

    Raises:
        UnsupportedModelError: The module cannot be copied.
    """
    return copy_with(module, {parameter: parameter for parameter in module.parameters()})


def copy_with(module: ModuleT, replacements: Mapping[Tensor, Tensor]) -> ModuleT:
    """A copy in which some tensors are replaced, wherever they are.

    Args:
        module: The module.
        replacements: For each such tensor what the copy has in its place.

    Raises:
        UnsupportedModelError: The module cannot be copied.
    """
    memo: dict[int, object] = {id(old): new for old, new in replacements.items()}
    try:
        with _WithoutHistory(), torch.no_grad():
            return copy.deepcopy(module, memo)
    except Exception as error:
        message = f"the module cannot be copied: {first_line(error)}"
        raise UnsupportedModelError(message, hint="Fold it with inplace=True.") from error


class _WithoutHistory(TorchFunctionMode):
    """Makes copy.deepcopy copy tensors that are no leaves, detached."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is Tensor.__deepcopy__ and isinstance(args[0], Tensor) and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))
