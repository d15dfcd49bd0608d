"""Running a module before torch.export follows it.

What its code keeps outside of modules, such as a grid that functools.lru_cache remembers for a size, cannot be put
back. A run with real tensors comes first, so that this is what is kept, and what torch.export finds there.
"""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.eager_run import undisturbed
from bnfold.torch.capture.export import Arguments


def run_first(module: nn.Module, arguments: Arguments) -> None:
    """Runs a copy of a module; whether it fails is for torch.export to find out.

    Args:
        module: The module.
        arguments: What it is called with.
    """
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    copied = shadow(module)
    with undisturbed():
        torch.default_generator.manual_seed(0)
        try:
            copied(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever the code of the module raises
            return
