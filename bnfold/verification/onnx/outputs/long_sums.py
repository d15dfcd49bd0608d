"""Averages over many elements and other sums whose rounding no moved parameter tells.

How a partial sum is rounded depends on where it stands, and terms that are moved by a unit in their own last place
leave it there: copies of the original with moved parameters are carried off exactly as the original is, while a fold,
whose terms are other multiples, is carried off anew. So in the copies, the result of a sum of n terms is multiplied by

    1 ± u · max(0, drift(n) + blank_drift(e) − 4)

with a sign for each draw, e of the terms being like their neighbour (see `judging.drift`). What the limit of the noise
ratio allows anyway is not added; the sums of products in convolutions are short pieces, and drift by less than that.
The weights of a cubic Resize carry every copy off alike, too; see `sites.cubic`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import dtype_in, value_types
from bnfold.onnx.proto.names import opset_version
from bnfold.verification.judging.metrics import ROUNDOFF
from bnfold.verification.onnx.sites.averages import carried, may_be_carried
from bnfold.verification.onnx.sites.cubic import CARRIED, is_cubic
from bnfold.verification.onnx.sites.emitter import FLOAT, Emitter

_MUL_BROADCASTS_SINCE = 7


def open_long_sums(model: OnnxModel) -> tuple[str, ...]:
    """Lets the long sums of the main graph move, in place; the names of the inputs that take the signs."""
    graph = model.proto.graph
    nodes = [*graph.node]
    if opset_version(model.proto.opset_import) < _MUL_BROADCASTS_SINCE or not any(map(_moves, nodes)):
        return ()
    types = value_types(with_inferred_shapes(model).graph)
    emitter = Emitter([model.proto])
    signs: list[str] = []
    moving: list[onnx.NodeProto] = []
    for node in nodes:
        result = node.output[0] if node.output else ""
        if not _moves(node) or dtype_in(types, result) != "float32":
            moving.append(node)
            continue
        node.output[0] = emitter.fresh(result)
        signs.append(emitter.fresh("sign"))
        done = len(emitter.nodes)
        emitter.node("Mul", [node.output[0], _factor(emitter, node, signs[-1])])
        emitter.nodes[-1].output[0] = result
        moving += [node, *emitter.nodes[done:]]
    del graph.node[:]
    graph.node.extend(moving)
    graph.initializer.extend(emitter.tensors)
    graph.input.extend(helper.make_tensor_value_info(name, FLOAT, []) for name in signs)
    return tuple(signs)


def _moves(node: onnx.NodeProto) -> bool:
    return may_be_carried(node) or is_cubic(node)


def _factor(emitter: Emitter, node: onnx.NodeProto, sign: str) -> str:
    """What the result is multiplied by, a float32 value."""
    if is_cubic(node):
        rounded = emitter.scaled(sign, CARRIED * ROUNDOFF["float32"])
    else:
        moved = emitter.node("Mul", [carried(emitter, node, node.input[0], node.output[0]), sign])
        rounded = emitter.scaled(moved, ROUNDOFF["float32"])
    return emitter.node("Add", [rounded, emitter.constant(np.array(1, np.float32))])
