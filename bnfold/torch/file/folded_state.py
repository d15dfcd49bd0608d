"""The metadata of a .safetensors file with the state dict of a folded module: what it needs, and what was done."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from bnfold.errors import ModelLoadError
from bnfold.extras import require
from bnfold.torch.file.state_dict import read_weights
from bnfold.version import __version__

SCHEMA = "bnfold.state/1"
_KEY = "bnfold"
_HINT = "Fold the module itself, not a program made of it, and save the result as .safetensors."


def metadata_of(module_class: str, structure: Mapping[str, object], plan: Mapping[str, object]) -> dict[str, str]:
    """What goes into the header of the file, beside the tensors.

    Args:
        module_class: The name of the class that was folded.
        structure: What has to be done to a fresh module, as JSON can hold it.
        plan: What was folded and left, likewise.
    """
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "class": module_class,
        "structure": structure,
        "plan": plan,
    }
    return {_KEY: json.dumps(document, ensure_ascii=False)}


def read_folded(path: str | os.PathLike[str]) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """The document and the tensors of a file that was written of a folded module.

    Raises:
        ModelLoadError: The file is missing or damaged, or was not written so.
    """
    absolute = Path(os.path.abspath(path))
    state = read_weights(absolute) if absolute.suffix.lower() == ".safetensors" else None
    if state is None:
        raise ModelLoadError(f"{absolute} is not a .safetensors file, the only one that says what it needs", hint=_HINT)
    require("safetensors", "a .safetensors file")
    from safetensors import safe_open

    with safe_open(absolute, "pt") as file:
        text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise ModelLoadError(f"{absolute} was not written of a module that bnfold folded", hint=_HINT)
    try:
        document = json.loads(text)
        schema = document["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{absolute} has metadata that cannot be read", hint=_HINT) from error
    if schema != SCHEMA:
        raise ModelLoadError(
            f"{absolute} is of schema {schema}, and this is bnfold {__version__}, which reads {SCHEMA}",
            hint="Install the version of bnfold that wrote it, or fold the module again.",
        )
    assert isinstance(state, dict)  # what safetensors holds
    return document, state
