"""Tensors by reference: a skeleton TensorProto stands for bytes that are somewhere else.

A reference is an ordinary TensorProto with `data_location` EXTERNAL and the location `#<random key>/<index>`.
The key is drawn anew for each store, so that no file can contain one. onnx takes a location that starts with
`#` for data in memory: its checker and shape inference accept it and look for no file.
"""

import math
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from bnfold.errors import BnfoldError, ModelLoadError
from bnfold.system.source_file import SourceFile

LOCATION = "location"
"""The key under which external data names its file."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Tensor bytes that lie in a file, little endian.

    Attributes:
        file: The file.
        offset: The first byte.
        length: The number of bytes.
        external: Whether the file is an external data file and not the model itself.
        explicit_location: Whether the TensorProto said `data_location: DEFAULT` in so many words.
    """

    file: SourceFile
    offset: int
    length: int
    external: bool = False
    explicit_location: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Tensor bytes that stay in somebody else's TensorProto; see FileRange."""

    tensor: onnx.TensorProto
    length: int
    external: bool = False
    explicit_location: bool = False


@dataclass(frozen=True, slots=True)
class Deferred:
    """Tensor bytes that are computed each time they are needed; see FileRange and `TensorStore.defer`."""

    name: str
    dims: tuple[int, ...]
    data_type: int
    length: int
    compute: Callable[[], np.ndarray]
    compute_parts: Callable[[], Iterator[np.ndarray]] | None = None
    external: bool = False
    explicit_location: bool = False


Blob = FileRange | Held | Deferred


