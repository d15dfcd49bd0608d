"""Loading an ONNX model as a skeleton: the graph is parsed, the weights stay in the file.

See `wire` for how they are left out, `tensors` for how they are found again.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from bnfold.errors import ModelLoadError, UnsupportedModelError
from bnfold.onnx.file import skeleton, wire
from bnfold.onnx.file.external import ExternalFiles
from bnfold.onnx.file.tensors import Held, TensorStore, require_nbytes
from bnfold.onnx.proto.walk import is_text, model_tensors
from bnfold.system.source_file import SourceFile
from bnfold.system.trouble import lacks_arena


@dataclass(slots=True)
class OnnxModel:
    """An ONNX model whose large tensors are references.

    Attributes:
        proto: The skeleton; edit it freely.
        store: Finds the values of its tensors.
        path: The file that it came from, absolute; None for a model given in memory.
        has_external_data: Whether it came with external data files.
    """

    proto: onnx.ModelProto
    store: TensorStore
    path: Path | None = None
    has_external_data: bool = False
    _origin: tuple[SourceFile, bytes] | None = field(default=None, repr=False)

    def copy(self) -> "OnnxModel":
        """The same model with a skeleton of its own; the tensors' values are shared."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return OnnxModel(proto, self.store, self.path, self.has_external_data, self._origin)

    @property
    def nbytes(self) -> int:
        """The size of the skeleton and of all data that it refers to, in bytes."""
        return int(self.proto.ByteSize()) + self.store.referred_nbytes

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of a tensor of the skeleton; see `TensorStore.array`."""
        return self.store.array(tensor)

    @property
    def unchanged_file(self) -> SourceFile | None:
        """The file that this model still equals; None if it was edited, or has data in other files."""
        if self._origin is None or self.has_external_data or self._origin[1] != _digest(self.proto):
            return None
        return self._origin[0]

    def materialize(self) -> onnx.ModelProto:
        """The whole model in memory, all values back in place, deferred ones computed.

        Raises:
            UnsupportedModelError: It is larger than a protobuf can be (2 GiB).
            ModelLoadError: The file that holds the values has changed or cannot be read.
        """
        serialized = self.proto.SerializeToString()
        pieces = skeleton.put_back(serialized, self.store)
        if wire.length_of(pieces) > wire.LENGTH_LIMIT:
            raise UnsupportedModelError(
                "The model is larger than 2 GiB, which is more than one ModelProto can hold.",
                hint="Save it to a file: the weights then go to a data file beside it.",
            )
        data = bytearray()
        for piece in pieces:
            data += skeleton.piece_bytes(piece, serialized, self.store)
        whole: onnx.ModelProto = onnx.ModelProto.FromString(data)
        return whole


def load(path: str | os.PathLike[str]) -> OnnxModel:
    """Load an .onnx file as a skeleton.

    Args:
        path: The file; external data is looked for beside it.

    Raises:
        ModelLoadError: There is no such file, or it is not a complete ONNX model.
        UnsafeModelError: Its external data would lead out of its folder.
        UnsupportedModelError: A sparse tensor has external data.
    """
    absolute = Path(os.path.abspath(path))
    file = _model_file(absolute)
    proto, store, has_external_data = read_skeleton(file)
    if not proto.HasField("graph"):
        raise _not_onnx(file, "it has no graph")
    if not is_text(proto):
        raise _not_onnx(file, "a name in it is not UTF-8 text")
    return OnnxModel(proto, store, absolute, has_external_data, (file, _digest(proto)))


def read_skeleton(file: SourceFile) -> tuple[onnx.ModelProto, TensorStore, bool]:
    """Read a file as the skeleton of a model, whatever is in it.

    Args:
        file: The file, by its absolute path.

    Returns:
        The skeleton, what its references stand for, and whether it has external data.

    Raises:
        ModelLoadError, UnsafeModelError, UnsupportedModelError: See `load`.
    """
    store = TensorStore()
    has_external_data = False
    try:
        serialized, may_be_external = skeleton.take_out(file, store)
        if may_be_external:
            files = ExternalFiles(file.path)
            serialized, has_external_data = skeleton.take_out_external(serialized, files, store)
        return onnx.ModelProto.FromString(serialized), store, has_external_data
    except wire.WireError as error:
        raise _not_onnx(file, str(error)) from error
    except DecodeError as error:
        if lacks_arena(error):
            raise
        raise _not_onnx(file, "it cannot be parsed") from error


def from_proto(proto: onnx.ModelProto) -> OnnxModel:
    """Wrap a model that is in memory; its large initializers stay in `proto`, which is not changed.

    Args:
        proto: The model. Its initializers must not be edited while the result is in use.

    Raises:
        ModelLoadError: It has no graph, refers to external data that was not loaded, or is malformed.
    """
    if not proto.HasField("graph"):
        raise ModelLoadError("The ModelProto has no graph.")
    for tensor in model_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelLoadError(
                f"The ModelProto keeps {tensor.name!r} in an external file that was not loaded.",
                hint="Give the path of the model, or load it with its external data.",
            )
    store = TensorStore()
    bones = onnx.ModelProto()
    _copy_fields(proto, bones, leave_out="graph")
    bones.graph.SetInParent()
    _copy_fields(proto.graph, bones.graph, leave_out="initializer")
    for tensor in proto.graph.initializer:
        target = bones.graph.initializer.add()
        nbytes = len(tensor.raw_data)
        if nbytes <= skeleton.BY_REFERENCE_NBYTES or tensor.external_data:
            target.CopyFrom(tensor)
            continue
        _copy_fields(tensor, target, leave_out="raw_data")
        require_nbytes(target, nbytes, "The ModelProto")
        store.refer(target, Held(tensor, nbytes, tensor.HasField("data_location")))
    if not is_text(bones):
        raise ModelLoadError("A name in the ModelProto is not UTF-8 text.")
    return OnnxModel(bones, store)


def skeleton_for_inference(model: OnnxModel) -> onnx.ModelProto:
    """A copy of the skeleton for `onnx.shape_inference`: small tensors and shapes alone have values."""
    proto: onnx.ModelProto = onnx.ModelProto.FromString(
        skeleton.for_inference(model.proto.SerializeToString(), model.store)
    )
    _give_up_sparse(proto.graph)
    for node in proto.graph.node:  # what torch.onnx notes of each is most of what it writes besides weights
        node.ClearField("metadata_props")
    return proto


def _give_up_sparse(graph: onnx.GraphProto) -> None:
    """Makes inputs of sparse initializers: no operator takes a sparse tensor, and runtimes make them dense."""
    graph.input.extend(
        onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        for sparse in graph.sparse_initializer
    )
    del graph.sparse_initializer[:]


def _model_file(path: Path) -> SourceFile:
    file = SourceFile.at(path)
    suffix = path.suffix.lower()
    if suffix == ".ort":
        raise ModelLoadError(
            f"{path} is an onnxruntime .ort file, which holds an already optimised graph.",
            hint="Give the .onnx file that it was made from.",
        )
    if suffix != ".onnx":
        raise ModelLoadError(f"{path} does not end in .onnx.", hint="ONNX models are read from .onnx files.")
    if file.size == 0:
        raise ModelLoadError(f"{path} is empty.")
    return file


_OTHER_FORMATS = (
    (0, b"PK\x03\x04", "it is a zip archive, perhaps of PyTorch"),
    (0, b"\x89PNG", "it is a PNG image"),
    (0, b"\x89HDF", "it is an HDF5 file"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer, and the model itself was not downloaded"),
    (0, b"<", "it is an HTML or XML page"),
    (4, b"ORTM", "it is an onnxruntime .ort file"),
    (4, b"TFL3", "it is a TensorFlow Lite file"),
)


def _not_onnx(file: SourceFile, reason: str) -> ModelLoadError:
    with file.open() as opened:
        start = opened.read(0, min(64, file.size))
    for offset, magic, name in _OTHER_FORMATS:
        if start.startswith(magic, offset):
            reason = name
    return ModelLoadError(
        f"{file.path} is not a complete ONNX model: {reason}.",
        hint="It may be truncated, damaged or of another format.",
    )


def _copy_fields(source: Message, target: Message, *, leave_out: str) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == leave_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _digest(proto: onnx.ModelProto) -> bytes:
    return hashlib.blake2b(proto.SerializeToString(), digest_size=16).digest()
