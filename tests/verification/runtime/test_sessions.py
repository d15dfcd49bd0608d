"""Values that are given to onnxruntime beside a model."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.verification.runtime.devices import cpu_device
from bnfold.verification.runtime.sessions import Session

TYPES = (
    *(np.float16, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.bool_, ml_dtypes.bfloat16),
    *(ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_a_value_of_any_type_is_what_it_would_be_in_the_model(dtype: type, shape: tuple[int, ...]) -> None:
    """NumPy has no type for some of them, and onnxruntime packs two numbers of four bits into a byte."""
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    declared = onnx.TensorProto(name="w", dims=shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
    declared.data_location = onnx.TensorProto.EXTERNAL
    declared.external_data.add(key="location", value="given")
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    node = helper.make_node("Cast", ["w"], ["y"], to=onnx.TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", [], [result], [declared])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = Session(model.SerializeToString(), cpu_device(), {"w": value})
    np.testing.assert_array_equal(session.run({})["y"], value.astype(np.float32))
