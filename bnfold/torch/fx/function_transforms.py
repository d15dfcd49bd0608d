"""Transforms of torch.func (vmap, grad, jvp) in graphs: one call begins them, and they hold until another ends them.

Between the two, values are wrapped: they have fewer axes than are computed, and neither memory nor elements to be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


@contextmanager
def all_ended() -> Iterator[None]:
    """Ends what begins inside, also where an error keeps a graph from ending it: all of torch would be inside of it."""
    before = torch._C._functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(before)
