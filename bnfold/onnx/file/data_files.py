"""The data files that models of a folder keep their weights in: what they are called, and which of them are spent.

A data file is called `<model>.<digest>.data`, by samples of what is in it: to read all of it would take as long as to
write it. Where that name is taken by other bytes, it is called by all of its bytes instead. So a new data file never
replaces one that a model reads, and the rename of the model, which names its data file, is the one moment at which the
old model becomes the new one. What that leaves behind, the data of the old model and that of writes which were killed
before it, carries the name of the model and is named by no model of the folder.
"""

import contextlib
import filecmp
import re
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnfold.errors import BnfoldError
from bnfold.onnx.file import skeleton, wire
from bnfold.onnx.file.external import leads_out
from bnfold.onnx.file.load import read_skeleton
from bnfold.onnx.file.tensors import LOCATION, TensorStore
from bnfold.onnx.proto.walk import model_tensors
from bnfold.system.source_file import SourceFile

DIGEST_LENGTH = 32
_LONGEST_NAME_NBYTES = 255
_SUFFIX = ".data"


def data_name(model: str, sha256: str) -> str:
    """What the data file of a model is called.

    Args:
        model: The file name of the model.
        sha256: A hexadecimal digest that stands for the data.
    """
    return f"{_stem(model)}.{sha256[:DIGEST_LENGTH]}{_SUFFIX}"


def file_at(path: Path) -> SourceFile | None:
    """The file at a path, None if there is none."""
    return SourceFile.at(path) if path.is_file() else None


def is_taken(path: Path, data: Path) -> bool:
    """Whether there is something else than these data at a path."""
    return path.exists() and not (path.is_file() and filecmp.cmp(path, data, shallow=False))


def data_files(model: Path) -> tuple[Path, ...]:
    """The data files of a model, sorted; none if it cannot be read as one."""
    try:
        _, store, _ = read_skeleton(SourceFile.at(model.absolute()))
    except BnfoldError:
        return ()
    return tuple(sorted(file.path for file in store.files if not file.path.samefile(model)))


def names_of_data(model: Path) -> set[str]:
    """The data files that a model names in its own folder, whether or not they are there; none if it cannot be read."""
    try:
        serialized, may_name_files = skeleton.take_out(SourceFile.at(model), TensorStore())
        proto = onnx.ModelProto.FromString(serialized) if may_name_files else onnx.ModelProto()
    except (BnfoldError, wire.WireError, DecodeError):
        return set()
    tensors = (tensor for tensor in model_tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == LOCATION}
    return {name for name in names if name and not leads_out(name)}


def remove_spent(model: Path) -> None:
    """Remove the data files that were written for a model, and which neither it nor another model beside it names."""
    pattern = re.compile(rf"{re.escape(_stem(model.name))}\.[0-9a-f]{{{DIGEST_LENGTH}}}{re.escape(_SUFFIX)}")
    found = {path.name: path for path in model.parent.iterdir() if pattern.fullmatch(path.name)}
    spent = {name for name, path in found.items() if path.is_file() and not path.is_symlink()}
    for path in model.parent.iterdir() if spent else ():
        # a copy of a model may be called m.onnx.old; data is called m.onnx.data or m.onnx_data by others
        if ".onnx" in path.name and not path.name.endswith("data") and path.is_file():
            spent -= _named_by(path, spent)
    for name in spent:
        with contextlib.suppress(OSError):
            found[name].unlink()


def _named_by(model: Path, names: set[str]) -> set[str]:
    """Those of some data files that a model names; all of them where it is called a model and cannot be read."""
    try:
        serialized, may_name_files = skeleton.take_out(SourceFile.at(model), TensorStore())
    except (BnfoldError, wire.WireError):
        return set(names) if model.suffix == ".onnx" else set()
    return {name for name in names if name.encode() in serialized} if may_name_files else set()


def _stem(model: str) -> str:
    longest = _LONGEST_NAME_NBYTES - DIGEST_LENGTH - len(_SUFFIX) - 1
    return model.encode("utf-8", "surrogateescape")[:longest].decode("utf-8", "ignore")
