"""Calls with the same numbers as an example in another form: element type, order in memory, gradients.

They are made only where the code of a module asks for that of something that is no parameter.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.torch.capture.eager_run import run_first
from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.returned_values import with_tensors
from bnfold.torch.module.trials.questions import is_of_torch

_ELEMENT_TYPES = {
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex, Tensor.element_size),
}
_ORDERS = {Tensor.is_contiguous, Tensor.stride}
_GRADIENTS = {Tensor.requires_grad.__get__, Tensor.is_leaf.__get__}  # type: ignore[attr-defined]

_Change = Callable[[Tensor], Tensor]


def others(module: nn.Module, example: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Calls in another form, each with the words for it.

    Args:
        module: The module; a copy of it is run.
        example: What it is called with.
    """
    asked = _Asked()
    run_first(module, example, asked)  # what it asked before it failed was asked
    if asked.what & _ELEMENT_TYPES:
        for kind in (torch.float16, torch.bfloat16, torch.float64, torch.uint8):
            yield _as(example, f"of {kind}", partial(_floating, kind))
        for kind in (torch.int32, torch.uint8, torch.float32):
            yield _as(example, f"of {kind}", partial(_whole, kind))
    if asked.what & _ORDERS:
        yield _as(example, "in another memory order", _reordered)
    if asked.what & _GRADIENTS:
        yield _as(example, "with gradients", _with_gradients)


def _as(example: Arguments, words: str, change: _Change) -> tuple[str, Arguments]:
    return words, cast(Arguments, with_tensors(example, change))


def _floating(kind: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _whole(kind: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.to(kind)


def _reordered(tensor: Tensor) -> Tensor:
    """The last dimension is the slowest in memory, or, if it is already, the fastest."""
    if tensor.layout is not torch.strided:
        return tensor
    turned = tensor.movedim(-1, 0) if tensor.is_contiguous() and tensor.dim() else None
    return tensor.contiguous() if turned is None else turned.contiguous().movedim(0, -1)


def _with_gradients(tensor: Tensor) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.detach().requires_grad_(not tensor.requires_grad)


class _Asked(TorchFunctionMode):
    """Notes what code asks about tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.what: set[Callable[..., object]] = set()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        known = isinstance(args[0], nn.Parameter) if args else False
        if not known and not is_of_torch(sys._getframe(1).f_code.co_filename):
            self.what.add(func)
        return func(*args, **(kwargs or {}))
