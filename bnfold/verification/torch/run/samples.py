"""What both models are called with: the structure of the example, with the caller's data or seeded values in it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError
from bnfold.input_spec import Array, InputSpec, Shapes, check_names, name_shapes, only_input
from bnfold.report.records import InputInfo
from bnfold.torch.capture.example_inputs import ExampleInputs, split_inputs
from bnfold.torch.fx.tensors import to_torch
from bnfold.verification.inputs.feeds import count_samples
from bnfold.verification.inputs.sampling import Range
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.subject import Subject

Given: TypeAlias = ExampleInputs | Mapping[str, Array]
"""One sample of real data: as for a call, or arrays by name."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What the caller said about inputs.

    Attributes:
        example: What the model can be called with; None where the model or the data tells.
        data: Real data, one entry for each sample; empty where everything is made up.
        samples: Number of samples where everything is made up.
        seed: Seed of what is made up.
        shapes: Other shapes than the example's, by name or in order.
        ranges: Lowest and highest value by name.
    """

    example: ExampleInputs | None
    data: tuple[Given, ...]
    samples: int
    seed: int
    shapes: Shapes
    ranges: Mapping[str, Range]

    @staticmethod
    def of(
        example: ExampleInputs | None,
        inputs: Given | Sequence[Given] | None,
        samples: int,
        seed: int,
        shapes: Shapes | None,
        ranges: Mapping[str, Range] | None,
    ) -> SampleRequest:
        """Check what can be checked without a model.

        Raises:
            UsageError: A number is out of range or no sample is left.
        """
        # A tuple is what a model is called with; a list is several of what one sample may be.
        given: list[Given] = [] if inputs is None else inputs if isinstance(inputs, list) else [inputs]
        data = tuple(given)
        count = count_samples(data if inputs is not None else None, samples, seed)
        return SampleRequest(example, data, count, seed, shapes or {}, ranges or {})


def make_samples(subject: Subject, request: SampleRequest) -> tuple[list[Sample], tuple[InputInfo, ...]]:
    """All samples, and what a report says about them.

    Args:
        subject: The original.
        request: What the caller said.

    Raises:
        UsageError: Nothing tells what the model can be called with, a name is unknown, or data does not fit.
    """
    example = _example(subject, request)
    tensors = example.tensors()
    names = tuple(tensors)
    shapes = name_shapes(request.shapes, names)
    check_names("a value range", request.ranges, names)
    given = [_by_name(data, example) for data in request.data] or [{}] * request.samples
    # Integers may be sizes or positions that belong together; they are shuffled only where nothing else can vary.
    shuffle = not any(leaf.is_floating_point() or leaf.is_complex() for leaf in tensors.values())
    samples = []
    for number, data in enumerate(given):
        for name in data:
            if name in shapes or name in request.ranges:
                raise UsageError(f"input {name!r} has both data and a shape or value range")
        leaves = []
        for index, (name, leaf) in enumerate(zip(example.names, example.leaves, strict=True)):
            if name in data or not isinstance(leaf, torch.Tensor):
                leaves.append(data.get(name, leaf))
                continue
            rng = np.random.default_rng([request.seed, number, index])
            made = _random(name, leaf, shapes.get(name), request.ranges.get(name), rng, shuffle=shuffle)
            leaves.append(made)
        samples.append(Sample(example.names, tuple(leaves), example.structure))
    infos = tuple(
        InputInfo(
            name,
            tuple(leaf.shape),
            str(leaf.dtype).removeprefix("torch."),
            leaf.shape != tensors[name].shape,
            "given" if name in given[0] else "seeded",
        )
        for name, leaf in samples[0].tensors().items()
    )
    return samples, infos


def _example(subject: Subject, request: SampleRequest) -> Sample:
    """What the model can be called with, by whoever knows.

    Raises:
        UsageError: Nobody does.
    """
    example = request.example
    program = subject.program
    if example is None and program is not None and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return _flattened((tuple(args), dict(kwargs)), subject)
    if example is None and request.data:
        example = cast(ExampleInputs, _as_tensors(request.data[0]))
    if example is None:
        raise UsageError(
            f"nothing tells what {subject.label} can be called with",
            hint="Give example_inputs: a tuple of tensors, a dict of named ones, or (args, kwargs).",
        )
    return _flattened(split_inputs(example), subject)


def _flattened(call: tuple[tuple[object, ...], Mapping[str, object]], subject: Subject) -> Sample:
    args, kwargs = call
    program = subject.program
    if program is not None:
        order = _keyword_order(program, kwargs)
        kwargs = {name: kwargs[name] for name in order}
    paths, structure = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    names = _parameter_names(subject.module, len(args))
    labels: list[str] = []
    for path, _ in paths:
        first, *rest = path[1:]
        head = names[first.idx] if isinstance(first, pytree.SequenceKey) else _key(first)
        labels.append(".".join([head, *map(_key, rest)]))
    if program is not None and len(program.graph_signature.user_inputs) == len(labels):
        placed = zip(program.graph_signature.user_inputs, labels, strict=True)
        labels = [given if isinstance(given, str) and given else label for given, label in placed]
    return Sample(tuple(labels), tuple(leaf for _, leaf in paths), structure)


def _keyword_order(program: ExportedProgram, kwargs: Mapping[str, object]) -> list[str]:
    """Keyword arguments in the order in which a program numbers its inputs."""
    names = program.call_spec.in_spec.child(1).context if program.call_spec.in_spec is not None else None
    return list(names) if names is not None and set(names) == set(kwargs) else list(kwargs)


def _parameter_names(module: torch.nn.Module, count: int) -> list[str]:
    """Names for positional arguments, from the signature of forward."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names + [f"args_{index}" for index in range(len(names), count)]


