"""Copies of modules.

`copy.deepcopy` refuses tensors that were computed with gradients, such as the weight that torch.nn.utils.weight_norm
leaves in a module; here they are copied without their history. Some classes have a way of their own, by `__deepcopy__`
or as they are pickled, which may forget hooks and attributes, as that of fx.GraphModule does, start some anew, or
return another mode: what is missing or different is copied too.
"""

import argparse
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from bnfold.errors import UnsupportedModelError
from bnfold.torch.capture.export import first_line

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_OWN = ("training", "_parameters", "_buffers", "_modules")
_COPYING = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
_WITH_KNOWN_WAYS = (nn.Module, nn.modules.conv._ConvNd)
"""Classes whose ways leave nothing out; that of convolutions adds what those of old files lack."""
_MISSING = object()

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
        copied = copy.deepcopy(module, memo)
        if _has_own_way(module):
            _complete(module, copied, memo)
    return copied


def _has_own_way(module: nn.Module) -> bool:
    """Whether something in a module is copied by Python code of its own."""
    return any(_is_copied_by_its_class(type(child)) and not _is_script(child) for child in module.modules())


def _is_copied_by_its_class(kind: type[nn.Module]) -> bool:
    return any(
        all(getattr(kind, name, None) is not getattr(known, name, None) for known in _WITH_KNOWN_WAYS)
        for name in _COPYING
    )


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _complete(module: nn.Module, copied: nn.Module, memo: dict[int, object]) -> None:
    """Gives a copy the attributes, hooks and modes of what it was made of, where its class forgets them."""
    twins = dict(copied.named_modules(remove_duplicate=False))
    known = ((path, child) for path, child in module.named_modules() if path in twins and not _is_script(child))
    pairs = [(child, twins[path]) for path, child in known]
    for child, twin in pairs:
        if isinstance(child, fx.GraphModule) and isinstance(twin, fx.GraphModule):
            type(twin).__name__ = type(child).__name__  # each has a class of its own
        for key, value in vars(child).items():
            if key not in _OWN and not _is_kept(key, value, vars(twin).get(key, _MISSING)):
                twin.__dict__[key] = copy.deepcopy(value, memo)
    for child, twin in pairs:
        if twin.training is not child.training:
            twin.train(child.training)


def _is_kept(name: str, value: object, copied: object) -> bool:
    """Whether a copy has an attribute of the original, as far as that can be told."""
    if "_hooks" in name and isinstance(value, dict):
        return isinstance(copied, dict) and len(copied) == len(value)
    return copied is not _MISSING and _has_content_of(value, copied)


def _has_content_of(value: object, copied: object) -> bool:
    """Whether plain values, tensors and arrays are the same, in containers too; other objects are not looked into."""
    match value, copied:
        case ((bool() | int() | float() | str() | None), _):
            return type(copied) is type(value) and repr(copied) == repr(value)
        case Tensor(), _:
            return isinstance(copied, Tensor) and _are_equal(value, copied)
        case np.ndarray(), np.ndarray():
            return value.dtype == copied.dtype and value.shape == copied.shape and value.tobytes() == copied.tobytes()
        case ((list() | tuple() | deque()), (list() | tuple() | deque())):
            return type(copied) is type(value) and _have_content_of([*value], [*copied])
        case dict(), dict():
            return [*copied] == [*value] and _have_content_of([*value.values()], [*copied.values()])
        case ((SimpleNamespace() | argparse.Namespace()), _):
            return type(copied) is type(value) and _has_content_of(vars(value), vars(copied))
        case _ if is_dataclass(value):
            before, after = ([getattr(item, field.name, None) for field in fields(value)] for item in (value, copied))
            return type(copied) is type(value) and _have_content_of(before, after)
        case ((list() | tuple() | deque() | dict() | np.ndarray()), _):
            return False
        case _:
            return True


def _have_content_of(values: list[object], copied: list[object]) -> bool:
    return len(copied) == len(values) and all(map(_has_content_of, values, copied))


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
    own_way = _has_own_way(module)
    if [*before] != [*after]:
        raise UnsupportedModelError("the module cannot be copied: its copy has other submodules", hint=_HINT)
    for path, child in before.items():
        name = f"'{path}' ({type(child).__name__})" if path else f"a {type(child).__name__}"
        if after[path] is child:
            message = f"the module cannot be copied: a copy of {name} is the same object"
            raise UnsupportedModelError(message, hint=_HINT)
        if _is_script(child):  # whose tensors are always copied, and never changed
            for script_parameter, twin in zip(child.parameters(), after[path].parameters(), strict=True):
                twin.requires_grad_(script_parameter.requires_grad)
            continue
        if type(after[path]).__name__ != type(child).__name__ or after[path].training is not child.training:
            message = f"the module cannot be copied: a copy of {name} is of another class or in another mode"
            raise UnsupportedModelError(message, hint=_HINT)
        for held, copied_held in zip(_held(child), _held(after[path]), strict=True):
            for old, new in zip(held, copied_held, strict=True):
                is_copy = _expected(old, new, replacements) is new
                if not is_copy or (own_way and old not in replacements and not _are_equal(old, new)):
                    message = f"the module cannot be copied: a copy of {name} has tensors of its own"
                    raise UnsupportedModelError(message, hint=_HINT)


def _are_equal(old: Tensor | None, new: Tensor | None) -> bool:
    """Whether a tensor that was copied by whatever code is the same, as far as it has plain elements."""
    if old is None or new is None or old.layout is not torch.strided:
        return (old is None) == (new is None)
    same_kind = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
    if old.is_meta or old.is_quantized:
        return same_kind
    return same_kind and bool(((old == new) | (old.isnan() & new.isnan())).all())


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
