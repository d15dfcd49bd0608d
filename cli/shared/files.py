"""What is said of the files that were read and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.report import FileInfo


def describe(model: "Path | FileInfo", *, hashed: bool, data: Sequence[Path] | None = None) -> "FileInfo":
    """A file with all that belongs to it; what already is a description is itself.

    Args:
        model: The file.
        hashed: Whether all of it is read for a hash.
        data: Its data files, where they are known; else it is read to find them.
    """
    from bnfold.report import FileInfo, file_info

    if isinstance(model, FileInfo):
        return model
    if data is None and model.suffix.lower() == ".onnx":
        from bnfold.onnx.file.data_files import data_files

        data = data_files(model)
    return file_info(model, data or (), hashed=hashed)
