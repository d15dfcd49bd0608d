"""The exact gate for ONNX: small numbers for parameters, the same plan, and the same bits in every region."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from itertools import tee

import onnx

from bnfold.errors import BnfoldError, UnsupportedModelError
from bnfold.onnx.constant_costs import require_small_constants
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.fold import FoldedOnnx, FoldOptions, fold_checked
from bnfold.onnx.lift.functions import inline_weight_arguments
from bnfold.onnx.lift.types import ValueTypes
from bnfold.onnx.proto.normalise import normalise
from bnfold.onnx.proto.walk import all_nodes
from bnfold.report.records import Exact, Unproved, Verdict
from bnfold.text.progress import each
from bnfold.verification.exact.judging import summed_up
from bnfold.verification.exact.numbers import Numbers
from bnfold.verification.exact.onnx.regions import Region, regions_of
from bnfold.verification.exact.onnx.running import Runner
from bnfold.verification.exact.onnx.sizes import is_open, sized_types
from bnfold.verification.exact.onnx.stand_in import compute_exactly, stand_in
from bnfold.verification.exact.plans import difference
from bnfold.verification.onnx.outputs.deciding import made_of_shapes
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure

_ATTEMPTS = 4
"""How many sets of small numbers are tried until one gives the same plan."""


def check_onnx(model: OnnxModel, folded: FoldedOnnx, options: FoldOptions) -> Exact:
    """Whether a fold is right for all parameters with the same signs, zeros and equalities.

    Args:
        model: A valid model, the original; it is not changed.
        folded: Its fold.
        options: How it was folded.
    """
    if not folded.changed:
        return Exact(Verdict.PASS)
    started = time.perf_counter()
    ordered = _in_order(inline_weight_arguments(model))
    try:
        require_small_constants(ordered)
    except UnsupportedModelError as error:
        return Exact(Verdict.INCONCLUSIVE, str(error))
    found = _check(ordered, folded, replace(options, repair=False))
    return replace(found, duration_s=time.perf_counter() - started)


def _in_order(model: OnnxModel) -> OnnxModel:
    """A copy without what only a fold with `repair` would mend: regions are cut in the order of the nodes."""
    ordered = model.copy()
    normalise(ordered.proto)
    return ordered


def _check(model: OnnxModel, real: FoldedOnnx, options: FoldOptions) -> Exact:
    other = ""
    for seed in range(_ATTEMPTS):
        try:
            original = stand_in(model, Numbers(seed))
            folded = fold_checked(original, options)
        except BnfoldError as error:
            return Exact(Verdict.INCONCLUSIVE, f"the model cannot be folded with small numbers: {error}")
        other = difference(real.plan, folded.plan)
        if not other and _structure(real.model) != _structure(folded.model):
            other = "the graphs differ"
        if not other:
            compute_exactly(original)
            compute_exactly(folded.model)
            return _compare(original, folded.model)
    return Exact(Verdict.INCONCLUSIVE, f"small numbers do not give the same plan: {other}")


def _structure(model: OnnxModel) -> list[tuple[object, ...]]:
    """The nodes of a model that compute with data."""
    nodes = []
    for graph in (model.proto.graph, *model.proto.functions):
        known = made_of_shapes(graph)
        for node in all_nodes(graph.node):
            if not known.issuperset(filter(None, node.output)):
                reads = ["" if name in known else name for name in node.input]
                numbers = [tuple(given.ints) for given in node.attribute if given.ints]
                nodes.append((node.op_type, *node.output, *reads, *numbers))
    return sorted(nodes, key=str)


def _compare(original: OnnxModel, folded: OnnxModel) -> Exact:
    wrong = _other_interface(original.proto.graph, folded.proto.graph)
    if wrong:
        return Exact(Verdict.FAIL, wrong)
    cut = regions_of(original, folded)
    for value in original.proto.graph.output:
        if cut.pairing.partners.get(value.name) != value.name:
            return Exact(Verdict.FAIL, f"the output {value.name!r} is computed by nothing")
    wanted = 2 if is_open(cut.original) else 1
    (sizes,) = tee(sized_types(cut.original, cut.types), 1)  # a copy of it works out what no other has asked for yet
    compared = (_compare_region(region, cut.original, copy(sizes), wanted) for region in each(cut.regions, "region"))
    return summed_up([found for found in compared if found is not None], len(cut.regions), wanted)


def _compare_region(region: Region, original: OnnxModel, sizes: Iterator[ValueTypes], wanted: int) -> Unproved | None:
    """What keeps a region from being proved; None if it is equal at as many sizes as are wanted."""
    if region.reason:
        return Unproved(region.nodes, "", region.reason, wrong=region.broken)
    equal, trouble = 0, "was not run: no sizes are known for which the model is valid"
    runner: Runner | None = None
    for seed, types in enumerate(sizes):
        try:
            runner = runner or Runner(region, original, types)
            verdict, value, clause = runner.compare(types, seed)
        except LookupError as error:
            trouble = f"was not run: the shape or type of {error} is not known"
            continue
        except RuntimeFailure as failure:
            trouble = f"was not run: {failure}"
            short_of_memory = failure.kind is FailureKind.DEVICE
            if runner is not None and not short_of_memory and runner.original_runs(types, seed):
                return Unproved(region.nodes, "", f"does not run where the original does: {failure}", wrong=True)
            continue
        if verdict is not Verdict.PASS:
            return Unproved(region.nodes, value, clause, wrong=verdict is Verdict.FAIL)
        equal += 1
        if equal == wanted:
            return None
    # Some models are valid at one size of what they leave open.
    return None if equal else Unproved(region.nodes, "", trouble, wrong=False)


def _other_interface(original: onnx.GraphProto, folded: onnx.GraphProto) -> str:
    for kind in ("input", "output"):
        names, others = (
            [value.name for value in getattr(graph, kind) if value.name not in _held(graph)]
            for graph in (original, folded)
        )
        if names != others:
            return f"the folded model has the {kind}s {', '.join(others)} instead of {', '.join(names)}"
    return ""


def _held(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}
