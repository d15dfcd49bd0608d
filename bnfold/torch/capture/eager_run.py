"""Running modules on their own code, without gradients, and following which of them is called when."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.export import Arguments, quiet
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


def run_first(module: nn.Module, arguments: Arguments) -> None:
    """Runs a copy of a module before torch.export follows it; whether that fails is for torch.export to find out.

    What code keeps outside of modules, such as a grid that functools.lru_cache remembers for a size, cannot be put
    back: this way it has values.

    Args:
        module: The module.
        arguments: What it is called with.
    """
    copied = shadow(module)
    with undisturbed(copied.parameters()), suppress(Exception):  # whatever the code of the module raises
        called(copied, arguments)


def called(module: nn.Module, arguments: Arguments) -> object:
    """What a module returns for copies of some arguments, with the same random numbers each time."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    torch.default_generator.manual_seed(0)
    return module(*args, **kwargs)


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
