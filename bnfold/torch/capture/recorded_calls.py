"""Calls of modules as torch.export recorded them, and which modules are worth recording.

Recording costs time, so it is only for modules whose own code has to be known from what it does: those with an affine
in a forward that is not torch's, and those whose inputs and outputs somebody watches.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from bnfold.torch.capture.hooks import is_watched
from bnfold.torch.fx.nodes import within


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Attributes:
        path: The path of the module.
        inputs: The names, in the program, of the tensors that it was called with.
        outputs: The names of the tensors that it returned.
        is_simple: Whether it was called with one tensor and nothing else, as nn.Identity and nn.Sequential can be
            called too, and returned one tensor.
        is_known: Whether inputs and outputs were found at all; they are not inside of a nested graph.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_simple: bool
    is_known: bool = True


def recorded_calls(program: ExportedProgram, prefix: str) -> tuple[Call, ...]:
    """The calls that were recorded while a part of a module, with the path `prefix`, was exported."""
    calls = []
    for entry in program.module_call_graph:
        signature = entry.signature
        if signature is None or not entry.fqn:
            continue
        path = within(prefix, entry.fqn.partition("@")[0])
        found = (len(signature.inputs), len(signature.outputs))
        if found != (signature.in_spec.num_leaves, signature.out_spec.num_leaves):
            calls.append(Call(path, (), (), is_simple=False, is_known=False))
            continue
        args, kwargs = pytree.tree_unflatten(signature.inputs, signature.in_spec)
        result = pytree.tree_unflatten(signature.outputs, signature.out_spec)
        simple = isinstance(result, TensorArgument) and isinstance(_only_argument(args, kwargs), TensorArgument)
        calls.append(Call(path, _names(signature.inputs), _names(signature.outputs), simple))
    return tuple(calls)


def watched(root: nn.Module) -> frozenset[str]:
    """The paths of the modules whose inputs and outputs somebody watches; a fold never changes those of the root."""
    return frozenset(path for path, module in root.named_modules() if path and is_watched(module))


def worth_recording(root: nn.Module) -> frozenset[str]:
    """The paths of the modules that may be an affine and more, with the modules right inside of them."""
    paths = set()
    for path, module in root.named_modules():
        if path and _may_be_affine(module):
            paths.add(path)
            paths.update(f"{path}.{name}" for name, child in module._modules.items() if child is not None)
    return frozenset(paths)


def _may_be_affine(module: nn.Module) -> bool:
    """Whether a module has a forward of its own, and only vectors to compute with.

    A scale and a shift of one number each, as some networks have behind every activation, are not worth the time that
    recording takes.
    """
    if type(module).__module__.startswith("torch.nn."):
        return False
    own = [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
    every = (tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
    if len(own) <= 2 and all(tensor.numel() == 1 for tensor in own):
        return False
    return all(tensor.numel() == max(tensor.shape, default=1) for tensor in every)


def _only_argument(args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """The argument of a call with one, which may be named as nn.Identity and nn.Sequential name theirs."""
    if len(args) == 1 and not kwargs:
        return args[0]
    return kwargs["input"] if not args and [*kwargs] == ["input"] else None


def _names(arguments: list[object]) -> tuple[str, ...]:
    return tuple(argument.name for argument in arguments if isinstance(argument, TensorArgument))