@dataclass(slots=True)
class TensorStore:
    """What the references in one or several skeletons stand for."""

    _prefix: str = field(default_factory=lambda: f"#{secrets.token_hex(16)}/")
    _prefixes: set[str] = field(default_factory=set)
    _blobs: dict[str, Blob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prefixes.add(self._prefix)

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The values of a tensor in C order, in a dtype of ml_dtypes where numpy has none; do not write to them.

        Raises:
            ModelLoadError: The tensor is malformed, or its bytes do not fit its shape or cannot be read.
        """
        blob = self.find(tensor)
        if isinstance(blob, Deferred):
            return _computed(blob)
        if blob is not None:
            require_nbytes(tensor, blob.length, "The model")
            return _decoded(np.frombuffer(self.content(blob), np.uint8), tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelLoadError(f"The tensor {tensor.name!r} keeps its data in a file that was not loaded.")
        try:
            return onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelLoadError(f"The tensor {tensor.name!r} cannot be read: {error}.") from error

    def rows(self, tensor: onnx.TensorProto, count: int) -> Iterator[np.ndarray]:
        """The values, so many entries of the first axis at a time; each array is good until the next is asked for.

        Raises:
            ModelLoadError: See `array`.
        """
        blob, dtype = self.find(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not isinstance(blob, FileRange) or not _is_plain(tensor.data_type, dtype):
            array = self.array(tensor)
            yield from (array[start : start + count] for start in range(0, len(array), count))
            return
        require_nbytes(tensor, blob.length, "The model")
        rows, *others = tensor.dims
        values = np.empty((min(count, rows), *others), dtype)
        with blob.file.open() as opened:
            for start in range(0, rows, count):
                some = values[: rows - start]
                opened.read_into(blob.offset + values[:1].nbytes * start, _bytes_of(some))
                yield some

    def nbytes(self, tensor: onnx.TensorProto) -> int:
        """The number of bytes that the values of a tensor take in a file.

        Raises:
            ModelLoadError: Its data type is unknown or a dimension is negative.
        """
        if tensor.data_type == onnx.TensorProto.STRING:
            nbytes: int = sum(len(text) for text in tensor.string_data)
            return nbytes
        return expected_nbytes(tensor)

    def defer(
        self,
        name: str,
        dims: Sequence[int],
        onnx_data_type: int,
        compute: Callable[[], np.ndarray],
        compute_parts: Callable[[], Iterator[np.ndarray]] | None = None,
    ) -> onnx.TensorProto:
        """A tensor whose values are computed when it is written, or when `array` asks for them.

        Args:
            name: Its name.
            dims: Its shape; empty for a scalar.
            onnx_data_type: A TensorProto.DataType.
            compute: Returns the values, in exactly this shape and dtype, each time it is called.
            compute_parts: The same values in this dtype, in their order and in parts of any shape, of which each is
                good until the next is asked for: what is written need not be in memory as a whole.
        """
        tensor = onnx.TensorProto(name=name, dims=dims, data_type=onnx_data_type)
        nbytes = expected_nbytes(tensor)
        self.refer(tensor, Deferred(name, tuple(dims), onnx_data_type, nbytes, compute, compute_parts))
        return tensor

    @staticmethod
    def embed(name: str, array: np.ndarray) -> onnx.TensorProto:
        """A tensor that carries its values itself; for small ones."""
        return onnx.numpy_helper.from_array(array, name)

    def include(self, other: "TensorStore") -> None:
        """Take over the references of another store, for a graph put together from two models."""
        self._prefixes |= other._prefixes
        self._blobs |= other._blobs

    def find(self, tensor: onnx.TensorProto) -> Blob | None:
        """What a tensor refers to, or None if it is not a reference of this store."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL or len(tensor.external_data) != 1:
            return None
        return self._blobs.get(tensor.external_data[0].value)

    def refer(self, tensor: onnx.TensorProto, blob: Blob) -> None:
        """Make a tensor without data a reference to `blob`."""
        location = f"{self._prefix}{len(self._blobs)}"
        self._blobs[location] = blob
        del tensor.external_data[:]
        tensor.external_data.add(key=LOCATION, value=location)
        tensor.data_location = onnx.TensorProto.EXTERNAL

    @property
    def prefixes(self) -> frozenset[str]:
        """What the locations of the references start with."""
        return frozenset(self._prefixes)

    @property
    def files(self) -> frozenset[SourceFile]:
        """The files that references point into."""
        return frozenset(blob.file for blob in self._blobs.values() if isinstance(blob, FileRange))

    @property
    def referred_nbytes(self) -> int:
        """The size of all that references stand for, in bytes."""
        return sum(blob.length for blob in self._blobs.values())

    def content(self, blob: Blob) -> bytes | memoryview:
        """The bytes of a reference as they stand in a file.

        Raises:
            ModelLoadError: They cannot be read, or have been changed.
        """
        if isinstance(blob, FileRange):
            data = memoryview(np.empty(blob.length, np.uint8).data)
            with blob.file.open() as opened:
                opened.read_into(blob.offset, data)
            return data
        if isinstance(blob, Deferred):
            return _encoded(_computed(blob), blob.data_type)
        if len(blob.tensor.raw_data) != blob.length:
            raise ModelLoadError(f"The tensor {blob.tensor.name!r} was changed while it was in use.")
        return blob.tensor.raw_data

    def parts(self, blob: Blob) -> Iterator[bytes | memoryview]:
        """The same bytes in their order, in parts of which each is good until the next is asked for.

        Raises:
            ModelLoadError: See `content`.
        """
        if not isinstance(blob, Deferred) or blob.compute_parts is None:
            yield self.content(blob)
            return
        nbytes = 0
        for array in blob.compute_parts():
            part = _encoded(array, blob.data_type)
            nbytes += len(part)
            yield part
        if nbytes != blob.length:
            raise BnfoldError(
                f"The tensor {blob.name!r} was announced as {blob.length} bytes and computed as {nbytes}."
            )


def expected_nbytes(tensor: onnx.TensorProto, where: str = "The model") -> int:
    """The number of bytes of raw data that the shape and data type of a tensor ask for.

    Args:
        tensor: The tensor.
        where: What the sentence of an error starts with.

    Raises:
        ModelLoadError: Its data type is unknown or has no raw form, or a dimension is negative.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelLoadError(f"{where}: the tensor {tensor.name!r} has the shape {list(tensor.dims)}.")
    bits = _bits_per_element(tensor.data_type)
    if bits is None:
        raise ModelLoadError(
            f"{where}: the tensor {tensor.name!r} has raw data of the unknown type {tensor.data_type}.",
            hint="A newer version of onnx may know it.",
        )
    elements: int = math.prod(tensor.dims)
    return (elements * bits + 7) // 8


def require_nbytes(tensor: onnx.TensorProto, nbytes: int, where: str) -> None:
    """Require that a tensor has as many bytes as its shape and data type ask for.

    Raises:
        ModelLoadError: It has not; the sentence starts with `where`.
    """
    needed = expected_nbytes(tensor, where)
    if needed != nbytes:
        raise ModelLoadError(
            f"{where}: the tensor {tensor.name!r} of shape {list(tensor.dims)} needs {needed} bytes of data, "
            f"but has {nbytes}."
        )


@cache
def _bits_per_element(data_type: int) -> int | None:
    """The width of an element in raw data, which packs narrow types; None if it has no raw form."""
    if data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return None
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return None
    bits: int = dtype.itemsize * 8
    if dtype.kind == "V":  # of ml_dtypes; numpy counts a whole byte for the narrow ones
        try:
            bits = ml_dtypes.finfo(dtype).bits  # type: ignore[no-untyped-call]
        except ValueError:
            bits = ml_dtypes.iinfo(dtype).bits  # type: ignore[no-untyped-call]
    return bits


def _is_plain(data_type: int, dtype: np.dtype) -> bool:
    """Whether raw data is the memory of the array."""
    return sys.byteorder == "little" and _bits_per_element(data_type) == dtype.itemsize * 8


def _decoded(data: np.ndarray, tensor: onnx.TensorProto) -> np.ndarray:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if _is_plain(tensor.data_type, dtype):
        return data.view(dtype).reshape(tuple(tensor.dims))
    whole = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=data.tobytes())
    return onnx.numpy_helper.to_array(whole)


def _encoded(array: np.ndarray, data_type: int) -> bytes | memoryview:
    if _is_plain(data_type, array.dtype):
        return _bytes_of(np.ascontiguousarray(array))
    raw: bytes = onnx.numpy_helper.from_array(array).raw_data
    return raw


def _bytes_of(array: np.ndarray) -> memoryview:
    """The memory of an array in C order."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _computed(deferred: Deferred) -> np.ndarray:
    array = deferred.compute()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(deferred.data_type)
    if array.shape != deferred.dims or array.dtype != dtype:
        raise BnfoldError(
            f"The tensor {deferred.name!r} was announced as {dtype} {list(deferred.dims)} "
            f"and computed as {array.dtype} {list(array.shape)}."
        )
    return np.asarray(array, order="C")
