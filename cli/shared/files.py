"""What is said of the files that were read and written."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.report import FileInfo


def describe(model: "Path | FileInfo", *, hashed: bool) -> "FileInfo":
    """A file with all that belongs to it; what already is a description is itself."""
    from bnfold.report import FileInfo, file_info

    if isinstance(model, FileInfo):
        return model
    data: tuple[Path, ...] = ()
    if model.suffix.lower() == ".onnx":
        from bnfold.onnx.file.data_files import data_files

        data = data_files(model)
    return file_info(model, data, hashed=hashed)
