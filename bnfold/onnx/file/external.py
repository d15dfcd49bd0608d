"""External data of a model: which file a tensor may name, and which part of it.

ONNX lets a tensor name a file beside the model (https://onnx.ai/onnx/repo-docs/ExternalData.html). The name
comes from the model, which is not trusted: it may only lead to regular files in the model's own folder.
"""

from itertools import accumulate
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import onnx

from bnfold.errors import ModelLoadError, UnsafeModelError
from bnfold.onnx.file.tensors import LOCATION, FileRange, expected_nbytes, require_nbytes
from bnfold.system.source_file import SourceFile


class ExternalFiles:
    """The data files of one model.

    Args:
        model_path: The model, as an absolute path.
    """

    def __init__(self, model_path: Path) -> None:
        self.model_path = model_path
        # a download cache keeps the model and its data as links into one folder of blobs
        self._folders = {model_path.parent.resolve(), model_path.resolve().parent}
        self._files: dict[str, SourceFile] = {}

    def range_of(self, tensor: onnx.TensorProto) -> FileRange:
        """Where the bytes of a tensor with external data are.

        Raises:
            UnsafeModelError: The location leads out of the model's folder or to something that is not a file.
            ModelLoadError: The file is missing, or the range does not fit the file or the tensor's shape.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not all(isinstance(text, str) for entry in entries.items() for text in entry):
            raise ModelLoadError(f"{self.model_path}: the external data of {tensor.name!r} is not UTF-8 text.")
        if not entries.get(LOCATION):
            raise ModelLoadError(f"{self.model_path}: the tensor {tensor.name!r} names no file for its external data.")
        file = self._file(entries[LOCATION], tensor.name)
        needed = expected_nbytes(tensor, str(self.model_path))
        offset = self._number(entries.get("offset"), 0, tensor.name)
        length = self._number(entries.get("length"), needed, tensor.name)
        require_nbytes(tensor, length, str(self.model_path))
        if offset + length > file.size:
            raise ModelLoadError(
                f"{self.model_path}: the external data of {tensor.name!r} ends at byte {offset + length}, "
                f"but {file.path} has only {file.size} bytes.",
                hint="The data file may be truncated or belong to another model.",
            )
        return FileRange(file, offset, length, external=True)

    def _file(self, location: str, name: str) -> SourceFile:
        if location not in self._files:
            self._files[location] = self._resolved(location, name)
        return self._files[location]

    def _resolved(self, location: str, name: str) -> SourceFile:
        where = f"{self.model_path}: the external data of {name!r}, {location!r},"
        if leads_out(location):
            raise UnsafeModelError(f"{where} would lead out of the model's folder.")
        if "\0" in location:
            raise UnsafeModelError(f"{where} is not a file name.")
        path = self.model_path.parent / location
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise ModelLoadError(
                f"{where} cannot be found in {self.model_path.parent}.",
                hint="Keep the data file beside the model, under the name that it was written with.",
            ) from error
        if not any(real.is_relative_to(folder) for folder in self._folders):
            raise UnsafeModelError(f"{where} is a link that leads out of the model's folder.")
        if not real.is_file():
            raise UnsafeModelError(f"{where} is not a regular file.")
        return SourceFile.at(real)

    def _number(self, text: str | None, default: int, name: str) -> int:
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ModelLoadError(
                f"{self.model_path}: the external data of {name!r} has an offset or length of {text[:40]!r}."
            )
        return int(text)


def leads_out(location: str) -> bool:
    """Whether the name of a data file leads out of the folder that it is in; on any system, for a model travels."""
    return any(_climbs(flavour) for flavour in (PurePosixPath(location), PureWindowsPath(location)))


def _climbs(path: PurePath) -> bool:
    depths = accumulate(-1 if part == ".." else 1 for part in path.parts)
    return bool(path.anchor) or min(depths, default=0) < 0
