"""Hooks: who watches a module.

A fold must not change what a hook sees. Hooks run while a module is traced, as at any call of it: what they add to the
computation is in the graph. Hooks by which torch itself computes a weight (the older weight_norm and spectral_norm,
pruning) watch nothing.
"""

from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

COMPUTES_WEIGHT = (WeightNorm, SpectralNorm, BasePruningMethod)
"""The forward pre-hooks by which torch computes a weight."""

_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_watched(module: nn.Module) -> bool:
    """Whether hooks of a module see its inputs or outputs, or their gradients."""
    found = (hook for kind in _KINDS for hook in getattr(module, kind).values())
    return any(not isinstance(hook, COMPUTES_WEIGHT) for hook in found)


def all_are_watched() -> bool:
    """Whether hooks are registered for all modules of the process."""
    return any(getattr(nn_module, f"_global{kind}") for kind in _KINDS)
