"""load_folded: the state dict of a folded module, in a fresh module that is made like it."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from bnfold.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")


def load_folded(module: ModuleT, path: "str | os.PathLike[str]") -> ModuleT:
    """Loads the state dict of a folded module into a fresh one, which is made like it first.

    Args:
        module: The module as its code makes it, of the class and with the arguments of the one that was folded; changed
            in place.
        path: The .safetensors file that `FoldResult.save` or `bnfold fold` wrote.

    Returns:
        The module, in evaluation mode; without what DataParallel or torch.compile put around it.

    Raises:
        ModelLoadError: The file is missing, damaged, or not of a folded module, or it is of another one, with the
            difference; the module is as it was.
        DeviceError: PyTorch or safetensors is not installed.
    """
    from bnfold.torch.capture.wrappers import unwrap
    from bnfold.torch.file.folded_state import read_folded
    from bnfold.torch.module.structure.restructuring import Restructuring, restructure

    document, state = read_folded(path)
    inner = unwrap(module)
    try:
        changes = Restructuring.of(cast("Mapping[str, object]", document["structure"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path} has metadata that cannot be read", hint="Fold the module again.") from error
    try:
        folded = restructure(inner, changes, state)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{path} does not fit this {type(inner).__name__}: {error}",
            hint=f"It is of a {document['class']}, folded by bnfold {document['version']}: build that, with the same"
            " arguments.",
        ) from error
    return cast("ModuleT", folded.eval())
