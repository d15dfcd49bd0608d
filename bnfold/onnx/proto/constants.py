"""The short forms in which a Constant may give its value."""

import onnx
from onnx import helper

_SHORT_FORMS = ("value_float", "value_floats", "value_int", "value_ints")


def spell_out(node: onnx.NodeProto) -> None:
    """Lets a Constant that gives numbers give the tensor that they stand for, as `value`."""
    for given in node.attribute:
        if given.name in _SHORT_FORMS:
            data_type = onnx.TensorProto.FLOAT if "float" in given.name else onnx.TensorProto.INT64
            value = helper.get_attribute_value(given)
            dims = (len(value),) if given.name.endswith("s") else ()
            tensor = helper.make_tensor("", data_type, dims, value if dims else [value])
            given.CopyFrom(helper.make_attribute("value", tensor))
