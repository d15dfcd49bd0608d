"""Which modules are folded: what is inside of wrappers, and nothing that has left plain PyTorch."""

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bnfold.errors import UnsupportedModelError

_QUANTISED = ("torch.ao.nn.", "torch.ao.quantization.", "torch.nn.quantized.", "torch.nn.qat.", "torchao.quantization.")
_FUSED_BUT_FLOAT = ("torch.ao.nn.intrinsic.modules.",)
_PLAIN = ("FloatFunctional", "QuantStub", "DeQuantStub", "QuantWrapper")
"""What quantisable models have before they are prepared: additions as modules, and places that do nothing."""

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside of DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif isinstance(module, OptimizedModule):
            module = module._orig_mod
        else:
            return module


def refuse_unsupported(module: nn.Module) -> None:
    """Refuses what is not, or not any more, a module of floating-point layers with its weights at hand.

    Raises:
        UnsupportedModelError: It is a TorchScript module, prepared for or converted by quantisation, sharded, or its
            weights are not there.
    """
    if isinstance(module, torch.jit.ScriptModule):
        message = f"a {type(module).__name__} has no Python code to follow"
        raise UnsupportedModelError(message, hint="Fold the module before torch.jit.script or torch.jit.trace.")
    for path, child in module.named_modules():
        where = f"'{path}'" if path else "the module"
        if any(_is_quantised(kind) for kind in type(child).__mro__):
            message = f"{where} is a {type(child).__name__}, a layer made by quantisation"
            raise UnsupportedModelError(message, hint="Fold the float module first, then prepare or convert that.")
        if any(kind.__name__ in _SHARDED for kind in type(child).__mro__):
            message = f"{where} holds a shard of its parameters only ({type(child).__name__})"
            raise UnsupportedModelError(message, hint="Gather the full state dict into a module that is not sharded.")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            message = f"'{name}' is a lazy parameter without values"
            raise UnsupportedModelError(message, hint="Run the module once, or load its weights, then fold it.")
        if tensor.is_meta:
            message = f"'{name}' is on the meta device, without values"
            raise UnsupportedModelError(message, hint="Load the weights first, then fold.")


def _is_quantised(kind: type) -> bool:
    is_float = kind.__module__.startswith(_FUSED_BUT_FLOAT) or kind.__name__ in _PLAIN
    return kind.__module__.startswith(_QUANTISED) and not is_float
