"""What a caller may say about the inputs: shapes, value ranges, real data; in Python or as text."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np
import numpy.typing as npt

from bnfold.errors import BnfoldError, ModelLoadError, UsageError, perhaps
from bnfold.system.memory import require_memory
from bnfold.text.tables import size

Array = npt.NDArray[np.generic]

DTYPES = frozenset(
    {
        *("float16", "bfloat16", "float32", "float64"),
        *("int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "bool"),
    }
)
"""NumPy names of the element types that inputs may have."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The shape of an input, and its element type if the caller wants it checked.

    Attributes:
        shape: Sizes, each at least 1; () for a scalar.
        dtype: NumPy name of the element type ("float32", "bfloat16", ...), or None.
    """

    shape: tuple[int, ...]
    dtype: str | None = None


_FREE_NBYTES = 1 << 28
_PER_FILE = 32

NAMELESS = ""
"""The name of an array that came without one."""

Shapes = Mapping[str, InputSpec] | Sequence[tuple[str | None, InputSpec]]
"""Shapes by name, or in the order of the command line with None for a name that was left out."""


def parse_input(text: str) -> tuple[str | None, InputSpec]:
    """Read `NAME:1,3,224,224[:dtype]`.

    The text is split from the right, so that NAME may hold colons. NAME and its colon may be left out: None
    stands for the next input without a shape.

    Raises:
        UsageError: The text has another form.
    """
    rest, dtype = text.strip(), None
    head, colon, tail = rest.rpartition(":")
    if tail in DTYPES:
        if not colon:
            raise UsageError(f"--input {text!r} has no shape", hint="Write --input NAME:1,3,224,224:float32.")
        rest, dtype = head, tail
    name, _, sizes = rest.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(",")) if sizes.strip() else ()
    except ValueError:
        raise UsageError(
            f"--input {text!r} is not NAME:SHAPE[:DTYPE]",
            hint="Write for example --input image:1,3,224,224; element types are " + ", ".join(sorted(DTYPES)) + ".",
        ) from None
    if any(size < 1 for size in shape):
        raise UsageError(f"--input {text!r} has a size below 1", hint="Every size is at least 1.")
    return name or None, InputSpec(shape, dtype)


def parse_value_range(text: str) -> tuple[str, tuple[float, float]]:
    """Read `NAME:lo,hi`, both ends included for integers.

    Raises:
        UsageError: The text has another form, or lo > hi.
    """
    name, _, ends = text.strip().rpartition(":")
    try:
        low, high = (float(end) for end in ends.split(","))
    except ValueError:
        low = high = math.nan
    if name and math.isfinite(low) and math.isfinite(high) and low > high:
        raise UsageError(
            f"--val-range {text!r} has its ends the wrong way round: {low:g} is above {high:g}",
            hint=f"Write --val-range {name}:{high:g},{low:g}.",
        )
    if not name or not math.isfinite(low) or not math.isfinite(high):
        raise UsageError(
            f"--val-range {text!r} is not NAME:LOW,HIGH", hint="Write for example --val-range image:0,255."
        )
    return name, (low, high)


def load_inputs(path: str | os.PathLike[str]) -> list[dict[str, Array]]:
    """Read samples: one from an .npz or .npy file, or one from each such file of a folder, in the order of their names.

    Args:
        path: A file with an array for each input name, or with one array without a name, which `only_input` gives its
            name; or a folder of such files; no pickled objects.

    Raises:
        ModelLoadError: A file is missing, is of another kind or holds pickled objects, or the folder has none.
    """
    if not os.path.isdir(path):
        return [_load_sample(os.fspath(path))]
    files = sorted(entry.path for entry in os.scandir(path) if entry.name.endswith((".npz", ".npy")))
    if not files:
        raise ModelLoadError(f"{os.fspath(path)} has no .npz or .npy files", hint="Save one for each sample.")
    return [_load_sample(file) for file in files]


def _load_sample(file: str) -> dict[str, Array]:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # to open a pipe would wait for somebody who writes to it
            raise ModelLoadError(f"{file} is not a regular file.")
        with open(file, "rb") as handle:  # np.load would leave a torn archive open
            _require_room(handle, file)
            data = np.load(handle, allow_pickle=False)
            if isinstance(data, np.lib.npyio.NpzFile):
                return {name: data[name] for name in data.files}
            if file.endswith(".npy"):
                return {NAMELESS: data}
            raise _not_npz(file)
    except BnfoldError:
        raise
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise _not_npz(file) from error


def _require_room(handle: BinaryIO, file: str) -> None:
    """Require that what the arrays of a file say they hold is in it, in proportion to it, and fits into memory."""
    needed = 0
    if zipfile.is_zipfile(handle):
        with zipfile.ZipFile(handle) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as array:
                    needed += _declared_nbytes(array, entry.file_size)
    else:
        stored = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        needed = _declared_nbytes(handle, stored)
    if needed > _FREE_NBYTES + _PER_FILE * os.fstat(handle.fileno()).st_size:
        raise ModelLoadError(
            f"{file}, unpacked, would take {size(needed)}, out of all proportion to the file.",
            hint="Save it without compression, by numpy.savez.",
        )
    require_memory(needed, f"{file}, unpacked,", ModelLoadError)
    handle.seek(0)


def _declared_nbytes(array: IO[bytes], stored: int) -> int:
    """How large an array says it is, of which so many bytes are stored."""
    version = np.lib.format.read_magic(array)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(array)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > stored:
        raise ValueError("an array is larger than what is stored of it")
    return nbytes


def _not_npz(file: str) -> ModelLoadError:
    hint = "Save named arrays with numpy.savez, without object arrays."
    return ModelLoadError(f"{file} is not an .npz or .npy file of plain arrays", hint=hint)


def only_input(sample: Mapping[str, Array], names: Sequence[str]) -> Mapping[str, Array]:
    """Give the array of an .npy file the name of the only input.

    Args:
        sample: Arrays by name.
        names: The inputs that it may be for.

    Raises:
        UsageError: There are several.
    """
    if set(sample) != {NAMELESS}:
        return sample
    if len(names) != 1:
        raise UsageError(
            f"an .npy file has no names, and the model has {len(names)} inputs: {', '.join(names)}",
            hint="Save the arrays by name with numpy.savez, and give the .npz file.",
        )
    return {names[0]: sample[NAMELESS]}


def name_shapes(shapes: Shapes, names: tuple[str, ...]) -> dict[str, InputSpec]:
    """Give each unnamed shape to the next input that has none.

    Args:
        shapes: What the caller gave.
        names: The model's inputs in their order.

    Raises:
        UsageError: A name is unknown or comes twice, there are more shapes than inputs, or one is no InputSpec.
    """
    pairs = list(shapes.items()) if isinstance(shapes, Mapping) else list(shapes)
    named: dict[str, InputSpec] = {}
    for name, spec in pairs:
        if not isinstance(spec, InputSpec):
            hint = "Give bnfold.InputSpec((1, 3, 224, 224)), for example."
            raise UsageError(f"the shape of an input is a {type(spec).__name__}, not a bnfold.InputSpec", hint=hint)
        if name is not None:
            if name in named:
                raise UsageError(f"input {name!r} has two shapes")
            named[name] = spec
    check_names("a shape", named, names)
    free = [name for name in names if name not in named]
    for name, spec in pairs:
        if name is None:
            if not free:
                raise UsageError(f"there are more shapes than inputs; the model has {len(names)}: {', '.join(names)}")
            named[free.pop(0)] = spec
    return named


def check_names(what: str, given: Mapping[str, object], names: tuple[str, ...]) -> None:
    """Raise UsageError if `given` names an input that the model does not have."""
    for name in given:
        if name not in names:
            raise UsageError(
                f"{what} was given for {name!r}, which is not an input of the model",
                hint=f"{perhaps(name, names)} Its inputs are {', '.join(names) or 'none'}.".lstrip(),
            )
