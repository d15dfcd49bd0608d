"""Carries a plan out on a module: new weights, and other modules in the place of those whose affine is gone.

A module that goes becomes an nn.Identity, or an nn.Sequential of what remains of it, by changing what it is: whoever
holds it, in whatever list or closure, holds the new one.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from bnfold.algebra.linear_map import Folding
from bnfold.algebra.rounding import Array
from bnfold.planning.plan import Plan
from bnfold.torch.capture.copying import copy_with
from bnfold.torch.fx.tensors import to_torch
from bnfold.torch.module.constraints import Constraints
from bnfold.torch.module.tensor_slots import Group
from bnfold.torch.module.weight_homes import Computed, computing_hook

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Write:
    """New values for a parameter or buffer.

    Attributes:
        places: The paths of the modules that have it, each with its name there.
        compute: Gives the values.
        exact: Gives them in float64, before they are rounded.
    """

    places: tuple[tuple[str, str], ...]
    compute: Callable[[], Array]
    exact: Callable[[], Array]


@dataclass(frozen=True, slots=True)
class Edits:
    """Everything that changes in a module.

    Attributes:
        writes: New values for what there is.
        added: New biases.
        computed: Values that take the place of a parametrization.
        removed: The paths of the modules that go away, with the names of their submodules that stay.
    """

    writes: tuple[Write, ...]
    added: tuple[Write, ...]
    computed: tuple[Write, ...]
    removed: Mapping[str, tuple[str, ...]]

    @property
    def changes(self) -> bool:
        """Whether there are any."""
        return bool(self.writes or self.added or self.computed or self.removed)

    @property
    def exact(self) -> "Edits":
        """The same with values that are not rounded, for a module in float64."""
        writes, added, computed = (
            tuple(replace(write, compute=write.exact) for write in each)
            for each in (self.writes, self.added, self.computed)
        )
        return Edits(writes, added, computed, self.removed)


def edits_of(plan: Plan, constraints: Constraints, module: nn.Module, paths: Mapping[nn.Module, str]) -> Edits:
    """What a plan means for a module.

    Args:
        plan: The plan.
        constraints: The constraints that it was made with.
        module: The module that is to be changed, or a copy of which.
        paths: The paths of the modules that the plan was made for.
    """
    writes: dict[Group, Write] = {}
    added: dict[str, Write] = {}
    computed: dict[tuple[str, str], Write] = {}
    for node, folding in plan.foldings.items():
        home = constraints.homes[node]
        # A bias depends on the weight as it was, so it is computed before anything is written.
        bias = folding.bias()
        new: list[tuple[Group | Computed | None, Callable[[], Array], Callable[[], Array]]] = [
            (home.weight, folding.weight, folding.exact_weight)
        ]
        if bias is not None:
            new.append((home.bias, bias.copy, partial(_exact_bias, folding)))
        for kept, compute, exact in new:
            match kept:
                case Computed():
                    place = (paths[kept.module], kept.name)
                    computed[place] = Write((place,), compute, exact)
                case Group():
                    here = tuple(
                        (slot.path, slot.name)
                        for slot in kept.slots
                        if _tensor(module, slot.path, slot.name) is not None
                    )
                    if here:
                        writes[kept] = Write(here, compute, exact)
                    elif compute().any():
                        slot = kept.slots[0]
                        added[slot.path] = Write(((slot.path, slot.name),), compute, exact)
                case None:
                    assert home.owner is not None  # a constraint
                    path = paths[home.owner]
                    added[path] = Write(((path, "bias"),), compute, exact)
    gone = [constraints.removals[step.source] for step in plan.steps]
    removed = {paths[removal.module]: removal.remains for removal in gone}
    return Edits(tuple(writes.values()), tuple(added.values()), tuple(computed.values()), removed)


def _exact_bias(folding: Folding) -> Array:
    bias = folding.exact_bias()
    assert bias is not None  # there is a rounded one
    return bias


def apply_module(module: ModuleT, edits: Edits, *, inplace: bool) -> ModuleT:
    """Makes the edits.

    Args:
        module: A module.
        edits: What to do.
        inplace: Whether to change the module itself, its parameters remaining the objects that they are.

    Returns:
        The module, or a copy with the edits.

    Raises:
        UnsupportedModelError: The module cannot be copied.
    """
    if inplace:
        _write_into(module, edits.writes)
    else:
        module = copy_with(module, dict(_replacements(module, edits.writes)))
    for write in edits.computed:
        ((path, name),) = write.places
        _materialise(module.get_submodule(path), name, write.compute())
    for write in edits.added:
        ((path, name),) = write.places
        layer = module.get_submodule(path)
        weight = layer.weight
        assert isinstance(weight, Tensor)  # a parameter, or what still computes one
        bias = to_torch(write.compute(), weight.device)
        layer.register_parameter(name, nn.Parameter(bias, requires_grad=weight.requires_grad))
    for path, remains in edits.removed.items():
        _become(module.get_submodule(path), remains)
    return module


def _write_into(module: nn.Module, writes: tuple[Write, ...]) -> None:
    for write in writes:
        values = write.compute()
        for path, name in write.places:
            tensor = _tensor(module, path, name)
            assert tensor is not None  # `edits_of` has looked
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(to_torch(values, tensor.device, copy=False).view(tensor.shape))


def _replacements(module: nn.Module, writes: tuple[Write, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors to be replaced, each with the one that takes its place."""
    for write in writes:
        values: Tensor | None = None
        for tensor in dict.fromkeys(_tensor(module, path, name) for path, name in write.places):
            assert tensor is not None  # `edits_of` has looked
            if values is None:
                values = _in_layout_of(tensor, to_torch(write.compute(), tensor.device, copy=False).view(tensor.shape))
            match tensor:
                case nn.Parameter():
                    yield tensor, nn.Parameter(values, requires_grad=tensor.requires_grad)
                case _:
                    yield tensor, values


