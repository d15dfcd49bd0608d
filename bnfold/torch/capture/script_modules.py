"""TorchScript inside a model: torch.export cannot call it as a module, so a plain module runs it in its place."""

import torch
from torch import nn


class Scripted(nn.Module):
    """Runs a ScriptModule, whose operators torch.export then sees as it sees any others.

    Args:
        script: The ScriptModule; its parameters are no parameters of this module.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._script = (script,)

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the script computes."""
        (script,) = self._script
        result: object = script._c._get_method("forward")(*args, **kwargs)
        return result

    def __getattr__(self, name: str) -> object:  # type: ignore[override]
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_script"][0], name)


def replace_scripts(module: nn.Module) -> None:
    """Puts plain modules in the place of the ScriptModules inside of a module."""
    replaced: dict[nn.Module, Scripted] = {}
    for parent in [child for child in module.modules() if not isinstance(child, torch.jit.ScriptModule)]:
        for name, child in parent._modules.items():
            if isinstance(child, torch.jit.ScriptModule):
                parent._modules[name] = replaced.setdefault(child, Scripted(child))
