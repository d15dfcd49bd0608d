"""What a run of a model computes from constants alone: in proportion to its file, or it is not run.

Thirty times Concat(q, q) of one number are four gigabytes, in a file of two kilobytes. An honest model unpacks, casts,
transposes and expands weights that are in its file, and makes masks and grids of a few megabytes.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import helper

from bnfold.errors import UnsupportedModelError
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import ValueTypes, value_types
from bnfold.onnx.proto.inlining import inlined
from bnfold.onnx.proto.names import defined_names, reads_from_outside, subgraphs
from bnfold.text.tables import size

_FREE_NBYTES = 1 << 27  # at a time,
_PER_MODEL = 16
_FREE_TOTAL_NBYTES = 1 << 31  # and one after the other, which takes a second or two
_TOTAL_PER_MODEL = 64
_STRING_NBYTES = 64
_HINT = "`bnfold fold --no-verify` folds it all the same."


def require_small_constants(model: OnnxModel) -> None:
    """Require that what a model computes from constants alone is in proportion to its size, as far as that is known.

    Args:
        model: A checked model, its nodes in order; it is not changed.

    Raises:
        UnsupportedModelError: It is not.
    """
    most, most_total = _FREE_NBYTES + _PER_MODEL * model.nbytes, _FREE_TOTAL_NBYTES + _TOTAL_PER_MODEL * model.nbytes
    try:
        proto = inlined(model.proto)
    except RuntimeError as error:
        message = f"{model.path or 'the model'} has functions that mean something else in the opset of the model"
        raise UnsupportedModelError(f"{message}, so it is not run", hint=_HINT) from error
    for graph, kept in _parts(proto.graph, frozenset(), [], []):
        whole = helper.make_model(graph, ir_version=proto.ir_version, opset_imports=proto.opset_import)
        total, peak = _nbytes(graph, kept, value_types(with_inferred_shapes(OnnxModel(whole, model.store)).graph))
        if peak > most or total > most_total:
            raise UnsupportedModelError(
                f"{model.path or 'the model'} computes {size(total)} from constants alone, out of all "
                f"proportion to its {size(model.nbytes)}, so it is not run",
                hint=_HINT,
            )


def _parts(
    graph: onnx.GraphProto,
    around: frozenset[str],
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
) -> Iterator[tuple[onnx.GraphProto, set[str]]]:
    """For a graph and each one in it: what follows from constants alone, if anything does, and what of it others read.

    Args:
        graph: The graph.
        around: The constants of the graphs around it.
        nodes: What computes these.
        tensors: What they are computed from.
    """
    sparse = [tensor.values.name for tensor in graph.sparse_initializer]
    constant = {*around.difference(defined_names(graph)), *(item.name for item in graph.initializer), *sparse, ""}
    found, kept = [*nodes], {value.name for value in graph.output}
    for node in graph.node:
        reads = {*node.input, *(name for _, inner in subgraphs(node) for name in reads_from_outside(inner))}
        if reads <= constant:
            found.append(node)
            constant.update(node.output)
        else:
            kept |= reads
    held = [*tensors, *graph.initializer]
    if sparse or any(map(_is_computed, found[len(nodes) :])):
        needed = {name for node in found for name in node.input}
        part = helper.make_graph(found, "constants", [], [], [item for item in held if item.name in needed])
        part.sparse_initializer.extend(graph.sparse_initializer)
        yield part, kept.union(sparse)
    for node in graph.node:
        for _, inner in subgraphs(node):
            yield from _parts(inner, frozenset(constant), found, held)


def _nbytes(graph: onnx.GraphProto, kept: set[str], types: ValueTypes) -> tuple[int, int]:
    """The bytes of all that is computed, and of what of it is there at a time, where what is kept stays to the end."""
    last_use = {name: place for place, node in enumerate(graph.node) for name in node.input if name not in kept}
    string_nbytes = _STRING_NBYTES + max(
        (len(text) for item in graph.initializer for text in item.string_data), default=0
    )
    alive = {item.values.name: _size(item.values.name, types, string_nbytes) for item in graph.sparse_initializer}
    total = peak = now = sum(alive.values())  # a runtime makes them dense
    for place, node in enumerate(graph.node):
        made = {name: _size(name, types, string_nbytes) for name in node.output if name and _is_computed(node)}
        held = sum(alive.get(name, 0) for name in node.input)
        made |= {name: held for name in made if name not in types}  # a sequence of what it is made from
        alive |= made
        total, now = total + sum(made.values()), now + sum(made.values())
        peak = max(peak, now)
        now -= sum(alive.pop(name, 0) for name in {*node.input} if last_use.get(name) == place)
    return total, peak


def _is_computed(node: onnx.NodeProto) -> bool:
    """Whether what a node gives is not in the file as it is."""
    return node.op_type != "Constant" or any(given.name == "sparse_value" for given in node.attribute)


def _size(name: str, types: ValueTypes, string_nbytes: int) -> int:
    """The bytes of a value; 0 where they are not known."""
    shape, dtype = types.get(name, (None, ""))
    sizes = [size for size in shape or () if isinstance(size, int)]
    if shape is None or len(sizes) < len(shape):
        return 0
    return math.prod(sizes) * (np.dtype(dtype).itemsize if dtype else string_nbytes)
