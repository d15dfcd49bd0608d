"""Sizes of the values that regions begin with: those that the model fixes, and two of each that it leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx.shape_inference

from bnfold.onnx.file.load import OnnxModel, skeleton_for_inference
from bnfold.onnx.lift.shapes.as_run import read_as_run
from bnfold.onnx.lift.shapes.inference import may_follow_elements, with_inferred_shapes
from bnfold.onnx.lift.shapes.proofs import contradicts_readers
from bnfold.onnx.lift.types import ValueTypes, shape_in, value_types
from bnfold.onnx.proto.names import defined_names, nested
from bnfold.verification.inputs.sampling import DeclaredInput, declared_inputs

_BATCHES = (1, 2, 1, 2, 1, 2, 3, 4)
_CHANNELS = (3, 3, 1, 1, 4, 4, 3, 3)
_HEIGHTS = (64, 96, 224, 224, 32, 256, 64, 128)
_WIDTHS = (96, 64, 224, 224, 32, 256, 64, 128)
_LENGTHS = (16, 24, 64, 80, 1024, 512, 16000, 8000)


def sized_types(original: OnnxModel, types: ValueTypes) -> Iterator[ValueTypes]:
    """What is known about the values of a model, at one choice of its open sizes after the other.

    The first and the second differ in every open size; the first has batch 1. Sizes that shape inference refuses, or
    that the weight of a reader disproves, are left out.

    Args:
        original: The model, without functions.
        types: What is known about its values at any size.
    """
    declared = declared_inputs(original.proto)
    open_ = _open_dims(declared)
    for sizes in _choices(open_):
        sized = _with_sizes(original, declared, sizes)
        try:
            skeleton = skeleton_for_inference(sized)
            read_as_run(skeleton)
            data_prop = may_follow_elements(skeleton)
            onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=data_prop)
            if not open_:
                yield types
                continue
            known = with_inferred_shapes(sized).graph
            if not contradicts_readers(known, known, [{*defined_names(graph)} for graph in nested(known)]):
                yield value_types(known)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            continue


def is_open(original: OnnxModel) -> bool:
    """Whether a model leaves a size of its inputs open."""
    return any(item.is_dynamic for item in declared_inputs(original.proto))


def static_shape(types: ValueTypes, name: str) -> tuple[int, ...] | None:
    """The shape of a value if every size of it is known."""
    shape = shape_in(types, name)
    if shape is None:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def shape_for(types: ValueTypes, name: str, number: int) -> tuple[int, ...]:
    """A shape for a value; sizes that depend on data are powers of two, of which averages are exact.

    Args:
        types: What is known about the values of the model.
        name: The value.
        number: Which choice of sizes it is.

    Raises:
        LookupError: Its rank is not known.
    """
    shape = shape_in(types, name)
    if shape is None:
        raise LookupError(name)
    made_up = (1, 16) if number % 2 == 0 else (2, 8)
    return tuple(size if isinstance(size, int) else made_up[min(axis, 1)] for axis, size in enumerate(shape))


def _open_dims(declared: Sequence[DeclaredInput]) -> dict[str, tuple[int, ...]]:
    """The open dimensions of a model, each with the sizes to try, in this order."""
    found: dict[str, tuple[int, ...]] = {}
    for item in declared:
        for axis, dim in enumerate(item.dims or ()):
            if isinstance(dim, int) or dim in found:
                continue
            rank = len(item.dims or ())
            if axis == 0:
                found[dim] = _BATCHES
            elif rank >= 4:
                found[dim] = _CHANNELS if axis == 1 else _WIDTHS if axis == rank - 1 else _HEIGHTS
            else:
                found[dim] = _LENGTHS
    return found


def _choices(open_: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    if not open_:
        yield {}
        return
    for choice in zip(*open_.values(), strict=True):
        yield dict(zip(open_, choice, strict=True))


def _with_sizes(model: OnnxModel, declared: Sequence[DeclaredInput], sizes: Mapping[str, int]) -> OnnxModel:
    copy = model.copy()
    dims = {item.name: item.dims for item in declared}
    for value in copy.proto.graph.input:
        for dim, key in zip(value.type.tensor_type.shape.dim, dims.get(value.name) or (), strict=False):
            dim.dim_value = sizes[key] if isinstance(key, str) else key
    for value in copy.proto.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    if sizes:
        for value in copy.proto.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return copy
