"""What runtimes recognise as a whole, so that no spelled-out affine may be taken out of it.

A normalisation (of layers, groups, instances, root mean squares, vectors) multiplies what it normalises by the
reciprocal root of a mean or sum of that itself, and its scale and shift come behind:

    gamma · d · r + beta        d = x − mean(x)        r = 1 / sqrt(mean(d · d) + epsilon)

An activation may end in one number behind a product of a value with a function of it: the half of a Gelu,
0.5 · x · (1 + erf(x / √2)), and the sixth of a hard swish, x · clip(x + 3, 0, 6) / 6. A product such as x · sigmoid(x),
or that of a gate, ends in nothing, and an affine behind it is a layer of its own.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.graph import AffineNode, Kind, MapNode, Node, Op, OpNode, Value, is_identity
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode

_REARRANGES = frozenset({Op.IDENTITY, Op.RESHAPE, Op.TRANSPOSE})
_ENDS_WITHOUT_AFFINE = frozenset({"InstanceNormalization", "GroupNormalization"})
"""Operators whose own scale and shift an exporter leaves neutral, to write those of the layer behind them."""

_ROOTS = frozenset("sqrt rsqrt pow std std_mean reducel2 norm linalg_vector_norm".split())
_MEANS = frozenset("var std var_mean std_mean reducel2 reducesumsquare norm linalg_vector_norm".split())
_FACTORS = {1 / 2: frozenset("erf tanh".split()), 1 / 6: frozenset("clip clamp hardtanh relu6 min minimum".split())}
"""What an activation ends in, and the functions one of which is in it."""

_LONGEST_PATTERN = 16
_CLOSE = 4e-3
"""The relative distance of a sixth that is stored in the shortest type, bfloat16."""


def spelled_out_stop(
    tensors: Tensors, affines: Mapping[AffineNode, Affine], node: AffineNode, *, forward: bool
) -> Stop | None:
    """Why a spelled-out affine stays where it is; None for a BN, and where nothing is broken if it moves.

    Args:
        tensors: The present state of the graph.
        affines: The affines that are still there and may move.
        node: The affine.
        forward: Which way it would go.
    """
    if node.kind is Kind.BATCH_NORM:
        return None
    affine = affines[node]
    if affine.varying_axes > 1:
        return Stop(StopCode.VARIES, "it varies along more than the channels")
    readers = [*_readers(tensors, node.outputs[0])]
    if affine.varying_axes == 0:
        # A lone number may scale an attention, or be a piece of an activation: only its neighbours take it.
        producer = tensors.origin(node.inputs[0]).producer
        right_before = isinstance(producer, MapNode) or producer in affines
        right_behind = all(isinstance(reader, MapNode) or _is_batch_norm(reader, affines) for reader in readers)
        if not (right_behind if forward else right_before):
            return Stop(StopCode.NO_RULE, "it is one number, which moves only into what is right beside it")
    normalisation = normalisation_before(tensors, node)
    if normalisation is not None:
        return Stop(StopCode.NO_RULE, f"it is the end of a normalisation, '{normalisation.name}'")
    if not forward:
        return None
    if ends_activation(tensors, node, affine):
        return Stop(StopCode.NO_RULE, "it is the end of an activation that runtimes recognise as a whole")
    if any(isinstance(reader, OpNode) and is_normalisation(tensors, reader) for reader in readers):
        return Stop(StopCode.NO_RULE, "it is part of a normalisation")
    return None


def _readers(tensors: Tensors, value: Value) -> Iterator[Node]:
    """What reads a value, behind all that pass it on as it is."""
    waiting = [*tensors.uses(tensors.root(value))]
    while waiting:
        reader = waiting.pop()
        if is_identity(reader):
            waiting += tensors.uses(tensors.root(reader.outputs[0]))
        else:
            yield reader


def _is_batch_norm(node: Node, affines: Mapping[AffineNode, Affine]) -> bool:
    """Whether a node is a BN that may move."""
    return isinstance(node, AffineNode) and node.kind is Kind.BATCH_NORM and node in affines


def normalisation_before(tensors: Tensors, node: AffineNode) -> OpNode | None:
    """The node that a normalisation ends in, if a spelled-out affine is its scale or shift."""
    producer = tensors.root(node.inputs[0]).producer
    while (isinstance(producer, AffineNode) and producer.kind is Kind.AFFINE) or (
        isinstance(producer, OpNode) and producer.op in _REARRANGES
    ):
        producer = tensors.root(producer.inputs[0]).producer
    return producer if isinstance(producer, OpNode) and is_normalisation(tensors, producer) else None


def is_normalisation(tensors: Tensors, node: OpNode) -> bool:
    """Whether a node is what a normalisation ends in, but for its affine."""
    if node.op_type in _ENDS_WITHOUT_AFFINE:
        return True
    if node.op not in (Op.MUL, Op.DIV) or len(node.inputs) != 2:
        return False
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op is Op.MUL:
        pairs.append((node.inputs[1], node.inputs[0]))
    return any(_is_root_of_mean(tensors, divisor, _data(tensors, data)) for data, divisor in pairs)


def ends_activation(tensors: Tensors, node: AffineNode, affine: Affine) -> bool:
    """Whether an affine is the number that an activation ends in."""
    product = tensors.origin(node.inputs[0]).producer
    if not node.may_end_activation or affine.shift.any() or not isinstance(product, OpNode):
        return False
    functions = {name for factor, names in _FACTORS.items() if _is_close(affine, factor) for name in names}
    return any(name in functions for name in _operators_before(tensors, product))


def is_last_factor(node: AffineNode) -> bool:
    """Whether an affine is a number that activations end in; a plan then depends on the number itself."""
    affine = node.affine
    return affine is not None and node.may_end_activation and any(_is_close(affine, factor) for factor in _FACTORS)


def _is_close(affine: Affine, factor: float) -> bool:
    return bool((np.abs(affine.scale / factor - 1) < _CLOSE).all())


def _operators_before(tensors: Tensors, product: OpNode) -> Iterator[str]:
    """The operators that a product's factors are made with, nearest first, without maps and what is before them."""
    waiting: list[Node] = [product]
    for _ in range(_LONGEST_PATTERN):
        if not waiting:
            return
        node = waiting.pop(0)
        yield node.op_type.lower()
        producers = (tensors.root(value).producer for value in node.inputs)
        waiting += [producer for producer in producers if isinstance(producer, OpNode | AffineNode)]


