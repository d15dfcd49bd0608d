"""Mending what runtimes tolerate: the model as the standard would have it, where nothing but its form is wrong."""

import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.shapes.inference import with_inferred_shapes
from bnfold.onnx.lift.types import Shape, declare, shape_in, shape_of, value_types
from bnfold.onnx.proto.names import nested
from bnfold.onnx.proto.normalise import normalise


def repair(model: OnnxModel) -> bool:
    """Writes a model as the standard asks for, in place: sorted, with imports, and with true sizes declared.

    Args:
        model: A checked model.

    Returns:
        Whether anything was wrong.
    """
    before = model.proto.SerializeToString()
    normalise(model.proto)
    inferred = with_inferred_shapes(model).graph
    for graph, known in zip(nested(model.proto.graph), nested(inferred), strict=True):
        types = value_types(known)
        proved = {value.name: value.type for value in (*known.value_info, *known.output)}
        for value in graph.output:
            if not value.HasField("type") and value.name in proved:
                value.type.CopyFrom(proved[value.name])
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
        for value in (*graph.output, *graph.value_info):
            if value.type.HasField("tensor_type"):
                _declare_truth(value, shape_in(types, value.name))
    return bool(model.proto.SerializeToString() != before)


def _declare_truth(value: onnx.ValueInfoProto, proved: Shape | None) -> None:
    """Declares what is proved of a value where that contradicts what is declared, or where nothing is."""
    declared = shape_of(value.type.tensor_type)
    if proved is None:
        return
    if declared is None or len(declared) != len(proved):
        declare(value, tuple(size if isinstance(size, int) else None for size in proved))
        return
    pairs = [*zip(declared, proved, strict=True)]
    if any(isinstance(size, int) and size != known for size, known in pairs):
        declare(value, tuple(known if isinstance(known, int) else _symbol(size) for size, known in pairs))


def _symbol(size: int | str | None) -> str | None:
    return size if isinstance(size, str) else None
