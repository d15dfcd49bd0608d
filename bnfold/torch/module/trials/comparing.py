"""What a module returns when it is called, and how far two results are from each other."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.torch.capture.eager_run import called, undisturbed
from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.returned_values import leaves

SAME = 64
"""Results that differ by no more than so many units of rounding, relative to the largest element, are the same."""


class Later(Exception):  # noqa: N818 - not an error of the module
    """A module returns what computes only when it is asked, so that nothing can be compared."""


def run(module: nn.Module, arguments: Arguments, calls: int = 1) -> list[Tensor] | None:
    """The tensors that a module returns, each time that it is called; None if it fails."""
    returned = attempt(module, arguments, calls)
    return None if isinstance(returned, Exception) else returned


def attempt(module: nn.Module, arguments: Arguments, calls: int = 1) -> list[Tensor] | Exception:
    """The tensors that a module returns, each time that it is called, or what it raises."""
    found: list[Tensor] = []
    with undisturbed(module.parameters()):
        for _ in range(calls):
            try:
                found += [tensor.clone() for tensor in _numbers(called(module, arguments))]  # a weight may be returned
            except Exception as error:  # noqa: BLE001 - whatever the code of the module raises
                return error
    return found


def _numbers(result: object) -> Iterator[Tensor]:
    """The tensors that are in a result, and arrays and numbers as tensors.

    Raises:
        Later: Something in it has yet to be computed.
    """
    for leaf in leaves(result):
        match leaf:
            case Tensor():
                yield leaf
            case bool() | int() | float() | complex():
                yield torch.as_tensor(leaf, dtype=torch.float64 if isinstance(leaf, float) else None)
            case np.ndarray() | np.generic() if leaf.dtype.kind in "biufc":
                yield torch.as_tensor(leaf)
            case _ if isinstance(leaf, Iterator) or (callable(leaf) and not isinstance(leaf, type)):
                raise Later(f"a {type(leaf).__name__}")
            case _:
                pass


def rounding(tensors: Iterable[Tensor]) -> float:
    """What results may differ by without further questions; nothing in element types of half the size."""
    finest = min((torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()), default=0.0)
    return SAME * finest if finest <= torch.finfo(torch.float32).eps else 0.0


def between(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of two results, relative to the largest element of each tensor."""
    if [(tensor.shape, tensor.dtype) for tensor in found] != [(tensor.shape, tensor.dtype) for tensor in expected]:
        return float("inf")
    return max((_difference(ours, theirs) for ours, theirs in zip(found, expected, strict=True)), default=0.0)


def coarse_rounding(tensors: Iterable[Tensor]) -> float:
    """What results may differ by that are computed in the coarsest of some element types."""
    return SAME * max((torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()), default=0.0)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    kind = torch.complex128 if ours.is_complex() else torch.float64
    mine, reference = (tensor.to_dense().to(kind) for tensor in (ours, theirs))
    finite = reference.isfinite()
    odd, odd_reference = (tensor[~finite].nan_to_num() for tensor in (mine, reference))
    if not finite.equal(mine.isfinite()) or not odd.equal(odd_reference):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = reference[finite].abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((mine - reference)[finite].abs().max() / largest)


def is_kept(value: Tensor, found: Tensor | None) -> bool:
    """Whether a value is the same, up to rounding that may have added up over all of a model."""
    if found is None or (found.shape, found.dtype) != (value.shape, value.dtype):
        return False
    noise = torch.finfo(value.dtype).eps ** 0.5 if value.is_floating_point() else 0.0
    return _difference(found, value) <= noise
