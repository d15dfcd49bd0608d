"""What callers say about inputs, and what is made up where they say nothing."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from bnfold.errors import ModelLoadError, UnsupportedModelError, UsageError, VerificationError
from bnfold.report import Verdict
from bnfold.verification import InputSpec, load_inputs, parse_input, parse_value_range, verify


def model(text, **arrays):
    parsed = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    parsed.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    return parsed


def check(first, **options):
    return verify(first, first, device="cpu", **options)


def shapes_of(report):
    return {item.name: item.shape for item in report.config.inputs}


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("image:1,3,224,224", "image", (1, 3, 224, 224), None),
        ("1,3,224,224", None, (1, 3, 224, 224), None),
        (":1,3", None, (1, 3), None),
        ("1,3:float16", None, (1, 3), "float16"),
        ("serving:0:1,3", "serving:0", (1, 3), None),
        ("serving:0:1,3:int64", "serving:0", (1, 3), "int64"),
        ("a/b,c:7", "a/b,c", (7,), None),
        ("threshold:", "threshold", (), None),
        ("threshold::float32", "threshold", (), "float32"),
    ],
)
def test_shapes_are_split_from_the_right(text, name, shape, dtype):
    assert parse_input(text) == (name, InputSpec(shape, dtype))


@pytest.mark.parametrize("text", ["x:1,a", "x:1,,2", "x:1,0,2", "x:-1,3", "x:1,3:floaty", "float32", "x:1.5"])
def test_malformed_shapes_are_usage_errors(text):
    with pytest.raises(UsageError) as error:
        parse_input(text)
    assert repr(text) in str(error.value)


def test_value_ranges():
    assert parse_value_range("ids:0:0,30521") == ("ids:0", (0.0, 30521.0))
    assert parse_value_range("x:-1.5,1e2") == ("x", (-1.5, 100.0))


@pytest.mark.parametrize("text", ["x:1", "x:2,1", "x:0,inf", "x:nan,1", "0,1", ":0,1", "x:a,b", "x:1,2,3"])
def test_malformed_value_ranges_are_usage_errors(text):
    with pytest.raises(UsageError):
        parse_value_range(text)


SUM = "g (float[N,C] x, float[N,C] z) => (float[N,C] y) { s = Add(x, z) y = Mul(s, w) }"


def test_data_from_a_file_is_what_both_models_see(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.full((2, 3), 2, np.float32), z=np.full((2, 3), 3, np.float32))
    data = load_inputs(tmp_path / "data.npz")
    report = check(model(SUM, w=[2.0]), inputs=data)
    assert report.config.samples == 1
    assert {item.source for item in report.config.inputs} == {"given"}
    assert shapes_of(report) == {"x": (2, 3), "z": (2, 3)}


def test_a_folder_has_a_sample_in_each_file(tmp_path):
    for name, rows in (("b", 5), ("a", 1), ("c", 2)):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((rows, 3), np.float32))
    (tmp_path / "notes.txt").write_text("no data")
    data = load_inputs(tmp_path)
    assert [sample["x"].shape[0] for sample in data] == [1, 5, 2]
    report = check(model(SUM, w=[2.0]), inputs=data)
    assert report.config.samples == 3
    assert shapes_of(report)["x"] == (1, 3)


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(ModelLoadError, match=r"has no \.npz or \.npy files"):
        load_inputs(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 torn", "pickle", "npy"])
def test_other_files_are_not_read_as_data(tmp_path, content):
    path = tmp_path / "data.npz"
    if content == "pickle":
        np.savez(path, x=np.array([{"a": 1}], dtype=object))
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError) as error:
        load_inputs(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_real_samples_may_differ_in_shape_and_leave_inputs_out():
    samples = [{"x": np.ones((rows, 3), np.float32)} for rows in (1, 2, 5)]
    report = check(model(SUM, w=[2.0]), inputs=samples)
    assert report.verdict is Verdict.PASS
    assert report.config.samples == 3
    assert [(item.name, item.source) for item in report.config.inputs] == [("x", "given"), ("z", "seeded")]


def test_equal_names_of_dimensions_get_equal_sizes():
    assert shapes_of(check(model(SUM, w=[2.0]), shapes={"z": InputSpec((5, 7))})) == {"x": (5, 7), "z": (5, 7)}


def test_unnamed_shapes_go_to_the_inputs_in_order():
    report = check(
        model("g (float[A,B] x, float[C,D] z) => (float[A,D] y) { m = MatMul(x, z) y = Mul(m, w) }", w=[2.0]),
        shapes=[("z", InputSpec((5, 7))), (None, InputSpec((3, 5)))],
    )
    assert shapes_of(report) == {"x": (3, 5), "z": (5, 7)}


@pytest.mark.parametrize(
    ("declared", "body", "found"),
    [
        # an image network of a fixed size behind a Flatten runs at that size only
        ("N,3,H,W", "f = Flatten(x) y = MatMul(f, w)", (1, 3, 64, 64)),
        ("N,C,H,W", "f = Flatten(x) y = MatMul(f, w)", (1, 3, 64, 64)),
        ("N,3,64,64", "f = Flatten(x) y = MatMul(f, w)", (1, 3, 64, 64)),
        ("1,3,64,64", "f = Flatten(x) y = MatMul(f, w)", (1, 3, 64, 64)),
    ],
)
def test_open_sizes_are_those_that_the_original_runs_with(declared, body, found):
    report = check(
        model(f"g (float[{declared}] x) => (float[N,K] y) {{ {body} }}", w=np.ones((3 * 64 * 64, 2))), samples=1
    )
    assert shapes_of(report) == {"x": found}
    assert report.config.inputs[0].dynamic is (declared != "1,3,64,64")


def test_a_batch_axis_is_one():
    assert shapes_of(check(model("g (float[N,4] x) => (float[N,4] y) { y = Mul(x, w) }", w=[2.0])))["x"] == (1, 4)


def test_no_size_that_runs_asks_for_one():
    odd = model("g (float[1,L] x) => (float[1,K] y) { y = MatMul(x, w) }", w=np.ones((77, 2)))
    with pytest.raises(VerificationError) as error:
        check(odd)
    assert "none of the sizes tried for 'x' (1, L)" in str(error.value)
    assert "--input x:1,1" in error.value.hint
    assert check(odd, shapes={"x": InputSpec((1, 77))}).verdict is Verdict.PASS


def test_an_original_that_does_not_run_is_a_verification_error():
    with pytest.raises(VerificationError, match="does not run"):
        check(
            model("g (float[1,L] x) => (float[1,K] y) { y = MatMul(x, w) }", w=np.ones((77, 2))),
            shapes={"x": InputSpec((1, 3))},
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shapes": {"q": InputSpec((1, 2))}}, "'q', which is not an input"),
        ({"shapes": {"x": InputSpec((1, 2, 3))}}, "3 dimensions, but the model takes 2: (N, C)"),
        ({"shapes": {"x": InputSpec((1, 2), "float16")}}, "was given as float16"),
        ({"shapes": [(None, InputSpec((1, 2)))] * 3}, "more shapes than inputs"),
        ({"shapes": [("x", InputSpec((1, 2)))] * 2}, "two shapes"),
        ({"value_ranges": {"q": (0, 1)}}, "'q', which is not an input"),
        ({"inputs": {"q": np.ones(1)}}, "'q', which is not an input"),
        ({"inputs": {"x": np.ones((1, 2))}}, "was given as float64, but the model takes float32"),
        ({"inputs": {"x": np.ones(2, "f")}}, "1 dimensions"),
        ({"inputs": []}, "empty"),
        ({"inputs": {"x": np.ones((1, 2), "f")}, "value_ranges": {"x": (0, 1)}}, "both data"),
        ({"samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"rtol": -1.0}, "rtol is -1"),
        ({"atol": float("nan")}, "atol is nan"),
    ],
)
def test_contradictions_are_usage_errors(options, said):
    with pytest.raises(UsageError) as error:
        verify(*[model(SUM, w=[2.0])] * 2, **{"device": "cpu", **options})
    assert said in str(error.value)


@pytest.mark.parametrize("shapes", [{"x": (1, 2)}, [("x", [1, 2])], {"x": None}])
def test_a_shape_of_another_kind_is_a_usage_error(shapes):
    with pytest.raises(UsageError, match=r"not a bnfold\.InputSpec"):
        check(model(SUM, w=[2.0]), shapes=shapes)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("seq(float[1,2])", "sequence"),
        ("optional(float[1,2])", "optional"),
        ("string[1,2]", "tensor of string"),
        ("string", "tensor of string"),
    ],
)
def test_what_no_values_can_be_made_up_for_is_said(declared, said):
    text = f"g ({declared} x) => ({declared} y) {{ y = Identity (x) }}"
    with pytest.raises(
        UnsupportedModelError, match=f"input 'x' is of a type for which no values can be made up: {said}"
    ):
        check(model(text))


def test_a_fixed_size_cannot_be_changed():
    fixed = model("g (float[1,4] x) => (float[1,4] y) { y = Mul(x, w) }", w=[2.0])
    with pytest.raises(UsageError, match="the model has 4"):
        check(fixed, shapes={"x": InputSpec((1, 5))})


def seen(dtype, ranges=None):
    """What a model is fed, as its output gives it back."""
    text = f"g ({dtype}[1,2000] x) => (float[1,1] lo, float[1,1] hi) {{ f = Cast<to = 1>(x) "
    text += "lo = ReduceMin<axes = [1]>(f) hi = ReduceMax<axes = [1]>(f) }"
    first = model(text)
    second = model(text.replace("ReduceMin", "ReduceMax").replace("lo = ReduceMax", "lo = ReduceMin"))
    report = verify(first, second, device="cpu", samples=1, value_ranges=ranges)
    assert report.verdict is Verdict.PASS
    from bnfold.verification.inputs.sampling import declared_inputs, random_sample

    return random_sample(declared_inputs(first), {"x": (1, 2000)}, ranges or {}, 0, 0)["x"]


def test_made_up_values():
    normal = seen("float")
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 0.1
    assert normal.std() == pytest.approx(1, abs=0.1)
    assert set(seen("int64").ravel()) == {0, 1}
    assert set(seen("uint8", {"x": (3, 5)}).ravel()) == {3, 4, 5}
    assert set(seen("int8", {"x": (-128, -127)}).ravel()) == {-128, -127}
    uniform = seen("float", {"x": (10.0, 20.0)})
    assert (uniform.min(), uniform.max()) == (pytest.approx(10, abs=0.1), pytest.approx(20, abs=0.1))
    assert set(seen("bool").ravel()) == {False, True}


@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [("uint8", (0, 256)), ("float16", (0, 1e5)), ("float", (1, 0)), ("int64", (0, 0.5)), ("bool", (0, 1))],
)
def test_ranges_that_do_not_fit_the_element_type(dtype, value_range):
    with pytest.raises(UsageError):
        seen(dtype, {"x": value_range})


def test_bfloat16_goes_in_and_out():
    text = "g (bfloat16[1,8] x) => (bfloat16[1,8] y) { f = Cast<to = 1>(x) m = Mul(f, w) y = Cast<to = 16>(m) }"
    report = check(model(text, w=[3.0] * 8))
    assert report.outputs[0].dtype == "bfloat16"
    assert report.outputs[0].max_abs == 0
    wrong = verify(model(text, w=[3.0] * 8), model(text, w=[3.0] * 7 + [3.5]), device="cpu")
    assert wrong.verdict is Verdict.FAIL


def test_strings_need_real_data():
    text = model("g (string[1,2] x) => (string[1,2] y) { y = Identity(x) }")
    with pytest.raises(UnsupportedModelError, match="tensor of string"):
        check(text)
    report = check(text, inputs={"x": np.array([["a", "b"]], dtype=object)})
    assert report.verdict is Verdict.PASS


def test_an_unknown_rank_asks_for_a_shape():
    unknown = model("g (float[1,4] x) => (float[1,4] y) { y = Mul(x, w) }", w=[2.0])
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(VerificationError) as error:
        check(unknown)
    assert "how many dimensions" in str(error.value)
    assert check(unknown, shapes={"x": InputSpec((1, 4))}).verdict is Verdict.PASS
