"""PyTorch models at other batch sizes: a program says which sizes are open, a module takes whatever it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.export import ExportedProgram

from bnfold.errors import UsageError
from bnfold.input_spec import InputSpec, name_shapes
from bnfold.latency.batches import with_batch
from bnfold.report.records import InputInfo
from bnfold.verification.inputs.sampling import DeclaredInput
from bnfold.verification.torch.run.sample import Sample
from bnfold.verification.torch.run.samples import SampleRequest

Fed = tuple[Sample, tuple[InputInfo, ...]]
"""What a model is called with, and what is said about it."""


def request_for_program(program: ExportedProgram, request: SampleRequest, fed: Fed, batch: int) -> SampleRequest:
    """The request with the shapes of this batch size, from the caller's or the example's.

    Args:
        program: The program.
        request: What the caller said about inputs.
        fed: What that is without a batch size.
        batch: The size, at least 1.

    Raises:
        UsageError: The program has no open batch dimension, or data fixes it.
    """
    sample, inputs = fed
    given = {info.name for info in inputs if info.source == "given"}
    shapes = {name: InputSpec(tuple(tensor.shape)) for name, tensor in sample.tensors().items()}
    _, sized = with_batch(_declared(program, sample), shapes, given, batch)
    asked = name_shapes(request.shapes, tuple(shapes))
    changed = {name: spec for name, spec in sized.items() if name in asked or spec != shapes[name]}
    return replace(request, shapes=changed)


def repeated(fed: Fed, label: str, batch: int) -> Fed:
    """What a module is called with at this batch size: the rows of its inputs, from the first again after the last.

    So values that belong together, and integers in a range that nobody declares, remain what they are.

    Args:
        fed: What it is called with.
        label: What a message calls the module.
        batch: The size, at least 1.

    Raises:
        UsageError: No input has a first dimension, or their sizes there differ.
    """
    sample, inputs = fed
    sizes = {name: len(tensor) for name, tensor in sample.tensors().items() if tensor.dim()}
    _check_sizes(sizes, label)

    def rows(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return leaf
        copies = -(-batch // len(leaf))
        return torch.cat([leaf] * copies)[:batch]  # unlike indexing it keeps the memory format

    infos = tuple(replace(info, shape=(batch, *info.shape[1:])) if info.shape else info for info in inputs)
    return replace(sample, leaves=tuple(map(rows, sample.leaves))), infos


def _check_sizes(sizes: dict[str, int], label: str) -> None:
    if not sizes or 0 in sizes.values():
        raise UsageError(
            f"{label} has no input with rows, so it has no batch size to change", hint="Leave out the batch sizes."
        )
    if len(set(sizes.values())) > 1:
        text = " and ".join(f"{name!r} has {size}" for name, size in sizes.items())
        raise UsageError(
            f"the inputs of {label} do not agree about the batch: in its first dimension {text}",
            hint="Leave out the batch sizes and give inputs of the size that you want.",
        )


def _declared(program: ExportedProgram, sample: Sample) -> Sequence[DeclaredInput]:
    """The tensors that a program takes; sizes that were left open are named by their symbol."""
    inputs = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    declared = []
    for name, tensor in sample.tensors().items():
        traced = inputs.get(name)
        dims: tuple[int | str, ...] = tuple(tensor.shape)
        if isinstance(traced, torch.Tensor):
            dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in traced.shape)
        declared.append(DeclaredInput(name, None, str(tensor.dtype), dims))
    return declared
