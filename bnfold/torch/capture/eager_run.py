"""Running modules on their own code, without gradients, and following which of them is called when."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import cast

import torch
from torch import Tensor, nn

from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.export import Arguments, quiet
from bnfold.torch.capture.returned_values import with_tensors
from bnfold.torch.fx.function_transforms import all_ended
from bnfold.torch.fx.unwritten import unwritten

Enter = Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]
Leave = Callable[[nn.Module, tuple[object, ...], object], object]


@contextmanager
def undisturbed(shared: Iterable[Tensor]) -> Iterator[None]:
    """Runs as they are: without a word, gradients, torch.compile, or a trace in what the caller has.

    Args:
        shared: Tensors that are the caller's, as the parameters of a shadow are; random numbers are in any case.
    """
    with (
        quiet(),
        all_ended(),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        unwritten(shared),
    ):
        yield


def run_first(module: nn.Module, arguments: Arguments, mode: AbstractContextManager[object] | None = None) -> bool:
    """Runs a copy of a module before torch.export follows it; whether it runs to its end.

    What code keeps outside of modules, such as a grid that functools.lru_cache remembers for a size, cannot be put
    back: this way it has values.

    Args:
        module: The module.
        arguments: What it is called with.
        mode: Entered while it runs.
    """
    copied = shadow(module)
    with undisturbed(copied.parameters()), suppress(Exception):  # whatever the code of the module raises
        called(copied, arguments, mode)
        return True
    return False


def called(module: nn.Module, arguments: Arguments, mode: AbstractContextManager[object] | None = None) -> object:
    """What a module returns for copies of some arguments, with the same random numbers each time.

    Args:
        module: The module.
        arguments: What it is called with.
        mode: Entered when they are copied.
    """
    args, kwargs = cast(Arguments, with_tensors(arguments, _copy))
    torch.default_generator.manual_seed(0)
    with mode or nullcontext():
        return module(*args, **kwargs)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


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
