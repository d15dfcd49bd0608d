"""Whether tensors and nodes of two models are the same, wherever their values are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx

from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.proto.constants import spell_out
from bnfold.onnx.proto.names import is_standard
from bnfold.onnx.proto.walk import model_tensors


def same_tensor(original: OnnxModel, first: onnx.TensorProto, folded: OnnxModel, second: onnx.TensorProto) -> bool:
    """Whether two tensors have the same type, shape and values, bit by bit: NaN equals itself, and 0 is not −0."""
    if first.data_type != second.data_type or list(first.dims) != list(second.dims):
        return False
    if first.data_type == onnx.TensorProto.STRING:
        return list(first.string_data) == list(second.string_data)
    if original.store is folded.store and first.external_data and first == second:
        return True  # two references to the same bytes
    return bool(np.array_equal(_bytes(original.array(first)), _bytes(folded.array(second))))


def attributes(model: OnnxModel, node: onnx.NodeProto) -> Mapping[str, bytes]:
    """The attributes of a node in a form that is equal where they are, tensors and nested graphs included."""
    holder = onnx.ModelProto()
    copy = holder.graph.node.add()
    copy.CopyFrom(node)
    if is_standard(copy, "Constant"):
        spell_out(copy)
    for tensor in model_tensors(holder):
        if tensor.data_type != onnx.TensorProto.STRING:
            digest = hashlib.sha256(_bytes(model.array(tensor)).data).digest()
            tensor.CopyFrom(onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=digest))
    for attribute in copy.attribute:
        attribute.ClearField("doc_string")
    return {attribute.name: attribute.SerializeToString(deterministic=True) for attribute in copy.attribute}


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
