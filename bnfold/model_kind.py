"""Which kind a model is, told without importing torch or onnx_ir: objects of theirs exist only where they have been."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import onnx_ir
    import torch


_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether a text has the form `package.module:name`."""
    return _IMPORT_PATH.fullmatch(text) is not None


def is_module(model: object) -> "TypeGuard[torch.nn.Module]":
    """Whether it is a torch.nn.Module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_program(model: object) -> "TypeGuard[torch.export.ExportedProgram]":
    """Whether it is a torch.export.ExportedProgram."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.export.ExportedProgram)


def is_pt2(model: object) -> "TypeGuard[str | os.PathLike[str]]":
    """Whether it is the path of an exported program."""
    return isinstance(model, str | os.PathLike) and Path(model).suffix.lower() == ".pt2"


def is_torch(model: object) -> bool:
    """Whether it is a model of torch's, in memory or as a file."""
    return is_module(model) or is_program(model) or is_pt2(model)


def is_ir_model(model: object) -> "TypeGuard[onnx_ir.Model]":
    """Whether it is an onnx_ir.Model."""
    onnx_ir = sys.modules.get("onnx_ir")
    return onnx_ir is not None and isinstance(model, onnx_ir.Model)
