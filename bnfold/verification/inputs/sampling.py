"""What the model asks for, and seeded values of that kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import helper

from bnfold.errors import UnsupportedModelError, UsageError, VerificationError
from bnfold.input_spec import DTYPES, Array
from bnfold.onnx.proto.normalise import is_unknown
from bnfold.system.memory import require_memory
from bnfold.verification.inputs.roles import Role, roles, values_for
from bnfold.verification.judging.metrics import is_float

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class DeclaredInput:
    """An input that the caller of a model has to feed.

    Attributes:
        name: Its name.
        dtype: Element type; None for strings, sequences and the like.
        kind: The type in words.
        dims: A size, or the key of an unknown one: equal keys are equal sizes. None if the rank is unknown.
        role: What the model takes it for.
    """

    name: str
    dtype: np.dtype[np.generic] | None
    kind: str
    dims: tuple[int | str, ...] | None
    role: Role = Role.VALUES

    @property
    def is_dynamic(self) -> bool:
        """Whether a size is left open."""
        return self.dims is None or any(isinstance(dim, str) for dim in self.dims)


def declared_inputs(model: onnx.ModelProto) -> tuple[DeclaredInput, ...]:
    """The graph inputs that have no default among the initializers."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    initialized |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    special = roles(model.graph)
    declared = (_declared(value) for value in model.graph.input if value.name not in initialized)
    return tuple(
        replace(item, role=special[item.name]) if item.name in special and _may_have_role(item) else item
        for item in declared
    )


def _may_have_role(item: DeclaredInput) -> bool:
    """Whether it is a scalar or a vector of numbers: sizes, positions and counts are."""
    short = item.dims is not None and len(item.dims) < 2
    return short and item.dtype is not None and item.dtype.kind in "iuf"


def require_values(declared: Sequence[DeclaredInput], samples: Sequence[Mapping[str, Array]]) -> None:
    """Require that values can be made up for what is not given.

    Args:
        declared: The inputs.
        samples: What is given.

    Raises:
        UnsupportedModelError: An input that a sample lacks is of a type that no value can be made up for.
    """
    for item in declared:
        if item.dtype is None and not all(item.name in sample for sample in samples):
            raise UnsupportedModelError(
                f"input {item.name!r} is of a type for which no values can be made up: {item.kind}",
                hint="Give real data with --inputs." if item.kind.startswith("tensor") else "",
            )


def random_sample(
    declared: tuple[DeclaredInput, ...],
    shapes: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, Range],
    seed: int,
    sample: int,
) -> dict[str, Array]:
    """Values for inputs: floats N(0, 1) or uniform in the range; integers 0, 1 or in the range; booleans; or by role.

    Args:
        declared: The inputs; each has its own stream, so that leaving one out does not change the others.
        shapes: Shape of each input that is wanted, by name.
        ranges: Lowest and highest value by name.
        seed: The caller's seed.
        sample: Number of the sample.

    Raises:
        UsageError: A range does not fit the element type.
    """
    values: dict[str, Array] = {}
    for index, item in enumerate(declared):
        if item.name in shapes:
            rng = np.random.default_rng([seed, sample, index])
            values[item.name] = _random_array(item, shapes[item.name], ranges.get(item.name), rng)
    return values


def _random_array(
    item: DeclaredInput, shape: tuple[int, ...], value_range: Range | None, rng: np.random.Generator
) -> Array:
    dtype = item.dtype
    assert dtype is not None  # see require_values
    require_memory(
        math.prod(shape) * (8 + dtype.itemsize),  # drawn with 8 bytes each
        f"input {item.name!r} of shape {shape}",
        partial(
            VerificationError, hint="Give smaller inputs with --input, or fewer --samples, where the model allows."
        ),
    )
    if item.role is not Role.VALUES and value_range is None:
        return values_for(item.role, shape, dtype)
    if dtype == np.bool_:
        if value_range is not None:
            raise UsageError(f"input {item.name!r} is boolean and takes no value range")
        return rng.integers(0, 2, shape).astype(np.bool_)
    if is_float(dtype) and value_range is None:
        return rng.standard_normal(shape).astype(dtype)
    low, high = map(float, value_range or (0, 1))
    lowest, highest = _limits(dtype)
    whole = is_float(dtype) or (low.is_integer() and high.is_integer())
    if not (whole and lowest <= low <= high <= highest):
        raise UsageError(f"the value range {low:g},{high:g} of input {item.name!r} does not fit {dtype.name}")
    if is_float(dtype):
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(int(low), int(high), shape, dtype=dtype.name, endpoint=True)


def _limits(dtype: np.dtype[np.generic]) -> Range:
    if is_float(dtype):
        largest = float(np.finfo(np.float16 if dtype == np.float16 else np.float32).max)
        return -largest, largest
    return float(np.iinfo(dtype.name).min), float(np.iinfo(dtype.name).max)


def _declared(value: onnx.ValueInfoProto) -> DeclaredInput:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "value of unknown type"
        return DeclaredInput(value.name, None, kind.removesuffix("_type"), None)
    tensor = value.type.tensor_type
    dtype, kind = None, f"tensor of the unknown element type {tensor.elem_type}"
    if tensor.elem_type in onnx.TensorProto.DataType.values():
        kind = f"tensor of {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}"
        known = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
        dtype = known if known is not None and known.name in DTYPES else None
    if not tensor.HasField("shape"):
        return DeclaredInput(value.name, dtype, kind, None)
    dims = tuple(_dim(value.name, axis, dim) for axis, dim in enumerate(tensor.shape.dim))
    return DeclaredInput(value.name, dtype, kind, dims)


def _dim(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if is_unknown(dim):
        return f"{name}[{axis}]"
    return int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param)
