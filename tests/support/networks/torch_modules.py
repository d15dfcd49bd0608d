"""Folds modules and checks what has to hold for all of them.

Modules here are float64 from the beginning, so that a fold and its original may differ by rounding in float64 alone.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

import bnfold
from bnfold.reasons import StopCode

EXACT = 1e-10


def trained(module: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module in eval mode and float64, with the parameters and statistics that training could leave."""
    generator = torch.Generator().manual_seed(seed)

    def random(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        tensor.copy_(values.to(tensor.dtype))

    module = module.to(dtype)
    with torch.no_grad():
        for child in module.modules():
            for name, tensor in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]:
                if not tensor.is_floating_point():
                    continue
                if name == "running_var":
                    random(tensor, 0.4, 2.0)
                elif isinstance(child, _BatchNorm) or "BatchNorm" in type(child).__name__:
                    random(tensor, -1.5, 1.5)
                elif not name.startswith("weight_") and "original" not in name and not name.startswith("_"):
                    random(tensor, -0.7, 0.7)
    return module.eval()


def inputs(*shapes: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def images(*, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return inputs((2, 3, 7, 6), seed=seed, dtype=dtype)


def run(module: nn.Module, example: Any) -> list[Tensor]:
    """The tensors that a module returns."""
    args, kwargs = arguments(example)
    with torch.no_grad():
        return tensors(module(*copy.deepcopy(args), **copy.deepcopy(kwargs)))


def arguments(example: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(example, Mapping):
        return (), example
    if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], Mapping):
        return example
    return example, {}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def distance(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest element of each tensor."""
    assert [(y.shape, y.dtype) for y in ours] == [(y.shape, y.dtype) for y in reference]
    gaps = [(a - b).abs().max() / b.abs().max().clamp(min=1e-300) for a, b in zip(ours, reference, strict=True)]
    return max(float(gap) for gap in gaps)


def fold(module: nn.Module, example: Any, **options: Any) -> "bnfold.FoldResult[nn.Module]":
    """Folds a module in eval mode, and checks it against the original and the original against itself."""
    reference = run(module, example)
    before = fingerprint(module)
    result = bnfold.fold(module, example, **options)
    assert fingerprint(module) == before
    assert distance(run(module, example), reference) == 0
    check(result, module, example)
    return result


def check(result: "bnfold.FoldResult[nn.Module]", module: nn.Module, example: Any) -> None:
    """The fold computes what the original does, also for other values, and every BN is in one entry of its plan."""
    folded = result.model
    assert type(folded) is type(module)
    assert distance(run(folded, example), run(module, example)) < EXACT
    args, kwargs = arguments(example)
    other = tuple(map(_other, args)), {name: _other(value) for name, value in kwargs.items()}
    assert distance(run(folded, other), run(module, other)) < EXACT
    names = [name for entry in (*result.plan.folds, *result.plan.left) for name in entry.nodes]
    assert len(names) == len(set(names))
    paths: dict[nn.Module, set[str]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        if isinstance(child, _BatchNorm):
            paths.setdefault(child, set()).add(path)
    assert all(len(known & set(names)) == 1 for known in paths.values())
    assert result.changed is bool(result.plan.folds)


def _other(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=value.dtype)
    return value


def fingerprint(module: nn.Module) -> list[object]:
    """Everything that a fold might change in a module that it must not touch."""
    found: list[object] = []
    for path, child in module.named_modules(remove_duplicate=False):
        found += [path, id(child), type(child), child.training, sorted(vars(child))]
        for name, tensor in [*child._parameters.items(), *child._buffers.items()]:
            found.append((name, None if tensor is None else (id(tensor), tensor.tolist(), tensor.requires_grad)))
    return found


def codes(result: "bnfold.FoldResult[nn.Module]") -> dict[str, StopCode]:
    return {left.nodes[0]: left.code for left in result.plan.left}


def folded_names(result: "bnfold.FoldResult[nn.Module]") -> list[str]:
    return [fold.nodes[0] for fold in result.plan.folds]


def naive(module: nn.Module, *pairs: tuple[str, str]) -> nn.Module:
    """What a tool does that folds each BN into the layer it follows in the list of modules, and looks no further."""
    copied = copy.deepcopy(module)
    for layer_path, norm_path in pairs:
        layer, norm = copied.get_submodule(layer_path), copied.get_submodule(norm_path)
        fuse: Callable[..., Any] = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
    for _, norm_path in pairs:
        parent, _, name = norm_path.rpartition(".")
        setattr(copied.get_submodule(parent), name, nn.Identity())
    return copied


def is_wrong(module: nn.Module, other: nn.Module, example: Any) -> bool:
    """Whether two modules compute something that is far from equal."""
    return distance(run(other, example), run(module, example)) > 1e-3
