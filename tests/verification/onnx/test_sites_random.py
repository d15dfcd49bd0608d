"""Random small graphs with odd sharing: the sites gate passes every correct fold, and sees a weight that is off."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.report import Verdict
from bnfold.verification.judging.sites import SITE_LIMIT
from bnfold.verification.onnx.sites.measure import measure_sites
from bnfold.verification.onnx.sites.pairing import pair
from bnfold.verification.runtime.devices import cpu_device
from bnfold.verification.runtime.sessions import Session

CHANNELS = 4
SHAPE = f"float[2,{CHANNELS},5,5]"
RNG = np.random.default_rng(17)
FEED = {"x": np.random.default_rng(1).standard_normal((2, CHANNELS, 5, 5)).astype(np.float32)}


def vectors(prefix, **arrays):
    return {f"{prefix}_{name}": np.asarray(array) for name, array in arrays.items()}


CONSTANTS = {
    "w": RNG.standard_normal((CHANNELS, CHANNELS, 1, 1)) * 0.5,
    "u": RNG.standard_normal((CHANNELS, CHANNELS, 3, 3)) * 0.2,
    "d": RNG.standard_normal((CHANNELS, 1, 3, 3)) * 0.4,
    "t": RNG.standard_normal((CHANNELS, CHANNELS, 1, 1)) * 0.5,
    "bias": RNG.standard_normal(CHANNELS),
    "k": RNG.uniform(0.5, 1.5, (CHANNELS, 1, 1)),
    **{
        name: array
        for prefix in "ab"
        for name, array in vectors(
            prefix,
            g=RNG.uniform(-1.5, 1.5, CHANNELS),
            b=RNG.standard_normal(CHANNELS),
            m=RNG.standard_normal(CHANNELS),
            v=RNG.uniform(0.3, 2, CHANNELS),
        ).items()
    },
    **vectors("s", g=RNG.uniform(0.5, 1.5, CHANNELS), b=np.zeros(4), m=np.zeros(4), v=RNG.uniform(0.3, 2, CHANNELS)),
}
STEPS = (
    *("conv", "padded", "depthwise", "transposed", "bn", "bn", "bn", "scale", "relu", "add", "sub", "identity"),
    *("max", "mean", "multiply", "leaky", "concat", "transpose", "squeeze"),
)


@st.composite
def models(draw):
    values, lines = ["x"], []
    for index in range(draw(st.integers(1, 10))):
        recent = st.sampled_from(values[-2:])
        source = draw(st.one_of(recent, recent, st.sampled_from(values)))
        other = draw(st.sampled_from(values))
        prefix = draw(st.sampled_from("ab"))
        bias = draw(st.sampled_from(["", ", bias"]))
        name = f"v{index}"
        line = {
            "conv": f"{name} = Conv ({source}, w {bias})",
            "padded": f"{name} = Conv <pads=[1,1,1,1]> ({source}, u {bias})",
            "depthwise": f"{name} = Conv <pads=[1,1,1,1], group={CHANNELS}> ({source}, d {bias})",
            "transposed": f"{name} = ConvTranspose ({source}, t {bias})",
            "bn": f"{name} = BatchNormalization ({source}, {prefix}_g, {prefix}_b, {prefix}_m, {prefix}_v)",
            "scale": f"{name} = BatchNormalization ({source}, s_g, s_b, s_m, s_v)",
            "relu": f"{name} = Relu ({source})",
            "leaky": f"{name} = LeakyRelu <alpha=0.1> ({source})",
            "add": f"{name} = Add ({source}, {other})",
            "sub": f"{name} = Sub ({source}, {other})",
            "identity": f"{name} = Identity ({source})",
            "max": f"{name} = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> ({source})",
            "mean": f"{name} = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> ({source})",
            "multiply": f"{name} = Mul ({source}, k)",
            "concat": f"{name}c = Concat <axis=1> ({source}, {other}) {name}, {name}r = Split <axis=1> ({name}c)",
            "transpose": f"{name}p = Transpose <perm=[0,2,3,1]> ({source}) "
            f"{name} = Transpose <perm=[0,3,1,2]> ({name}p)",
            "squeeze": f"{name}p = Unsqueeze ({source}, zero) {name} = Squeeze ({name}p, zero)",
        }[draw(st.sampled_from(STEPS))]
        lines.append(line)
        values.append(name)
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    text = f"g ({SHAPE} x) => ({', '.join(f'{SHAPE} {name}' for name in outputs)}) {{ {' '.join(lines)} }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 15]> {text}')
    used = {name for node in model.graph.node for name in node.input}
    arrays = {**{name: array.astype(np.float32) for name, array in CONSTANTS.items()}, "zero": np.array([0])}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used
    )
    return model


def judge(model, folded):
    return measure_sites(from_proto(model), from_proto(folded), cpu_device(), FEED)


def check_correct(model):
    folded = bnfold.fold(model).model
    outcome = judge(model, folded)
    assert {site.verdict for site in outcome.sites} <= {Verdict.PASS}, outcome.sites
    assert outcome.note == ""
    assert all(site.ratio < SITE_LIMIT / 2 for site in outcome.sites)


def check_faulty(model, choice):
    """One element of one tensor that the fold made is off; whoever reads it must be seen to fail."""
    folded = bnfold.fold(model).model
    own = pair(from_proto(model), from_proto(folded)).own_tensors
    tensors = [tensor for tensor in folded.graph.initializer if tensor.name in own and tensor.data_type == 1]
    assume(tensors)
    tensor = tensors[choice % len(tensors)]
    array = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.argmax(np.abs(array)), array.shape)
    assume(abs(array[place]) > 0.01)
    array[place] *= 1.01
    before = partners(model, folded)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    after = partners(model, folded)
    # A channel that a Relu cuts off, or that is x − x, shows nothing.
    assume(any(np.max(np.abs(before[name] - after[name])) > 1e-3 for name in before))
    outcome = judge(model, folded)
    reading = [node for node in folded.graph.node if tensor.name in node.input]
    readers = {node.name or f"{node.op_type}({node.output[0]})" for node in reading}
    failed = [site for site in outcome.sites if site.verdict is Verdict.FAIL]
    assert failed, outcome.sites
    assert all(readers & set(site.nodes) for site in failed)


def partners(model, folded):
    """What the folded model gives at every value that the original has too."""
    names = {name for node in model.graph.node for name in node.output}
    wanted = [name for node in folded.graph.node for name in node.output if name in names]
    probe = onnx.ModelProto()
    probe.CopyFrom(folded)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in wanted)
    return Session(probe.SerializeToString(), cpu_device()).run(FEED)


QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(model=models())
def test_every_correct_fold_passes(model: onnx.ModelProto) -> None:
    check_correct(model)


@QUICK
@given(model=models(), choice=st.integers(0, 20))
def test_a_weight_that_is_off_is_seen(model: onnx.ModelProto, choice: int) -> None:
    check_faulty(model, choice)


@pytest.mark.slow
@LONG
@given(model=models())
def test_every_correct_fold_passes_at_length(model: onnx.ModelProto) -> None:
    check_correct(model)


@pytest.mark.slow
@LONG
@given(model=models(), choice=st.integers(0, 20))
def test_a_weight_that_is_off_is_seen_at_length(model: onnx.ModelProto, choice: int) -> None:
    check_faulty(model, choice)
