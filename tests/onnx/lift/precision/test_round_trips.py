"""Casts to a wider type and back: an affine between them passes, and nothing else does."""

import numpy as np
import pytest
from onnx_fold import Folded, batch_norm, fold, parse, random, run_unoptimised

HALF = np.float16
NORM = "BatchNormalization (%s, bn_g, bn_b, bn_m, bn_v)"


def folded(between: str, *, dtype: str = "float16", tail: str = "y = Cast <to=10> (r)", outputs: str = "") -> Folded:
    """A Conv in float16, a Cast to float32, what lies between `f` and `r`, and what lies behind that."""
    text = f"""agraph (float16[N,3,8,8] x) => ({dtype}[N,4,6,6] y{outputs}) {{
        c = Conv (x, w) f = Cast <to=1> (c) {between} {tail}
    }}"""
    single = {name: array.astype(np.float32) for name, array in batch_norm(4).items()}
    constants = {
        "w": random(4, 3, 3, 3, dtype=HALF) / HALF(4),
        "s": random(4, 1, 1, dtype=np.float32),
        "t": random(4, 1, 1, seed=3, dtype=np.float32),
        "alpha": np.float32(0.25),
    }
    used = {key: array for key, array in {**constants, **single}.items() if f"{key})" in text or f"{key}," in text}
    return fold(parse(text, **used), leftover="keep", compare=False)


def agree(result: Folded) -> None:
    """Both are within the rounding of float16 of the definition, which the original computes in float32."""
    x = random(2, 3, 8, 8, dtype=HALF)
    before, after = (run_unoptimised(model, {"x": x}) for model in (result.original, result.model))
    scale = np.abs(before.astype(np.float64)).max()
    assert np.abs(after.astype(np.float64) - before).max() <= 4 * 2**-11 * scale


PASSES = {
    "batch norm": f"r = {NORM % 'f'}",
    "batch norm, cut off": f"n = {NORM % 'f'} r = Relu (n)",
    "arithmetic": "m = Mul (f, s) r = Add (m, t)",
}


@pytest.mark.parametrize("name", PASSES)
def test_an_affine_between_the_casts_goes_into_the_narrower_map(name: str) -> None:
    result = folded(PASSES[name])
    assert len(result.plan.folds) == 1
    assert result.count("Cast") == 2
    assert not {"BatchNormalization", "Mul", "Add"} & {node.op_type for node in result.model.graph.node}
    agree(result)
    kept = {name for node in result.model.graph.node for name in node.output}
    assert not {"c", "f", "n", "r"} & kept, "what is rounded differently has another name"


STAYS = {
    "it is also an output": (f"r = {NORM % 'f'}", {"outputs": ", float[N,4,6,6] r"}),
    "the result stays wide": (f"r = {NORM % 'f'}", {"dtype": "float", "tail": "y = Tanh (r)"}),
    "one reader keeps it wide": (
        f"r = {NORM % 'f'} z = Tanh (r)",
        {"outputs": ", float[N,4,6,6] z"},
    ),
    "a function that does not cut off": (f"n = {NORM % 'f'} r = LeakyRelu (n)", {}),
    "two affines with a function between": (f"n = {NORM % 'f'} u = Relu (n) r = Mul (u, s)", {}),
    "a batch norm and more": (f"n = {NORM % 'f'} r = Mul (n, s)", {}),
    "another type than before": (f"r = {NORM % 'f'}", {"dtype": "bfloat16", "tail": "y = Cast <to=16> (r)"}),
}


@pytest.mark.parametrize("name", STAYS)
def test_anything_else_between_them_keeps_it(name: str) -> None:
    between, options = STAYS[name]
    result = folded(between, **options)
    assert result.plan.folds == ()
    assert result.codes[:1] == ["changes_dtype"]
    assert result.model == result.original


def test_forward_past_the_cast_back() -> None:
    """x → wide → BN → narrow → Conv: the affine goes into the Conv, and its input is what it was."""
    text = f"""agraph (float16[N,3,8,8] x) => (float16[N,4,6,6] y) {{
        f = Cast <to=1> (x) n = {NORM % "f"} h = Cast <to=10> (n) y = Conv (h, w)
    }}"""
    single = {name: array.astype(np.float32) for name, array in batch_norm(3).items()}
    result = fold(parse(text, w=random(4, 3, 3, 3, dtype=HALF) / HALF(4), **single), compare=False)
    assert result.codes == []
    agree(result)


def test_casts_to_a_narrower_type_and_back_stay() -> None:
    text = f"""agraph (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
        c = Conv (x, w) f = Cast <to=10> (c) n = {NORM % "f"} y = Cast <to=1> (n)
    }}"""
    half = {name: array.astype(HALF) for name, array in batch_norm(4).items()}
    result = fold(parse(text, w=random(4, 3, 3, 3, dtype=np.float32), **half), compare=False, leftover="keep")
    assert result.codes == ["changes_dtype"]


def test_branches_between_casts_become_one_map() -> None:
    """The training form of RepVGG in mixed precision."""
    text = """agraph (float16[N,4,8,8] x) => (float16[N,4,8,8] y) {
        c = Conv <pads=[1,1,1,1]> (x, w) f = Cast <to=1> (c)
        n = BatchNormalization (f, a_g, a_b, a_m, a_v) r = Cast <to=10> (n)
        d = Conv (x, v) df = Cast <to=1> (d) dn = BatchNormalization (df, b_g, b_b, b_m, b_v) dr = Cast <to=10> (dn)
        y = Add (r, dr)
    }"""
    norms = {**batch_norm(4, "a", dtype=np.float32), **batch_norm(4, "b", dtype=np.float32)}
    weights = {"w": random(4, 4, 3, 3, dtype=HALF) / HALF(6), "v": random(4, 4, 1, 1, dtype=HALF) / HALF(4)}
    result = fold(parse(text, **weights, **norms), compare=False, merge=True)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    x = random(2, 4, 8, 8, dtype=HALF)
    before, after = (run_unoptimised(model, {"x": x}).astype(np.float64) for model in (result.original, result.model))
    assert np.abs(after - before).max() <= 8 * 2**-11 * np.abs(before).max()


BRANCHES = {
    "what the affine reads": "q = Cast <to=10> (f) y = Add (r, q)",
    "what was widened": "y = Sub (r, c)",
    "both": "q = Cast <to=10> (f) y = Sum (r, q, c)",
}


@pytest.mark.parametrize("first", ["Conv (x, w)", "Relu (x)"])
@pytest.mark.parametrize("name", BRANCHES)
def test_an_affine_between_casts_that_takes_other_branches_keeps_the_cast_behind_it(name: str, first: str) -> None:
    text = f"""agraph (float16[N,4,8,8] x) => (float16[N,4,8,8] y) {{
        c = {first} f = Cast <to=1> (c) n = {NORM % "f"} r = Cast <to=10> (n) {BRANCHES[name]}
    }}"""
    weight = {"w": random(4, 4, 1, 1, dtype=HALF) / HALF(2)} if "w" in first else {}
    result = fold(parse(text, **weight, **batch_norm(4, dtype=np.float32)), compare=False, merge=True)
    assert [merge.branches for merge in result.plan.merges] == [3 if name == "both" else 2]
    assert (not result.plan.left) is ("w" in first)
    x = random(2, 4, 8, 8, dtype=HALF)
    before, after = (run_unoptimised(model, {"x": x}).astype(np.float64) for model in (result.original, result.model))
    assert np.abs(after - before).max() <= 8 * 2**-11 * np.abs(before).max()
    assert not {"Add", "Sub", "Sum"} & {node.op_type for node in result.model.graph.node}