def _in_layout_of(tensor: Tensor, values: Tensor) -> Tensor:
    """The values with the strides of a tensor."""
    if tensor.stride() == values.stride():
        return values
    return torch.empty_like(tensor, requires_grad=False).copy_(values)


def _materialise(module: nn.Module, name: str, values: Array) -> None:
    """Puts a parameter with new values in the place of a parametrization."""
    if parametrize.is_parametrized(module, name):
        _drop_parametrization(module, name, values)
        return
    key = computing_hook(module, name)
    assert key is not None  # a constraint
    hook = module._forward_pre_hooks[key]
    originals = [module._parameters.get(f"{name}_{suffix}") for suffix in ("orig", "v")]
    needs_grad = any(original is not None and original.requires_grad for original in originals)
    device = getattr(module, name).device
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, name)
        del module._parameters[name]
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, name)
        del module._parameters[name]
        _drop_loading_hook(module, name)
    else:  # prune.remove would write into the original, which may be tied
        del module._forward_pre_hooks[key], module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
        delattr(module, name)
    module.register_parameter(name, nn.Parameter(to_torch(values, device), requires_grad=needs_grad))


def _drop_loading_hook(module: nn.Module, name: str) -> None:
    """Takes away the hook that wants the weight of a spectral norm in state dicts; torch looks for it and misses it."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in [*hooks.items()]:
        inner = getattr(hook, "hook", hook)
        if isinstance(inner, SpectralNormLoadStateDictPreHook) and inner.fn.name == name:
            del hooks[key]


def _drop_parametrization(module: nn.Module, name: str, values: Array) -> None:
    """What parametrize.remove_parametrizations does, but for one module: its copies share the class."""
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)  # it is parametrized
    originals = [*lists[name].parameters(recurse=False)]
    device = getattr(module, name).device
    del lists[name]
    kind = type(module)
    base = kind.__bases__[0]
    if len(lists):
        others = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, (base,), others)
    else:
        del module.parametrizations
        module.__class__ = base
    needs_grad = any(original.requires_grad for original in originals)
    module.register_parameter(name, nn.Parameter(to_torch(values, device), requires_grad=needs_grad))


def _become(module: nn.Module, remains: tuple[str, ...]) -> None:
    """Makes a module an nn.Identity, or an nn.Sequential of some of its submodules; plain attributes stay."""
    stays = OrderedDict((name, module.get_submodule(name)) for name in remains)
    new = nn.Sequential(stays) if stays else nn.Identity()
    new.training = module.training
    plain = {
        key: value
        for key, value in vars(module).items()
        if key not in vars(new) and not hasattr(type(new), key) and not isinstance(value, Tensor)
    }
    vars(module).clear()
    vars(module).update({**plain, **vars(new)})
    module.__class__ = type(new)


def _tensor(module: nn.Module, path: str, name: str) -> Tensor | None:
    owner = module.get_submodule(path)
    return owner._parameters.get(name, owner._buffers.get(name))
