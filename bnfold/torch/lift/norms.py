"""What single torch nodes mean: batch norms, in whatever of its many operators."""

from collections.abc import Sequence

import numpy as np
from torch import fx

from bnfold.algebra.affine import Affine, batch_norm_defect
from bnfold.algebra.rounding import Array
from bnfold.errors import UnsupportedModelError
from bnfold.graph import Value
from bnfold.reasons import Stop, StopCode
from bnfold.torch.fx.nodes import arguments, operator_name
from bnfold.torch.lift.affines import FoundAffine
from bnfold.torch.lift.constants import Constant, Constants

_TRAINS_ALWAYS = frozenset({"_batch_norm_with_update", "_batch_norm_with_update_functional"})


def lift_batch_norm(node: fx.Node, source: Value, constants: Constants) -> FoundAffine:
    """Reads a batch norm.

    Args:
        node: The node.
        source: The value that it normalises.
        constants: The constants of its graph.

    Raises:
        UnsupportedModelError: Its parameters are not vectors of the length of the channel axis.
    """
    given = arguments(node)
    data = given["input"]
    assert isinstance(data, fx.Node)  # the caller has its value
    names = ("weight", "bias", "running_mean", "running_var")
    found = [constants.find(given.get(name)) for name in names]
    parameters = tuple(
        dict.fromkeys(name for constant in found if constant is not None for name in constant.parameters)
    )

    def stopped(code: StopCode, reason: str) -> FoundAffine:
        return FoundAffine(Stop(code, reason), data, parameters)

    mode = given.get("training", operator_name(node) in _TRAINS_ALWAYS)
    if mode is not False:
        return stopped(
            StopCode.TRAINING_MODE, "it is in training mode: it normalises with the statistics of each batch"
        )
    if given.get("running_mean") is None or given.get("running_var") is None:
        return stopped(StopCode.TRAINING_MODE, "it has no running statistics, so it uses those of each batch")
    for name, constant in zip(names, found, strict=True):
        if given.get(name) is not None and constant is None:
            return stopped(
                StopCode.PARAMETERS_NOT_CONSTANT, f"its {name} is computed, or changed, while the model runs"
            )
    if source.shape is None:
        return stopped(StopCode.UNKNOWN_RANK, f"the rank of its input '{source.name}' is not known")
    if len(source.shape) < 2:
        return stopped(
            StopCode.CHANNEL_AXIS, f"its input '{source.name}' has rank {len(source.shape)}, no channel axis"
        )
    epsilon = given.get("eps", given.get("epsilon"))
    if not isinstance(epsilon, float | int):
        return stopped(StopCode.PARAMETERS_NOT_CONSTANT, "its eps is computed while the model runs")
    kinds = {str(constant.dtype) for constant in found if constant is not None}
    if not _fit(source.dtype, kinds):
        reason = f"torch takes no {source.dtype} input where parameters are {' and '.join(sorted(kinds))}"
        return stopped(StopCode.CHANGES_DTYPE, reason)
    gamma, beta, mean, variance = _vectors(node, found, source)
    defect = batch_norm_defect(gamma, beta, mean, variance, epsilon)
    if defect is not None:
        return stopped(StopCode.PARAMETERS_NOT_FINITE, f"its {defect}")
    affine = Affine.from_batch_norm(gamma, beta, mean, variance, epsilon, rank=len(source.shape))
    return FoundAffine(affine, data, parameters)


def _fit(source: str, parameters: set[str]) -> bool:
    """Whether torch normalises an input: with parameters of its element type, one of two bytes also in float32."""
    return not source or parameters <= {source, *(("float32",) if source in ("float16", "bfloat16") else ())}


def _vectors(node: fx.Node, found: Sequence[Constant | None], source: Value) -> list[Array]:
    """gamma, beta, mean and variance; those that are absent as ones and zeros."""
    assert source.shape is not None  # the caller has looked
    statistics = found[2]
    assert statistics is not None  # likewise
    size = source.shape[1]
    wanted = (size,) if isinstance(size, int) else statistics.shape
    for constant in found:
        if constant is not None and (constant.shape != wanted or len(wanted) != 1):
            message = f"batch norm '{node.name}' has parameters of shape {list(constant.shape)} for {size} channels"
            raise UnsupportedModelError(message)
    absent = (np.ones(wanted), np.zeros(wanted), np.zeros(wanted), np.ones(wanted))
    return [other if constant is None else constant.read() for constant, other in zip(found, absent, strict=True)]
