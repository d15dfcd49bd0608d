"""A .pt2 archive, looked through before torch loads it.

torch.export.load unpickles what an archive asks it to unpickle, opens compiled libraries in it, and evaluates texts
from it. Here the archive is read with torch's own reader, so that both see the same files, and refused unless it
consists of plain tensors and of documents that pass `screening`.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

import torch

from bnfold.errors import ModelLoadError, UnsafeModelError, UnsupportedModelError
from bnfold.torch.file.pt2.screening import screen

_MODEL = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_CONFIGS = {
    "data/weights/model_weights_config.json": "data/weights/",
    "data/constants/model_constants_config.json": "data/constants/",
}
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|extra/[\w./\-]+|data/weights/weight_\d+|data/constants/tensor_\d+"
)
_REFUSED = (
    (re.compile(r"data/constants/(custom_obj|opaque_obj)_.*"), "holds custom objects, which torch would unpickle"),
    (re.compile(r"data/aotinductor/.*"), "holds compiled code"),
    (re.compile(r"data/(weights|constants)/.*\.pt"), "holds pickled weights of an older format"),
)
_SAVE_AGAIN = "If the file is yours, save it again with torch.export.save of torch 2.8 or newer."


def check_archive(file: IO[bytes], path: Path) -> None:
    """Look through an archive; its position is back at the start afterwards.

    Args:
        file: The archive, open for reading.
        path: Where it is, for messages.

    Raises:
        ModelLoadError: It is no archive of torch.export, damaged, compressed, or contradicts itself.
        UnsafeModelError: Loading it would unpickle objects or run code.
        UnsupportedModelError: It is of an older format, holds other models, or needs unknown operators.
    """
    _check_zip(file, path)
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
        sizes = {name: _size(reader, name) for name in reader.get_all_records()}
    except (RuntimeError, ValueError, IndexError) as error:  # the latter two of C++: what should be a number is none
        raise _damaged(path, error) from error
    file.seek(0, io.SEEK_END)
    if sum(sizes.values()) > file.tell():
        raise ModelLoadError(f"{path} holds more than its size, so it is compressed or its entries overlap.")
    _check_names(sizes, path)
    try:
        for config, folder in _CONFIGS.items():
            document = _document(reader, config, path)
            screen(document, path)
            _check_payloads(document, folder, sizes, path)
        screen(_document(reader, _MODEL, path), path)
        _check_sample_inputs(reader.get_record(_SAMPLE_INPUTS), path)
    except RuntimeError as error:
        raise _damaged(path, error) from error
    file.seek(0)


def _size(reader: "torch._C.PyTorchFileReader", name: str) -> int:
    """The size of an entry in bytes, as torch sees it; before torch 2.13 only reading it tells."""
    if hasattr(reader, "get_record_size"):
        return reader.get_record_size(name)
    return len(reader.get_record(name))


def _check_zip(file: IO[bytes], path: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from error
    for name in names:
        if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
            raise UnsafeModelError(f"{path} has an entry {name[:120]!r} that leads out of the archive.")
    roots = {name.partition("/")[0] for name in names}
    if "serialized_exported_program.json" in names:
        raise UnsupportedModelError(f"{path} is in the format of torch 2.7 and older.", hint=_SAVE_AGAIN)
    if len(roots) != 1 or f"{next(iter(roots))}/archive_format" not in names:
        kind = "TorchScript" if any(name.endswith("/constants.pkl") for name in names) else "another kind"
        hint = "Give what torch.export.save wrote; TorchScript models have to be exported from their source."
        raise ModelLoadError(f"{path} is a zip archive of {kind}, not one of torch.export.", hint=hint)


def _check_names(sizes: Mapping[str, int], path: Path) -> None:
    for name in sizes:
        for pattern, what in _REFUSED:
            if pattern.fullmatch(name):
                raise UnsafeModelError(f"{path} {what} ({name}).", hint=_SAVE_AGAIN)
        if name.startswith("models/") and name != _MODEL:
            raise UnsupportedModelError(f"{path} holds a model {name!r} besides or instead of {_MODEL!r}.")
        if name not in (_MODEL, _SAMPLE_INPUTS, *_CONFIGS) and not _KNOWN.fullmatch(name):
            raise UnsafeModelError(f"{path} has an entry {name[:120]!r} that bnfold does not know.", hint=_SAVE_AGAIN)
    for name in (_MODEL, _SAMPLE_INPUTS, *_CONFIGS):
        if name not in sizes:
            raise ModelLoadError(f"{path} has no {name!r}, which every archive of torch.export has.", hint=_SAVE_AGAIN)


def _document(reader: torch._C.PyTorchFileReader, name: str, path: Path) -> dict[str, object]:
    try:
        document = json.loads(reader.get_record(name))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is damaged: {name} is not JSON.") from error
    if not isinstance(document, dict):
        raise ModelLoadError(f"{path} is damaged: {name} is not a JSON object.")
    return document


def _check_payloads(document: Mapping[str, object], folder: str, sizes: Mapping[str, int], path: Path) -> None:
    """Require that each tensor is plain bytes, and that there are some."""
    payloads = document.get("config")
    for name, payload in payloads.items() if isinstance(payloads, dict) else [("config", None)]:
        if not isinstance(payload, dict):
            raise ModelLoadError(f"{path} is damaged: the entry of {name!r} is malformed.")
        if payload.get("use_pickle") is not False:
            raise UnsafeModelError(f"{path} asks for {name!r} to be unpickled.", hint=_SAVE_AGAIN)
        record = f"{folder}{payload.get('path_name')}"
        if record not in sizes or not _KNOWN.fullmatch(record):
            raise ModelLoadError(f"{path} is damaged: it has no {record!r}, which {name!r} needs.")
        if sizes[record] == 0 and _numel(payload) != 0:
            raise ModelLoadError(f"{path} is damaged: {name!r} has a shape, but no values.")


def _numel(payload: Mapping[str, object]) -> int:
    """The number of elements, or -1 where that cannot be told."""
    meta = payload.get("tensor_meta")
    sizes = meta.get("sizes") if isinstance(meta, dict) else None
    numbers: list[object] = [size.get("as_int") if isinstance(size, dict) else None for size in sizes or ()]
    known = [number for number in numbers if isinstance(number, int)]
    return math.prod(known) if known and len(known) == len(numbers) else -1


def _check_sample_inputs(data: bytes, path: Path) -> None:
    """Require that the sample inputs are plain tensors and containers: torch would go on to unpickle anything."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="meta")
    except Exception as error:  # the unpickler raises whatever a hostile file provokes
        raise UnsafeModelError(
            f"The sample inputs in {path} are more than plain tensors, and torch would unpickle them.",
            hint="If the file is yours, export it again with plain tensors, or fold the ExportedProgram in Python.",
        ) from error


def _damaged(path: Path, error: Exception) -> ModelLoadError:
    said = " ".join(str(error).split("Exception raised from")[0].split())[:200]
    return ModelLoadError(
        f"{path} is not a complete archive of torch.export: {said}.", hint="It may be truncated or of another format."
    )
