"""Models of onnx_ir, as protobuf messages."""

import onnx
import onnx_ir as ir

from bnfold.errors import ModelLoadError


def model_to_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialises a model with the values of all its tensors, those in external files too.

    Args:
        model: The model; it is not changed.

    Raises:
        ModelLoadError: An initializer has no value.
    """
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            value = model.graph.initializers[tensor.name].const_value
            if value is None:
                message = f"the initializer '{tensor.name}' of the onnx_ir model has no value"
                raise ModelLoadError(message)
            tensor.raw_data = value.tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    return proto
