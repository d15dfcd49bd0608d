"""Modules that were pickled whole: torch.save(module, path), or in a checkpoint with other things."""

from collections.abc import Mapping
from pathlib import Path

import torch

from bnfold.errors import ModelLoadError
from bnfold.torch.capture.wrappers import unwrap
from bnfold.torch.file.state_dict import read_weights

_NESTS = ("model", "module", "net", "network", "ema", "model_ema")
"""Where checkpoints keep a module, best first: an average of it is taken only if there is nothing else."""


def load_pickled(path: Path, *, trust_pickle: bool) -> torch.nn.Module:
    """Loads a module from a file of torch.save, which runs code: what the file says, and that of the module's classes.

    Args:
        path: An absolute path.
        trust_pickle: Whether the caller trusts the file.

    Returns:
        The module on the CPU after `eval()`, without what DataParallel or torch.compile put around it.

    Raises:
        ModelLoadError: The file is missing or damaged, its classes cannot be imported, or it holds no module.
        UnsafeModelError: It would have to be unpickled, and is not trusted.
        UnsupportedModelError: It is a TorchScript archive.
    """
    module = find_module(read_weights(path, trust_pickle=trust_pickle))
    if module is None:
        raise ModelLoadError(
            f"{path} holds weights, but not the code that uses them.",
            hint=f"Give that: bnfold fold package.module:factory --weights {path.name} --input 1,3,224,224 -o OUT.",
        )
    return unwrap(module).eval()


def find_module(content: object) -> torch.nn.Module | None:
    """The module in what a file holds: the whole of it, or one of its entries."""
    if isinstance(content, Mapping):
        entries = (content.get(key) for key in _NESTS)
        content = next((entry for entry in entries if isinstance(entry, torch.nn.Module)), None)
    return content if isinstance(content, torch.nn.Module) else None
