"""What passes its input on as it is: Identity, Dropout at inference, Cast to the same type."""

import numpy as np
import pytest
from onnx_fold import batch_norm, fold, parse, random

TEXT = """
agraph (double[N,3,4,4] x, bool flag) => (double[N,4,4,4] y EXTRA)
{
  [conv] c = Conv (x, w)
  BODY
  [bn] b = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
  y = Relu (b)
}
"""


def codes(body: str, *, opset: int = 17, extra: str = "", compare: bool = True, **constants: np.ndarray) -> list[str]:
    text = TEXT.replace("BODY", body).replace("EXTRA", extra)
    model = parse(text, opset=opset, w=random(4, 3, 1, 1), **batch_norm(4), **constants)
    return fold(model, leftover="keep", compare=compare).codes


@pytest.mark.parametrize(
    "body",
    [
        "d = Identity (c)",
        "d1 = Identity (c)\n d2 = Identity (d1)\n d = Identity (d2)",
        "d = Dropout (c)",
        "d = Dropout (c, half)",
        "d = Dropout (c, half, no)",
        "d = Dropout (c, , no)",
        "d = Cast <to=11> (c)",
    ],
)
def test_bn_folds_past_it(body: str) -> None:
    constants = {}
    if "half" in body:
        constants["half"] = np.array(0.5)
    if "no" in body:
        constants["no"] = np.array(False)
    assert codes(body, **constants) == []


@pytest.mark.parametrize("opset", [7, 10])
def test_dropout_of_old_opsets_is_inference(opset: int) -> None:
    assert codes("d = Dropout <ratio=0.3> (c)", opset=opset, compare=False) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("d = Dropout (c, half, yes)", "no_rule"),
        ("d = Dropout (c, half, flag)", "no_rule"),
        ("e = Cast <to=1> (c)\n d = Cast <to=11> (e)", "changes_dtype"),
        ("d, mask = Dropout (c)\n used = Not (mask)", "no_rule"),
    ],
)
def test_bn_stays_behind_it(body: str, code: str) -> None:
    constants = {}
    if "half" in body:
        constants["half"] = np.array(0.5)
    if "yes" in body:
        constants["yes"] = np.array(True)
    extra = ", bool[N,4,4,4] used" if "mask" in body else ""
    assert codes(body, extra=extra, compare="yes" not in body and "flag" not in body, **constants) == [code]


def test_a_mask_that_nothing_reads_does_not_matter() -> None:
    assert codes("d, mask = Dropout (c)") == []


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_the_values_between_get_names_of_their_own(direction: str) -> None:
    """Everything between a map and its affine differs from the original."""
    bn, conv = "BatchNormalization", "Conv"
    first, second = (f"{conv} (x, w)", f"{bn} (e, bn_g, bn_b, bn_m, bn_v)")
    if direction == "forward":
        first, second = f"{bn} (x, bn_g, bn_b, bn_m, bn_v)", f"{conv} (e, w)"
    text = f"""
    agraph (double[N,4,4,4] x) => (double[N,4,4,4] y)
    {{
      c = {first}
      [one] d = Identity (c)
      [two] e = Identity (d)
      y = {second}
    }}
    """
    folded = fold(parse(text, w=random(4, 4, 1, 1), **batch_norm(4)))
    assert folded.codes == []
    assert [fold.path for fold in folded.plan.folds] == [("two", "one") if direction == "backward" else ("one", "two")]


def test_an_identity_read_twice_holds_the_bn_back() -> None:
    body = "d = Identity (c)\n e = Neg (d)"
    assert codes(body, extra=", double[N,4,4,4] e") == ["other_consumers"]


def test_an_identity_as_output_holds_the_bn_back() -> None:
    assert codes("d = Identity (c)", extra=", double[N,4,4,4] d") == ["model_output"]
