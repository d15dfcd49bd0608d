"""What both models are fed: the caller's data where there is some, seeded values elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.errors import UsageError
from bnfold.input_spec import Array, InputSpec, Shapes, check_names, name_shapes, only_input
from bnfold.report.records import InputInfo
from bnfold.verification.inputs.sampling import DeclaredInput, Range, random_sample, require_values
from bnfold.verification.inputs.shapes import Sizes, bind, fill, resolve
from bnfold.verification.runtime.sessions import RuntimeFailure

Feed = dict[str, Array]


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """What the caller said about inputs.

    Attributes:
        data: Real data, a mapping for each sample; empty where everything is made up.
        samples: Number of samples where everything is made up.
        seed: Seed of what is made up.
        shapes: Shapes by name, or in the order of the command line.
        ranges: Lowest and highest value by name.
    """

    data: tuple[Mapping[str, Array], ...]
    samples: int
    seed: int
    shapes: Shapes
    ranges: Mapping[str, Range]

    @staticmethod
    def of(
        inputs: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None,
        samples: int,
        seed: int,
        shapes: Shapes | None,
        ranges: Mapping[str, Range] | None,
    ) -> FeedRequest:
        """Check what can be checked without a model.

        Raises:
            UsageError: A number is out of range or no sample is left.
        """
        data = () if inputs is None else (inputs,) if isinstance(inputs, Mapping) else tuple(inputs)
        count = count_samples(data if inputs is not None else None, samples, seed)
        return FeedRequest(data, count, seed, shapes or {}, ranges or {})


def count_samples(data: Sequence[object] | None, samples: int, seed: int) -> int:
    """How many samples there are: those of the data, or else as many as asked for.

    Raises:
        UsageError: There are none, or a number is out of range.
    """
    if data is not None and not data:
        raise UsageError("the inputs are an empty sequence", hint="Give at least one sample.")
    if samples < 1:
        raise UsageError(f"samples is {samples}", hint="At least one sample is needed to compare anything.")
    if seed < 0:
        raise UsageError(f"seed is {seed}", hint="Seeds are 0 or more.")
    return len(data) if data else samples


def make_feeds(
    declared: tuple[DeclaredInput, ...], request: FeedRequest, run: Callable[[Feed], object]
) -> tuple[list[Feed], tuple[InputInfo, ...]]:
    """All samples, and what a report says about them.

    Args:
        declared: The model's inputs.
        request: What the caller said.
        run: Runs the original; called only where sizes have to be found out.

    Raises:
        UsageError: A name is unknown, or data or a shape contradicts the model.
        UnsupportedModelError: An input without data is of a type that no value can be made up for.
        VerificationError: No sizes were found that the original runs with.
    """
    names = tuple(item.name for item in declared)
    shapes = name_shapes(request.shapes, names)
    check_names("a value range", request.ranges, names)
    samples = [_given(declared, only_input(sample, names)) for sample in request.data] or [{}] * request.samples
    require_values(declared, samples)
    for sample in samples:
        for name in sample:
            if name in shapes or name in request.ranges:
                raise UsageError(f"input {name!r} has both data and a shape or value range")

    def complete(number: int, sizes: Sizes) -> Feed:
        known = {**shapes, **_specs(samples[number])}
        missing = fill(declared, known, {**sizes, **bind(declared, known)})
        made = {name: shape for name, shape in missing.items() if name not in samples[number]}
        return {**random_sample(declared, made, request.ranges, request.seed, number), **samples[number]}

    def attempt(sizes: Sizes) -> str | None:
        try:
            run(complete(0, sizes))
        except RuntimeFailure as failure:
            return str(failure)
        return None

    sizes = resolve(declared, {**shapes, **_specs(samples[0])}, attempt)
    feeds = [complete(number, sizes) for number in range(len(samples))]
    return feeds, tuple(_info(item, feeds[0][item.name], item.name in samples[0]) for item in declared)


def _given(declared: tuple[DeclaredInput, ...], sample: Mapping[str, Array]) -> Feed:
    """One sample of the caller's, checked.

    Raises:
        UsageError: A name is unknown, or an element type is not the model's.
    """
    check_names("data", sample, tuple(item.name for item in declared))
    kinds = {item.name: item for item in declared}
    arrays: Feed = {}
    for name, value in sample.items():
        array, wanted = np.asarray(value), kinds[name].dtype
        if wanted is not None and array.dtype != wanted:
            raise UsageError(f"input {name!r} was given as {array.dtype.name}, but the model takes {wanted.name}")
        arrays[name] = array
    return arrays


def _specs(sample: Mapping[str, Array]) -> dict[str, InputSpec]:
    return {name: InputSpec(tuple(array.shape)) for name, array in sample.items()}


def _info(item: DeclaredInput, array: Array, given: bool) -> InputInfo:
    return InputInfo(item.name, tuple(array.shape), array.dtype.name, item.is_dynamic, "given" if given else "seeded")