def _key(key: pytree.KeyEntry) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _by_name(data: Given, example: Sample) -> dict[str, object]:
    """The leaves that one sample of the caller's gives.

    Raises:
        UsageError: A name is unknown, or an element type or the structure is not the example's.
    """
    tensors = example.tensors()
    if isinstance(data, Mapping):
        data = only_input(cast("Mapping[str, Array]", data), list(tensors))
        check_names("data", data, example.names)
        found = {name: _as_tensors(value) for name, value in data.items()}
    else:
        leaves, structure = pytree.tree_flatten(split_inputs(cast(ExampleInputs, _as_tensors(data))))
        if structure != example.structure:
            raise UsageError("a sample of the inputs has another structure than example_inputs")
        found = dict(zip(example.names, leaves, strict=True))
    for name, value in found.items():
        wanted = tensors.get(name)
        if wanted is not None and not (isinstance(value, torch.Tensor) and value.dtype == wanted.dtype):
            kind = str(value.dtype) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise UsageError(f"input {name!r} was given as {kind}, but the model takes {wanted.dtype}")
    return found


def _as_tensors(data: object) -> object:
    def convert(leaf: object) -> object:
        return to_torch(np.asarray(leaf)) if isinstance(leaf, np.ndarray | np.generic) else leaf

    return pytree.tree_map(convert, dict(data) if isinstance(data, Mapping) else data)


def _random(
    name: str,
    like: torch.Tensor,
    spec: InputSpec | None,
    value_range: Range | None,
    rng: np.random.Generator,
    *,
    shuffle: bool,
) -> torch.Tensor:
    """Floats N(0, 1) or uniform in the range; integers in the range or the example's; booleans the example's.

    Args:
        name: What a message calls the input.
        like: The example's tensor.
        spec: Another shape, or None.
        value_range: Lowest and highest value, or None.
        rng: Source of the draws.
        shuffle: Whether the example's integers change places.

    Raises:
        UsageError: The shape or the range does not fit the input.
    """
    shape = tuple(like.shape) if spec is None else spec.shape
    if spec is not None and spec.dtype is not None and spec.dtype != str(like.dtype).removeprefix("torch."):
        raise UsageError(f"input {name!r} was asked for as {spec.dtype}, but the model takes {like.dtype}")
    if len(shape) != like.dim():
        raise UsageError(f"input {name!r} has {like.dim()} dimensions, but a shape of {len(shape)} was given")
    if like.is_floating_point():
        values = rng.standard_normal(shape) if value_range is None else rng.uniform(*value_range, shape)
        return torch.from_numpy(np.asarray(values)).to(like.dtype)
    if like.is_complex():
        parts = rng.standard_normal((*shape, 2))
        return torch.view_as_complex(torch.from_numpy(parts)).to(like.dtype)
    if value_range is not None:
        low, high = value_range
        if like.dtype is torch.bool or not (float(low).is_integer() and float(high).is_integer()):
            raise UsageError(f"the value range {low:g},{high:g} of input {name!r} does not fit {like.dtype}")
        return torch.from_numpy(np.asarray(rng.integers(int(low), int(high), shape, endpoint=True))).to(like.dtype)
    values_of_example = like.detach().cpu().reshape(-1).numpy()
    if shape == tuple(like.shape):
        moves = shuffle and like.dtype is not torch.bool
        kept = rng.permutation(values_of_example) if moves else values_of_example
    else:
        kept = rng.choice(values_of_example, shape) if values_of_example.size else np.zeros(shape)
    return torch.from_numpy(np.asarray(kept).reshape(shape).copy()).to(like.dtype)
