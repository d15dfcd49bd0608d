"""Frozen batch norms: modules that keep the parameters of a batch norm as buffers and spell its affine out.

torchvision, detectron2 and transformers have one each, called FrozenBatchNorm2d or something around it. Such a chain of
multiplication and addition counts as a batch norm if it agrees with the definition,

    y = weight / sqrt(running_var + eps) · (x − running_mean) + bias

for the buffers of that module and an eps that its graph adds to something.
"""

import numpy as np
import torch
from torch import fx

from bnfold.algebra.affine import Affine, batch_norm_defect
from bnfold.algebra.rounding import Float64Array
from bnfold.graph import AffineNode, Kind
from bnfold.torch.lift.constants import Constants
from bnfold.torch.lift.provenance import Handle, is_frozen

_BUFFERS = ("weight", "bias", "running_mean", "running_var")
_AGREES = 1e-9
"""How far a chain in float64 may be from the definition, relative to the largest channel."""


def parts_frozen(first: Handle, second: Handle) -> bool:
    """Whether one of two nodes is inside a frozen batch norm, and the other not inside the same call of it."""
    return (is_frozen(first.node) or is_frozen(second.node)) and (first.module, first.call) != (
        second.module,
        second.call,
    )


def recognise_frozen(node: AffineNode, constants: Constants) -> None:
    """Makes an affine a batch norm if it is all that a frozen batch norm does."""
    handle = node.handle
    if not isinstance(handle, Handle) or handle.module is None or node.kind is not Kind.AFFINE or node.affine is None:
        return
    if not is_frozen(handle.node) or node.affine.rank < 2:
        return
    path = handle.module.removeprefix(handle.scope.prefix).lstrip(".")
    found = [constants.stored(f"{path}.{name}" if path else name) for name in _BUFFERS]
    arrays = [array.reshape(-1) for array in found if array is not None]
    if len(arrays) != len(_BUFFERS) or len({array.shape for array in arrays}) != 1:
        return
    gamma, beta, mean, variance = arrays
    for epsilon in _epsilons(handle.scope.graph, handle):
        if batch_norm_defect(gamma, beta, mean, variance, epsilon) is not None:
            continue
        definition = Affine.from_batch_norm(gamma, beta, mean, variance, epsilon, rank=node.affine.rank)
        if _agree(definition.scale, node.affine.scale) and _agree(definition.shift, node.affine.shift):
            node.kind, node.op_type, node.affine = Kind.BATCH_NORM, "BatchNorm", definition
            return


def _agree(one: Float64Array, other: Float64Array) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max(initial=0.0) <= _AGREES * max(np.abs(one).max(initial=0.0), 1e-300))


def _epsilons(graph: fx.Graph, handle: Handle) -> list[float]:
    """The numbers that the nodes of one call of a module add to something."""
    found: list[float] = []
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.target is torch.ops.aten.add.Tensor and handle.call in stack:
            found += [float(given) for given in node.args if isinstance(given, float | int)]
    return [*dict.fromkeys(found)]
