"""The batch dimension: the one open size that inputs have in their first place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from bnfold.errors import UsageError
from bnfold.input_spec import InputSpec
from bnfold.verification.inputs.sampling import DeclaredInput


def with_batch(
    declared: Sequence[DeclaredInput], shapes: Mapping[str, InputSpec], given: Collection[str], batch: int
) -> tuple[tuple[DeclaredInput, ...], dict[str, InputSpec]]:
    """Fix the batch dimension.

    Args:
        declared: The model's inputs.
        shapes: Given shapes, by the name of an input that exists; their batch size is replaced.
        given: Names of the inputs that come with data.
        batch: The size, at least 1.

    Returns:
        The inputs and the shapes as they are for this batch.

    Raises:
        UsageError: No input has an open first size, several have different ones, or data fixes it.
    """
    key = _batch_key(declared)
    fixed = [item.name for item in declared if item.name in given and key in (item.dims or ())]
    if fixed:
        raise UsageError(
            f"the data given for input {fixed[0]!r} already has a batch size",
            hint="Leave out --batch, or give a shape instead of data.",
        )
    dims = {item.name: item.dims or () for item in declared}
    sized = {name: replace(spec, shape=_sized(spec.shape, dims[name], key, batch)) for name, spec in shapes.items()}
    return tuple(_fixed(item, key, batch) for item in declared), sized


def _batch_key(declared: Sequence[DeclaredInput]) -> str:
    keys = {item.name: item.dims[0] for item in declared if item.dims and isinstance(item.dims[0], str)}
    if not keys:
        text = ", ".join(f"{item.name!r} {_dims_text(item.dims)}" for item in declared) or "none"
        raise UsageError(
            f"the batch size is fixed: no input has an open first dimension (inputs: {text})",
            hint="Leave out --batch, or export the model with a dynamic batch dimension.",
        )
    if len(set(keys.values())) > 1:
        text = " and ".join(f"{key!r} of input {name!r}" for name, key in keys.items())
        raise UsageError(
            f"which dimension is the batch is not clear: {text} may differ",
            hint="Leave out --batch and give the shapes with --input.",
        )
    return next(iter(keys.values()))


def _fixed(item: DeclaredInput, key: str, batch: int) -> DeclaredInput:
    if item.dims is None:
        return item
    return replace(item, dims=tuple(batch if dim == key else dim for dim in item.dims))


def _sized(shape: tuple[int, ...], dims: tuple[int | str, ...], key: str, batch: int) -> tuple[int, ...]:
    if len(shape) != len(dims):
        return shape  # what is wrong with it is said where shapes are checked
    return tuple(batch if dim == key else size for size, dim in zip(shape, dims, strict=True))


def _dims_text(dims: tuple[int | str, ...] | None) -> str:
    return "of unknown rank" if dims is None else "(" + ", ".join(map(str, dims)) + ")"
