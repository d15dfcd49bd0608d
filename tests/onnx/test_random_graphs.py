"""Random small graphs with odd sharing and odd outputs: folding never changes what they compute."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_fold import batch_norm, check_values, fold, parse, pure_scale, random, random_feeds

CHANNELS = 3
SHAPE = f"double[2,{CHANNELS},4,4]"

STEPS = ("conv", "padded", "depthwise", "bn", "bn", "bn", "scale", "relu", "add", "identity", "pool", "dropout", "cast")


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph of values of one shape, each node reading any values before it, some values outputs as well."""
    values, lines = ["x"], []
    constants = {
        "w": random(CHANNELS, CHANNELS, 1, 1),
        "u": random(CHANNELS, CHANNELS, 3, 3, seed=1),
        "d": random(CHANNELS, 1, 3, 3, seed=2),
        "bias": random(CHANNELS, seed=3),
        **batch_norm(CHANNELS, "a"),
        **batch_norm(CHANNELS, "b"),
        **pure_scale(CHANNELS, "s"),
    }
    for index in range(draw(st.integers(1, 9))):
        # Mostly the newest value, so that chains form.
        recent = st.sampled_from(values[-2:])
        source = draw(st.one_of(recent, recent, st.sampled_from(values)))
        result = f"v{index}"
        prefix = draw(st.sampled_from("ab"))
        bias = draw(st.sampled_from(["", ", bias"]))
        step = draw(st.sampled_from(STEPS))
        lines.append(
            f"{result} = "
            + {
                "conv": f"Conv ({source}, w {bias})",
                "padded": f"Conv <pads=[1,1,1,1]> ({source}, u {bias})",
                "depthwise": f'Conv <auto_pad="SAME_UPPER", group={CHANNELS}> ({source}, d {bias})',
                "bn": f"BatchNormalization ({source}, {prefix}_g, {prefix}_b, {prefix}_m, {prefix}_v)",
                "scale": f"BatchNormalization ({source}, s_g, s_b, s_m, s_v)",
                "relu": f"Relu ({source})",
                "add": f"Add ({source}, {draw(st.sampled_from(values))})",
                "identity": f"Identity ({source})",
                "pool": f"MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> ({source})",
                "dropout": f"Dropout ({source})",
                "cast": f"Cast <to=11> ({source})",
            }[step]
        )
        values.append(result)
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    declared = draw(st.lists(st.sampled_from(values[1:]), unique=True))
    text = f"agraph ({SHAPE} x) => ({', '.join(f'{SHAPE} {name}' for name in outputs)})\n"
    inner = [name for name in declared if name not in outputs]
    text += f"<{', '.join(f'{SHAPE} {name}' for name in inner)}>\n" if inner else ""
    model = parse(text + "{\n" + "\n".join(lines) + "\n}")
    used = {name for node in model.graph.node for name in node.input}
    spare = draw(st.sets(st.sampled_from(sorted(constants))))
    for name, array in constants.items():
        if name in used or name in spare:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("leftover", ["conv", "keep"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_folding_changes_no_value(leftover: str, model: onnx.ModelProto) -> None:
    folded = fold(model, leftover=leftover, exactly=True)
    bns = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert folded.plan.batch_norms == bns
    names = [name for entry in (*folded.plan.folds, *folded.plan.left) for name in entry.nodes]
    assert len(names) == len(set(names)) == bns


@pytest.mark.slow
@pytest.mark.parametrize("leftover", ["conv", "mul-add", "keep"])
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_folding_changes_no_value_at_length(leftover: str, model: onnx.ModelProto) -> None:
    fold(model, leftover=leftover)


def test_the_values_differ_where_a_bn_is_dropped() -> None:
    """The comparison itself can fail."""
    text = f"agraph ({SHAPE} x) => ({SHAPE} y) {{ y = BatchNormalization (x, bn_g, bn_b, bn_m, bn_v) }}"
    model = parse(text, **batch_norm(CHANNELS))
    broken = parse(f"agraph ({SHAPE} x) => ({SHAPE} y) {{ y = Identity (x) }}")
    with pytest.raises(AssertionError, match="'y' is off"):
        check_values(model, broken, random_feeds(model))
    almost = onnx.ModelProto()
    almost.CopyFrom(model)
    gamma = onnx.numpy_helper.to_array(almost.graph.initializer[0]) * (1 + np.array([0, 1e-8, 0]))
    almost.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(gamma, "bn_g"))
    with pytest.raises(AssertionError, match="'y' is off"):
        check_values(model, almost, random_feeds(model))
