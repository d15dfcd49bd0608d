"""Shapes and element types of the values of a model, as far as onnx's shape inference knows them."""

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import onnx
from onnx import helper

from bnfold.algebra.rounding import DType
from bnfold.onnx.proto.names import GraphLike, nested

_LARGEST_SIZE = 2**63 - 1

Shape = tuple[int | str | None, ...]

ValueTypes = Mapping[str, tuple[Shape | None, str]]
"""Name of a value → its shape (None if the rank is unknown) and numpy's name of its element type ("" if unknown)."""


def value_types(graph: GraphLike) -> dict[str, tuple[Shape | None, str]]:
    """Reads what a graph declares about its own values.

    Args:
        graph: A graph after shape inference, or a function.

    Returns:
        An entry for each declared tensor.
    """
    declared = [*graph.value_info]
    types: dict[str, tuple[Shape | None, str]] = {}
    if isinstance(graph, onnx.GraphProto):
        declared += [*graph.input, *graph.output]
        for tensor in graph.initializer:
            types[tensor.name] = (tuple(tensor.dims), _dtype_name(tensor.data_type))
    for value in declared:
        if value.type.HasField("tensor_type"):
            tensor_type = value.type.tensor_type
            types[value.name] = shape_of(tensor_type), _dtype_name(tensor_type.elem_type)
    return types


def types_by_graph(main: onnx.GraphProto) -> Iterator[dict[str, tuple[Shape | None, str]]]:
    """For each graph, in the order of `nested`: the types of its own values and of those of the main graph."""
    _, *inside = nested(main)
    outer = value_types(main)
    yield outer
    for graph in inside:
        yield outer | value_types(graph)


def shape_in(types: ValueTypes, name: str) -> Shape | None:
    """The shape of a value; None if its rank is not known."""
    return types.get(name, (None, ""))[0]


def dtype_in(types: ValueTypes, name: str) -> str:
    """The element type of a value; "" if it is not known."""
    return types.get(name, (None, ""))[1]


def shape_of(tensor_type: onnx.TypeProto.Tensor) -> Shape | None:
    """The shape that a type declares; None for an absent one, whose rank is unknown, while an empty one is a scalar.

    A negative size is not known: exporters write −1 for that, and inference where a window does not fit.
    """
    if not tensor_type.HasField("shape"):
        return None
    sizes: list[int | str | None] = []
    for dim in tensor_type.shape.dim:
        size = dim.dim_value
        if size > 0:  # most are
            sizes.append(size)
        elif dim.HasField("dim_value"):
            sizes.append(None if size < 0 else size)
        else:
            sizes.append(dim.dim_param or None)
    return tuple(sizes)


def declare(value: onnx.ValueInfoProto, shape: Shape) -> None:
    """Declares the sizes of a tensor; one that no file can say, which only hostile ones come to, is not known."""
    declared = value.type.tensor_type.shape
    del declared.dim[:]
    for size in shape:
        dim = declared.dim.add()
        if isinstance(size, int):
            if size <= _LARGEST_SIZE:
                dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


@cache
def _dtype_name(data_type: int) -> str:
    dtype = numpy_dtype(data_type)
    return "" if dtype is None else dtype.name


def numpy_dtype(data_type: int) -> DType | None:
    """The dtype of an ONNX element type; None for strings, and for types that this onnx does not know."""
    if data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return None
    try:
        return helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return None


def element_type(dtype: str) -> int:
    """The ONNX element type of a dtype, by its name."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
