"""Shape inference, helped where it gives up.

onnx's inference follows integers through Shape, Gather, Concat and a few others. Exporters compute shapes with more
than that (Mod, Where, …), and behind one Reshape whose shape is not followed every rank is unknown. Where such an input
is a constant expression after all, its value is put in its place, and inference runs again.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.onnx.file.load import OnnxModel, skeleton_for_inference
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.lift.types import value_types
from bnfold.onnx.proto.names import is_standard, opset_version

_SHAPE_INPUTS = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceMax": (1,),
    "ReduceSum": (1,),
}
"""The inputs that decide the shape of the output."""

_MOST_ROUNDS = 4
_MOST_ELEMENTS = 64


def with_inferred_shapes(model: OnnxModel) -> onnx.ModelProto:
    """Infers the shapes of a model.

    Args:
        model: A checked model; it is not changed.

    Returns:
        Its skeleton with the same nodes, and what is known about its values declared.
    """
    skeleton = skeleton_for_inference(model)
    result = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    skeleton.ir_version = max(skeleton.ir_version, 4)  # from then on an initializer need not be an input
    for _ in range(_MOST_ROUNDS):
        if not _spell_out(model, skeleton, result):
            break
        result = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    return result


def _spell_out(model: OnnxModel, skeleton: onnx.ModelProto, result: onnx.ModelProto) -> bool:
    """Writes the values of constant shapes into a skeleton, where the shape of the result is not known; says if any."""
    types = value_types(result.graph)
    constants = Constants(model, model.proto.graph, opset_version(model.proto.opset_import), types)
    found = False
    for node in skeleton.graph.node:
        if not is_standard(node, *_SHAPE_INPUTS):
            continue
        shape = types.get(node.output[0], (None, ""))[0]
        if shape is not None and all(isinstance(size, int) for size in shape):
            continue
        for position in _SHAPE_INPUTS[node.op_type]:
            name = node.input[position] if len(node.input) > position else ""
            if not name or constants.producer(name) is None or not constants.is_constant(name):
                continue
            value = constants.find(name)
            if value is None or value.overridable or np.prod(value.shape) > _MOST_ELEMENTS:
                continue
            given = f"{name}#{len(skeleton.graph.initializer)}"
            skeleton.graph.initializer.append(numpy_helper.from_array(value.read(), given))
            node.input[position] = given
            found = True
    return found
