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


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0)])
def test_an_output_of_a_type_that_numpy_lacks(dtype: type, shape: tuple[int, ...]) -> None:
    expected = 7 - np.arange(np.prod(shape, dtype=int)).reshape(shape)
    expected = (expected % 16 if dtype is ml_dtypes.uint4 else expected).astype(dtype)
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = {"x": onnx.TensorProto.FLOAT, "y": data_type}
    given, result = (helper.make_tensor_value_info(name, kind, shape) for name, kind in names.items())
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=data_type)], "g", [given], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = Session(model.SerializeToString(), cpu_device()).run({"x": expected.astype(np.float32)})["y"]
    assert isinstance(found, np.ndarray)
    assert found.shape == shape
    as_bytes = np.dtype(dtype).name.startswith("float8")
    np.testing.assert_array_equal(found, expected.view(np.uint8) if as_bytes else expected.astype(np.float32))
