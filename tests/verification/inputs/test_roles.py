"""Inputs that say sizes, positions or counts get values with which every model runs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_fold import parse

from bnfold.errors import VerificationError
from bnfold.verification.inputs.feeds import FeedRequest, make_feeds
from bnfold.verification.inputs.roles import Role, roles
from bnfold.verification.inputs.sampling import declared_inputs
from bnfold.verification.runtime.sessions import FailureKind, RuntimeFailure

USES = {
    "Reshape": ("int64[k] s", "z = Reshape (n, s)", {"s": Role.REST}),
    "Reshape behind a Cast": ("int32[k] s", "t = Cast <to = 7> (s) z = Reshape (n, t)", {"s": Role.REST}),
    "part of a target": ("int64[1] s", "t = Concat <axis = 0> (s, minus) z = Reshape (n, t)", {"s": Role.ONES}),
    "Expand": ("int64[k] s", "z = Expand (n, s)", {"s": Role.ONES}),
    "Tile": ("int64[k] s", "z = Tile (n, s)", {"s": Role.ONES}),
    "ConstantOfShape": ("int64[k] s", "b = ConstantOfShape (s) z = Add (n, b)", {"s": Role.ONES}),
    "Slice": (
        "int64[k] s, int32[k] e, int64[k] a",
        "f = Cast <to = 7> (e) z = Slice (n, s, f, a)",
        {"s": Role.ZEROS, "e": Role.END, "a": Role.AXES},
    ),
    "Gather": ("int64[k] s", "z = Gather <axis = 1> (n, s)", {}),
    "TopK": ("int64[1] s", "z, i = TopK (n, s)", {"s": Role.ONES}),
    "Pad": ("int64[8] s", "z = Pad (n, s)", {"s": Role.ZEROS}),
    "Resize": ("float[4] s", "z = Resize (n, , s)", {"s": Role.ONES}),
    "Range": (
        "int64 s",
        "r = Range (zero, three, s) f = Cast <to = 1> (r) o = ReduceMax <keepdims = 0> (f) z = Add (n, o)",
        {"s": Role.ONES},
    ),
    "a divisor": ("int64[1] s", "i = Cast <to = 7> (n) j = Div (i, s) z = Cast <to = 1> (j)", {"s": Role.ONES}),
}
CONSTANTS = {"minus": np.array([-1]), "zero": np.array(0), "three": np.array(3)}


def model_of(inputs: str, body: str) -> onnx.ModelProto:
    read = {name: array for name, array in CONSTANTS.items() if name in body}
    model = parse(f"agraph (float[N,3,8,8] x, {inputs}) => (float[a] y) {{ n = Relu (x) {body} y = Abs (z) }}", **read)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def feeds_of(model: onnx.ModelProto, **ranges: tuple[float, float]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(feed: dict[str, np.ndarray]) -> None:
        try:
            session.run(None, feed)
        except Exception as error:
            raise RuntimeFailure(FailureKind.REJECTED, str(error)) from error

    feeds, _ = make_feeds(declared_inputs(model), FeedRequest.of(None, 1, 0, None, ranges), run)
    return feeds[0]


@pytest.mark.parametrize("use", USES)
def test_a_model_runs_with_what_its_inputs_stand_for(use: str) -> None:
    inputs, body, expected = USES[use]
    model = model_of(inputs, body)
    assert roles(model.graph) == expected
    assert {*feeds_of(model)} == {given.name for given in model.graph.input}


def test_a_range_that_the_caller_gives_comes_first() -> None:
    model = model_of(*USES["Tile"][:2])
    assert (feeds_of(model, s=(2, 2))["s"] == 2).all()
    with pytest.raises(VerificationError):
        feeds_of(model_of(*USES["Reshape"][:2]), s=(5, 7))


def test_an_image_that_is_divided_by_is_no_size() -> None:
    model = model_of("float[N,3,8,8] s", "p = Sigmoid (s) z = Div (n, s)")
    assert {item.role for item in declared_inputs(model)} == {Role.VALUES}