def _data(tensors: Tensors, value: Value) -> set[Value]:
    """What may be under the root of a value's normalisation: itself, and what a mean was subtracted from."""
    found = {tensors.root(value)}
    for _ in range(_LONGEST_PATTERN):
        root = tensors.root(value)
        found.add(root)
        node = root.producer
        if isinstance(node, OpNode) and node.op is Op.ADD:
            return found | {tensors.root(operand) for operand in node.inputs}
        if not (isinstance(node, AffineNode) or (isinstance(node, OpNode) and _passes(node))):
            break
        value = node.inputs[0]
    return found


def _is_root_of_mean(tensors: Tensors, divisor: Value, data: set[Value]) -> bool:
    """Whether a value is, or is the reciprocal of, the root of a mean or sum over one of `data`."""
    has_root = has_mean = False
    value = tensors.root(divisor)
    for _ in range(_LONGEST_PATTERN):
        if value in data and has_root and has_mean:
            return True
        node = value.producer
        if not isinstance(node, OpNode | AffineNode) or not node.inputs:
            return False
        sources = {tensors.root(source) for source in node.inputs}
        if len(sources) > 1:
            return False
        has_root |= node.op_type.lower() in _ROOTS
        has_mean |= node.op_type.lower() in _MEANS or (isinstance(node, OpNode) and node.op in (Op.AVERAGE, Op.SUM))
        [value] = sources
    return False


def _passes(node: OpNode) -> bool:
    """Whether a node gives its one input on, perhaps in another shape or element type."""
    return node.op in _REARRANGES or node.op_type in ("Cast", "to", "_to_copy")
