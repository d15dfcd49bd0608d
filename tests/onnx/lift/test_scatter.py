"""Sums at places that indices name, as graph networks have them: scales pass, shifts go to the base alone."""

import numpy as np
import pytest
from onnx_fold import Folded, batch_norm, fold, parse, pure_scale, random

NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"
NODES, EDGES, CHANNELS = 5, 7, 4
PLACES = np.array([0, 1, 1, 4, 4, 4, 2])
ALONG = np.repeat(PLACES[:, None], CHANNELS, axis=1)
ZEROS = "ConstantOfShape <value = double[1] {0.0}> (shape)"

SUMS = {
    "ScatterND": ('ScatterND <reduction="add"> (base, rows, m)', {"rows": PLACES[:, None]}),
    "ScatterElements": ('ScatterElements <axis=0, reduction="add"> (base, along, m)', {"along": ALONG}),
}


def network(
    name: str,
    base: str,
    *,
    before: str = "m = MatMul (e, w)",
    after: str = f"y = {NORM % 'a'}",
    scale_only: bool = False,
) -> Folded:
    sum_, places = SUMS[name]
    text = f"""agraph (double[{EDGES},3] e, double[{NODES},3] x, int64[2] shape) => (double[{NODES},{CHANNELS}] y) {{
        {before} base = {base} a = {sum_} {after}
    }}"""
    constants = {
        "w": random(3, CHANNELS),
        "v": random(3, CHANNELS, seed=1),
        "last": random(CHANNELS, CHANNELS),
        "size": np.array([NODES, CHANNELS]),
        "zero": np.zeros(1),
        "one": np.ones((NODES, CHANNELS)),
        **places,
        **(pure_scale if scale_only else batch_norm)(CHANNELS),
    }
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    feeds = {"e": random(EDGES, 3), "x": random(NODES, 3), "shape": np.array([NODES, CHANNELS])}
    used = {name: array for name, array in constants.items() if name in words}
    return fold(parse(text, **used), feeds=feeds, leftover="keep", exactly="shape)" not in base)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("base", ["Expand (zero, size)", "Expand (zero, shape)", ZEROS])
def test_a_scale_goes_to_the_updates_of_zeros_and_a_shift_does_not(name: str, base: str) -> None:
    assert network(name, base, scale_only=True).codes == []
    folded = network(name, base)
    assert folded.codes == ["shift"]
    assert "as often as its indices say" in folded.plan.left[0].reason


@pytest.mark.parametrize("name", SUMS)
def test_a_base_that_is_computed_takes_the_shift(name: str) -> None:
    folded = network(name, "MatMul (x, v)")
    assert folded.codes == []
    assert [node.op_type for node in folded.model.graph.node] == [
        "MatMul",
        "MatMul",
        "Add",
        *SUMS[name][0].split(" ")[:1],
    ]


@pytest.mark.parametrize("name", SUMS)
def test_forward_a_scale_goes_from_the_updates_to_the_result(name: str) -> None:
    before = f"f = MatMul (e, w) h = Relu (f) m = {NORM % 'h'}"
    after = "y = MatMul (a, last)"
    assert network(name, "Expand (zero, size)", before=before, after=after, scale_only=True).codes == []
    assert network(name, "Expand (zero, size)", before=before, after=after).codes == ["shift"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("one", {}), id="a base of other numbers"),
        pytest.param(("reduction", "max"), id="another reduction"),
        pytest.param(("reduction", "none"), id="without a sum"),
    ],
)
def test_what_is_no_sum_on_zeros_stays(other: tuple[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, how = other
    if kind == "reduction":
        sum_, places = SUMS["ScatterND"]
        monkeypatch.setitem(SUMS, "ScatterND", (sum_.replace('"add"', f'"{how}"'), places))
    base = "Identity (one)" if kind == "one" else "Expand (zero, size)"
    assert network("ScatterND", base, scale_only=True).codes == ["no_rule"]


def test_a_scale_along_the_axis_of_the_indices_stays() -> None:
    text = """agraph (double[2,4,7] e) => (double[2,4,5] y) {
        m = Conv (e, w) a = ScatterElements <axis=1, reduction="add"> (base, along, m)
        y = BatchNormalization (a, bn_g, bn_b, bn_m, bn_v)
    }"""
    constants = {"w": random(4, 4, 3), "base": np.zeros((2, 4, 5)), "along": np.zeros((2, 4, 5), np.int64)}
    assert fold(parse(text, **constants, **pure_scale(4)), leftover="keep").codes == ["varies"]
