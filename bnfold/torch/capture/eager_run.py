"""Running modules on their own code, without gradients, and following which of them is called when."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bnfold.torch.capture.export import quiet

Enter = Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]
Leave = Callable[[nn.Module, tuple[object, ...], object], object]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs as they are: without a word, gradients, torch.compile, or a trace in the random numbers of the caller."""
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def followed(modules: Iterable[nn.Module], enter: Enter, leave: Leave) -> Iterator[None]:
    """Follows calls of modules, other than ScriptModules, which cannot be.

    Args:
        modules: The modules.
        enter: Called before each with what it is given.
        leave: Called behind each with what it returns, also where it fails; what this returns is taken instead, unless
            it is None.
    """
    handles = []
    for module in modules:
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
