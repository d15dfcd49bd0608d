"""Sizes for dimensions that a model leaves open: what the caller says, then what the original runs with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from bnfold.errors import UsageError, VerificationError
from bnfold.input_spec import InputSpec
from bnfold.verification.inputs.roles import Role
from bnfold.verification.inputs.sampling import DeclaredInput
from bnfold.verification.judging.metrics import is_float

Sizes = dict[str, int]
"""A size for the key of each open dimension."""

_SPATIAL = (224, 64, 128, 256, 299, 32, 16, 512, 1024, 8, 4, 2, 1)
_SEQUENCE = (16, 64, 80, 128, 256, 8, 512, 1024, 4, 2, 1, 16000)
_TOKENS = (16, 8, 64, 128, 4, 2, 1)
_WAVEFORM = (16000, 16, 64, 128, 256, 512, 1024, 8, 4, 2, 1)
_CHANNELS = (3, 1, 2, 4)
_BATCH = (1, 2)
_RANKS = (4, 2, 3, 1)
"""How long a vector of sizes, positions or counts is, of which the model does not say it."""


def bind(declared: Sequence[DeclaredInput], shapes: Mapping[str, InputSpec]) -> Sizes:
    """The open sizes that given shapes fix; of several for one symbol the first, see `unequal_sizes`.

    Args:
        declared: The model's inputs.
        shapes: Given shapes, by the name of an input that exists.

    Raises:
        UsageError: A shape contradicts what the model declares.
    """
    sizes: Sizes = {}
    for item in declared:
        spec = shapes.get(item.name)
        if spec is None:
            continue
        if spec.dtype is not None and item.dtype is not None and spec.dtype != item.dtype.name:
            raise UsageError(f"input {item.name!r} was given as {spec.dtype}, but the model takes {item.dtype.name}")
        if item.dims is None:
            continue
        if len(spec.shape) != len(item.dims):
            raise UsageError(
                f"input {item.name!r} was given {len(spec.shape)} dimensions, but the model takes "
                f"{len(item.dims)}: {_text(item.dims)}"
            )
        for size, dim in zip(spec.shape, item.dims, strict=True):
            if isinstance(dim, str):
                sizes.setdefault(dim, size)
            elif size != dim:
                raise UsageError(
                    f"input {item.name!r} was given a size of {size} where the model has {dim}; "
                    f"the model takes {_text(item.dims)}"
                )
    return sizes


def unequal_sizes(declared: Sequence[DeclaredInput], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which sizes a model calls by one name and was given several of, as a clause; "" if there are none.

    Runtimes do not ask for them to be equal.

    Args:
        declared: The model's inputs.
        shapes: The shape of each.
    """
    found: dict[str, set[int]] = {}
    for item in declared:
        for dim, size in zip(item.dims or (), shapes[item.name], strict=False):
            if isinstance(dim, str):
                found.setdefault(dim, set()).add(size)
    said = [f"{dim!r} stands for {' and '.join(map(str, sorted(s)))}" for dim, s in found.items() if len(s) > 1]
    return ", ".join(said)


def fill(
    declared: Sequence[DeclaredInput], shapes: Mapping[str, InputSpec], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shape of every input, given ones first."""
    filled = {}
    for item in declared:
        if item.name in shapes:
            filled[item.name] = shapes[item.name].shape
        elif item.dims is not None:
            filled[item.name] = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in item.dims)
    return filled


def resolve(
    declared: Sequence[DeclaredInput], shapes: Mapping[str, InputSpec], attempt: Callable[[Sizes], str | None]
) -> Sizes:
    """A size for every open dimension.

    Args:
        declared: The model's inputs.
        shapes: Given shapes.
        attempt: Runs the original with these sizes; None if that went well, else the reason.

    Raises:
        UsageError: A given shape contradicts the model.
        VerificationError: The original runs with none of the sizes tried.
    """
    bound = bind(declared, shapes)
    for item in declared:
        if item.dims is None and item.dtype is not None and item.name not in shapes:
            raise VerificationError(
                f"the model does not say how many dimensions its input {item.name!r} has",
                hint=f"Give its shape with --input {item.name}:SHAPE.",
            )
    if all(dim in bound for item in declared for dim in item.dims or () if isinstance(dim, str)):
        return bound
    reason: str | None = None
    for candidate in _candidates(declared, bound):
        reason = attempt(candidate)
        if reason is None:
            return candidate
    example = next(
        item for item in declared if any(dim not in bound for dim in item.dims or () if isinstance(dim, str))
    )
    dims = example.dims or ()
    raise VerificationError(
        f"the original ran with none of the sizes tried for {example.name!r} {_text(dims)}: {reason}",
        hint=f"Give its shape, for example --input {example.name}:"
        + ",".join(str(dim) if isinstance(dim, int) else "1" for dim in dims),
    )


def _candidates(declared: Sequence[DeclaredInput], bound: Sizes) -> Iterator[Sizes]:
    """Sizes in the order of likelihood: batch 1, three channels, the usual image; the first varies last."""
    batch: list[str] = []
    channels: list[str] = []
    ranks: list[str] = []
    others: dict[str, tuple[int, ...]] = {}
    for item in declared:
        for axis, dim in enumerate(item.dims or ()):
            if isinstance(dim, int) or dim in (*bound, *batch, *channels, *ranks, *others):
                continue
            if item.role is not Role.VALUES:
                ranks.append(dim)
            elif axis == 0:
                batch.append(dim)
            elif axis == 1 and len(item.dims or ()) >= 4:
                channels.append(dim)
            else:
                others[dim] = _usual_sizes(item)
    rounds = max((len(sizes) for sizes in others.values()), default=1)
    for one_batch, one_channels, index, rank in itertools.product(
        _BATCH if batch else (1,), _CHANNELS if channels else (1,), range(rounds), _RANKS if ranks else (1,)
    ):
        yield {
            **bound,
            **dict.fromkeys(batch, one_batch),
            **dict.fromkeys(channels, one_channels),
            **dict.fromkeys(ranks, rank),
            **{dim: sizes[min(index, len(sizes) - 1)] for dim, sizes in others.items()},
        }


def _usual_sizes(item: DeclaredInput) -> tuple[int, ...]:
    rank = len(item.dims or ())
    if rank >= 4:
        return _SPATIAL
    if item.dtype is not None and not is_float(item.dtype):
        return _TOKENS
    return _SEQUENCE if rank == 3 else _WAVEFORM


def _text(dims: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(dim) if isinstance(dim, int) else _dim_name(dim) for dim in dims) + ")"


def _dim_name(key: str) -> str:
    return "?" if key.endswith("]") else key
