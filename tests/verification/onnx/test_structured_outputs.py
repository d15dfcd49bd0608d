"""Outputs that are sequences, maps and optionals: rounding is no difference, a fault in one element is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fold import batch_norm, parse, random

import bnfold

CONSTANTS = {
    name: array.astype(np.float32)
    for name, array in {"w": random(4, 3, 3, 3), "u": random(4, 4, 3, 3), **batch_norm(4)}.items()
}
SEQUENCE = """
agraph (float[1,3,9,9] x) => (seq(float) features)
{
  c = Conv (x, w)
  n = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
  d = Conv (n, u)
  [bn2] m = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
  features = SequenceConstruct (n, m)
}
"""
OPTIONAL = """
agraph (float[1,3,9,9] x) => (optional(float[1,4,7,7]) y)
{
  c = Conv (x, w)
  n = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
  y = Optional (n)
}
"""


def classifier() -> onnx.ModelProto:
    """A Gemm with its BN, and the probabilities of each row as a map from classes to numbers."""
    text = """
    <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 2]>
    agraph (float[N,6] x) => (int64[N] label)
    {
      g = Gemm (x, w)
      n = BatchNormalization (g, bn_g, bn_b, bn_m, bn_v)
      s = Softmax <axis = 1> (n)
      label = ArgMax <axis = 1, keepdims = 0> (s)
      p = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (s)
    }
    """
    constants = {"w": random(6, 3), **batch_norm(3)}
    model = parse(text, **{name: array.astype(np.float32) for name, array in constants.items()})
    row = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("p", helper.make_sequence_type_proto(row)))
    return model


def spoiled(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one number of a weight off by a thousandth."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (parse(SEQUENCE, **CONSTANTS), ["features (length)", "features[0]", "features[1]"]),
        (parse(OPTIONAL, **CONSTANTS), ["y"]),
        (classifier(), ["label", "p (keys)", "p"]),
    ],
    ids=["sequence", "optional", "maps"],
)
@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_a_fold_passes(model: onnx.ModelProto, names: list[str], rtol: float | None) -> None:
    folded = bnfold.fold(model)
    assert folded.plan.batch_norms_left == 0
    report = bnfold.verify(model, folded.model, device="cpu", rtol=rtol, atol=rtol)
    assert (report.verdict, report.reason) == ("pass", "")
    assert [output.name for output in report.outputs] == names


def test_a_fault_in_one_element_is_found() -> None:
    model = parse(SEQUENCE, **CONSTANTS)
    folded = bnfold.fold(model).model
    report = bnfold.verify(model, spoiled(folded, "u_folded"), device="cpu")
    assert report.verdict == "fail"
    assert [output.name for output in report.outputs if output.verdict == "fail"] == ["features[1]"]


def test_a_fault_in_maps_is_found() -> None:
    model = classifier()
    report = bnfold.verify(model, spoiled(bnfold.fold(model).model, "w_folded"), device="cpu", rtol=1e-5, atol=1e-6)
    assert report.reason == "output 'p' is outside of rtol 1e-05 and atol 1e-06"
