"""Copies of modules.

`copy.deepcopy` refuses tensors that were computed with gradients, such as the weight that torch.nn.utils.weight_norm
leaves in a module; here they are copied without their history.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.errors import UnsupportedModelError
from bnfold.torch.capture.export import first_line

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_HINT = "Its __deepcopy__, or an attribute, is in the way: take that out, and fold then."


def shadow(module: ModuleT) -> ModuleT:
    """A copy that shares the parameters: to be traced and run, so that the module itself sees nothing of it.

    Raises:
        UnsupportedModelError: The module cannot be copied.
    """
    return copy_with(module, {parameter: _traceable(parameter) for parameter in module.parameters()})


def _traceable(parameter: nn.Parameter) -> nn.Parameter:
    """The same memory: torch.export cannot follow parameters with gradients that were made in inference mode."""
    if not (parameter.is_inference() and parameter.requires_grad):
        return parameter
    return nn.Parameter(parameter.detach(), requires_grad=False)


def copy_with(module: ModuleT, replacements: Mapping[Tensor, Tensor]) -> ModuleT:
    """A copy in which some tensors are replaced, wherever they are.

    Args:
        module: The module.
        replacements: For each such tensor what the copy has in its place.

    Raises:
        UnsupportedModelError: The module cannot be copied.
    """
    try:
        copied = _copied(module, replacements, ())
    except Exception as error:  # noqa: BLE001 - whatever an attribute raises
        try:
            copied = _copied(module, replacements, [*_uncopyable(module)])
        except Exception:  # noqa: BLE001 - likewise
            message = f"the module cannot be copied: {first_line(error)}"
            raise UnsupportedModelError(message, hint=_HINT) from error
    _require_copy(module, copied, replacements)
    return copied


def _copied(module: ModuleT, replacements: Mapping[Tensor, Tensor], shared: Iterable[object]) -> ModuleT:
    memo: dict[int, object] = {id(old): new for old, new in replacements.items()}
    memo.update({id(value): value for value in shared})
    with _WithoutHistory(), torch.no_grad():
        return copy.deepcopy(module, memo)


def _uncopyable(module: nn.Module) -> Iterator[object]:
    """The plain attributes of modules that cannot be copied, such as locks and open files."""
    known = [*module.modules(), *module.parameters(), *module.buffers()]
    for child in module.modules():
        for value in vars(child).values():
            try:
                copy.deepcopy(value, {id(item): item for item in known})
            except Exception:  # noqa: BLE001 - whatever the attribute raises
                yield value


def _require_copy(module: nn.Module, copied: nn.Module, replacements: Mapping[Tensor, Tensor]) -> None:
    """Refuses what a `__deepcopy__` of a module's own makes if it is no copy, or has other tensors."""
    before, after = (dict(found.named_modules(remove_duplicate=False)) for found in (module, copied))
    if [*before] != [*after]:
        raise UnsupportedModelError("the module cannot be copied: its copy has other submodules", hint=_HINT)
    for path, child in before.items():
        name = f"'{path}' ({type(child).__name__})" if path else f"a {type(child).__name__}"
        if after[path] is child:
            message = f"the module cannot be copied: a copy of {name} is the same object"
            raise UnsupportedModelError(message, hint=_HINT)
        if isinstance(child, torch.jit.ScriptModule):  # whose tensors are always copied, and never changed
            continue
        for held, copied_held in zip(_held(child), _held(after[path]), strict=True):
            if any(_expected(old, new, replacements) is not new for old, new in zip(held, copied_held, strict=True)):
                message = f"the module cannot be copied: a copy of {name} has tensors of its own"
                raise UnsupportedModelError(message, hint=_HINT)


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


def _held(module: nn.Module) -> Iterator[Iterable[Tensor | None]]:
    yield module._parameters.values()
    yield module._buffers.values()


def _expected(tensor: Tensor | None, copied: Tensor | None, replacements: Mapping[Tensor, Tensor]) -> Tensor | None:
    return copied if tensor is None else replacements.get(tensor, copied)
