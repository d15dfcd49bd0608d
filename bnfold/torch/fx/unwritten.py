"""Tensors that code writes to while it runs, as a limit on the norm of a weight does: put back.

Copies of a module share its parameters, for there may be no room for two of each. So what is about to be written to is
copied first, and only that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.torch.fx.tensors import memory


@contextmanager
def unwritten(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Puts back the elements of tensors, what `tensor.data` was set to, and whether gradients are wanted."""
    held = [(tensor, tensor.data, tensor.requires_grad) for tensor in tensors]
    writes = _Writes(data for _, data, _ in held)
    try:
        with writes if held else nullcontext():
            yield
    finally:
        for tensor, data, requires_grad in held:
            if memory(tensor) != memory(data) or _layout(tensor) != _layout(data):
                tensor.data = data
            if tensor.is_leaf and tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)
        writes.put_back()


def written_arguments(function: object) -> frozenset[int | str]:
    """Places and names of the arguments that an operator writes into."""
    if not isinstance(function, OpOverload) or not function._schema.is_mutable:
        return frozenset()
    given = enumerate(function._schema.arguments)
    written = [(place, one.name) for place, one in given if one.alias_info is not None and one.alias_info.is_write]
    return frozenset(key for keys in written for key in keys)


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies the memory of tensors before the first operator that writes to it.

    Args:
        tensors: The tensors.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = {memory(tensor): tensor for tensor in tensors}
        self._copies: dict[int, torch.UntypedStorage] = {}

    def put_back(self) -> None:
        """Puts back what was written to."""
        for key, copied in self._copies.items():
            self._tensors[key].untyped_storage().copy_(copied, False)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        known: dict[int | str, object] = dict(enumerate(args))
        known.update(given)
        # What the graphs of a higher-order operator write to is not to be seen.
        written = known if isinstance(func, HigherOrderOperator) else written_arguments(func)
        for leaf in pytree.tree_leaves([known.get(key) for key in written]):
            if isinstance(leaf, Tensor):
                self._copy(memory(leaf))
        return func(*args, **given)

    def _copy(self, key: int) -> None:
        if key in self._tensors and key not in self._copies:
            plain = self._tensors[key].detach()
            storage = plain.untyped_storage()
            copied = plain.new_empty(0).untyped_storage()
            copied.resize_(storage.nbytes())
            self._copies[key] = copied.copy_(storage, False)


def _layout(tensor: Tensor) -> object:
    return tensor.shape, tensor.dtype, tensor.layout == torch.strided and (tensor.stride(), tensor.storage_offset())
