"""Looking into a run, operation by operation: what is computed where, and how to compute all of it in float64.

Both work below autograd and autocast, on the operations that PyTorch really runs, so that they need to know nothing of
the model: it may be a module with any Python code in it, or an exported program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.torch.fx.unwritten import written_arguments

_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_WIDE = {**dict.fromkeys(_NARROW, torch.float64), torch.complex32: torch.complex128, torch.complex64: torch.complex128}
_HEAVY = frozenset(
    "aten::convolution aten::_convolution aten::addmm aten::mm aten::bmm aten::baddbmm aten::native_batch_norm"
    " aten::_native_batch_norm_legit_no_training aten::cudnn_batch_norm aten::mkldnn_convolution".split()
)
_METADATA = torch.ops.aten._assert_tensor_metadata.default

_Arguments = tuple[object, ...]
_Options = Mapping[str, object]


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64 (complex128) if it is of a narrower floating-point type, else the tensor itself."""
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `_operation` in place of each operation, also of those in the branches of torch.cond."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Callable[..., object], _: object, args: _Arguments = (), kwargs: _Options | None = None
    ) -> object:
        if func is torch.ops.higher_order.cond:
            predicate, if_true, if_false, operands = args
            branch = cast(Callable[..., object], if_true if predicate else if_false)
            with self:
                return branch(*cast(_Arguments, operands))
        return self._operation(func, args, kwargs or {})

    def _operation(self, func: Callable[..., object], args: _Arguments, kwargs: _Options) -> object:
        return func(*args, **kwargs)


class Float64(_Mode):
    """Computes everything in float64: what the code asks to have in float16, bfloat16 or float32 as well."""

    def _operation(self, func: Callable[..., object], args: _Arguments, kwargs: _Options) -> object:
        if func is _METADATA:
            return None  # an exported program insists on the dtypes that it was exported with
        written = written_arguments(func)  # which must stay the tensors that they are
        wide_args = [value if place in written else _widen_all(value) for place, value in enumerate(args)]
        wide_kwargs = {name: value if name in written else _widen_all(value) for name, value in kwargs.items()}
        return func(*wide_args, **wide_kwargs)


class Moved(_Mode):
    """Runs a program on another kind of device than the one that it was exported on.

    Args:
        device: Where it runs: what the program says of any other device counts for this one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def _operation(self, func: Callable[..., object], args: _Arguments, kwargs: _Options) -> object:
        if func is _METADATA:
            return None

        def move(value: object) -> object:
            return self._device if isinstance(value, torch.device) else value

        return func(*pytree.tree_map(move, args), **pytree.tree_map(move, dict(kwargs)))


class Placement(_Mode):
    """Notes where a run computes, and what in it may draw random numbers.

    Attributes:
        counts: Operations by the kind of device that holds their results.
        elsewhere: Operations whose results are not on the device asked for, in words.
        heavy_elsewhere: The first such convolution, matrix product or batch norm; "" if there is none.
        random: The first operation that may draw random numbers; "" if there is none.

    Args:
        device: The device asked for.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.counts: Counter[str] = Counter()
        self.elsewhere: list[str] = []
        self.heavy_elsewhere = ""
        self.random = ""

    def _operation(self, func: Callable[..., object], args: _Arguments, kwargs: _Options) -> object:
        result = func(*args, **kwargs)
        name = _name(func)
        if isinstance(func, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in func.tags:
            self.random = self.random or name
        tensors = [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        for kind in {tensor.device.type for tensor in tensors}:
            self.counts[kind] += 1
            if kind != self._device.type:
                self.elsewhere.append(f"{name} on {kind}")
                if name in _HEAVY:
                    self.heavy_elsewhere = self.heavy_elsewhere or f"{name} on {kind}"
        return result


def _widen_all(value: object) -> object:
    def widen(leaf: object) -> object:
        if isinstance(leaf, torch.dtype):
            return _WIDE.get(leaf, leaf)
        return widened(leaf) if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(widen, value)


def _name(func: object) -> str:
    return func._schema.name if isinstance(func, torch._ops.OpOverload) else str(func)
