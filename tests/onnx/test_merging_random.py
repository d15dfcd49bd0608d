"""Random sums of random branches: whatever is merged, the model computes what it computed.

Shapes of values are read, in nested graphs as well, which have values of their own by names that come later; operands
are broadcast, and inputs of the model; sizes may be open.
"""

import re

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_fold import as_bytes, batch_norm, fold, parse, random, to_single

import bnfold

CHANNELS = 4
BRANCHES = st.sampled_from(
    [
        "conv",
        "conv",
        "pointwise",
        "depthwise",
        "grouped",
        "tall",
        "wide",
        "pool",
        "chain",
        "pooled",
        "transposed",
        "small",
        "input",
        "norm",
        "x",
        "relu",
    ]
)


class _Writer:
    """Writes a model with one random sum, node by node."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.lines: list[str] = []
        self.constants: dict[str, np.ndarray] = {}

    def draw(self, strategy):
        return self._data.draw(strategy)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.lines)}"
        given = ", ".join(f"{key} = {value}" for key, value in attributes.items())
        self.lines.append(f"{name} = {op} {f'<{given}>' if given else ''} ({', '.join(inputs)})")
        return name

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = random(*shape, seed=len(self.constants))
        return name

    def conv(self, x: str, kernel: tuple[int, int], *, groups: int = 1, pads: object = None, stride: int = 1) -> str:
        inputs = [x, self.constant(CHANNELS, CHANNELS // groups, *kernel)]
        if self.draw(st.booleans()):
            inputs.append(self.constant(CHANNELS))
        half = [size // 2 for size in kernel]
        pads = [*half, *half] if pads is None else pads
        y = self.node("Conv", *inputs, group=groups, pads=pads, strides=[stride, stride])
        return self.maybe_norm(y)

    def maybe_norm(self, x: str) -> str:
        return self.norm(x) if self.draw(st.booleans()) else x

    def norm(self, x: str) -> str:
        prefix = f"n{len(self.constants)}"
        self.constants |= batch_norm(CHANNELS, prefix)
        return self.node("BatchNormalization", x, *(f"{prefix}_{letter}" for letter in "gbmv"))

    def branch(self, x: str, stride: int) -> str:
        kind = self.draw(BRANCHES)
        if stride > 1 and kind in ("norm", "x", "relu", "transposed"):
            kind = "pointwise"
        match kind:
            case "conv":
                return self.conv(x, (3, 3), stride=stride)
            case "pointwise":
                return self.conv(x, (1, 1), stride=stride)
            case "depthwise":
                return self.conv(x, self.draw(st.sampled_from([(1, 1), (3, 3)])), groups=CHANNELS, stride=stride)
            case "grouped":
                return self.conv(x, (3, 3), groups=2, stride=stride)
            case "tall":
                return self.conv(x, (3, 1), stride=stride)
            case "wide":
                return self.conv(x, (1, 3), stride=stride)
            case "pool":
                counts = self.draw(st.sampled_from([0, 1, 1]))
                pool = {"pads": [1] * 4, "strides": [stride] * 2, "count_include_pad": counts}
                return self.maybe_norm(self.node("AveragePool", x, kernel_shape=[3, 3], **pool))
            case "chain":
                inner = self.conv(x, (1, 1), pads=[1] * 4)
                return self.conv(inner, (3, 3), pads=[0] * 4, stride=stride)
            case "pooled":
                first, second = self.draw(st.sampled_from([(1, 0), (0, 1)]))
                inner = self.conv(x, (1, 1), pads=[first] * 4)
                pool = {"pads": [second] * 4, "strides": [stride] * 2, "count_include_pad": 1}
                return self.maybe_norm(self.node("AveragePool", inner, kernel_shape=[3, 3], **pool))
            case "transposed":
                kernel, groups = self.draw(st.sampled_from([1, 1, 3])), self.draw(st.sampled_from([1, 2]))
                weight = self.constant(CHANNELS, CHANNELS // groups, kernel, kernel)
                pads = [kernel // 2] * 4
                return self.maybe_norm(self.node("ConvTranspose", x, weight, group=groups, pads=pads))
            case "small":
                return self.node("GlobalMaxPool", x)
            case "input":
                return "z"
            case "norm":
                return self.norm(x)
            case "relu":
                return self.node("Relu", x)
        return x

    def model(self) -> str:
        stride = self.draw(st.sampled_from([1, 1, 2]))
        x = self.node("Relu", "x")
        values = [self.branch(x, stride) for _ in range(self.draw(st.integers(2, 6)))]
        while len(values) > 1:
            values = self.draw(st.permutations(values))
            match self.draw(st.integers(0, 5)):
                case 0 if len(values) > 2:
                    values = [self.node(self.draw(st.sampled_from(["Sum", "Mean"])), *values[:3]), *values[3:]]
                case 1:
                    values = [self.node("Mul", values[0], self.constant(CHANNELS, 1, 1)), *values[1:]]
                case 2:
                    values = [self.node("Identity", values[0]), *values[1:]]
                case 3 if len(values) > 2:
                    values = [self.node(self.draw(st.sampled_from(["Add", "Sub"])), *values[:2]), *values[1:]]
                case _:
                    op = self.draw(st.sampled_from(["Add", "Add", "Sub", "Sub", "Mean"]))
                    values = [self.node(op, *values[:2]), *values[2:]]
        # What is made of z alone has too few channels, and too few sizes, for a batch norm.
        end = values[0] if self.reads_x(values[0]) else self.node("Add", values[0], x)
        end = self.norm(end) if self.draw(st.booleans()) else end
        self.lines.append(f"y = {self.draw(st.sampled_from(['Relu', 'Identity']))} ({end})")
        readers = [self.read_a_shape() for _ in range(self.draw(st.sampled_from([0, 0, 1, 2])))]
        outputs = ", ".join(["double[N, C, P, Q] y", *(f"int64[R{reader}] {reader}" for reader in readers)])
        sizes = self.draw(st.sampled_from(["1, 4, 6, 7", "1, 4, 6, 7", "M, 4, H, W"]))
        small = self.draw(st.sampled_from(["1, 4, 1, 1", "4, 1, 1", "1, 1, 1, 1"]))
        inputs = f"double[{sizes}] x, double[{small}] z, bool p"
        return f"g ({inputs}) => ({outputs}) {{ {' '.join(self.lines)} }}"

    def reads_x(self, name: str) -> bool:
        """Whether a value is made of the input x."""
        if name in ("x", "z"):
            return name == "x"
        made = next(line for line in self.lines if line.startswith(f"{name} "))
        return any(self.reads_x(read) for read in re.findall(r"\b(?:v\d+|[xz])\b", made.partition("=")[2]))

    def read_a_shape(self) -> str:
        """Reads the shape of a value somewhere behind it, as an output of the model."""
        names = [line.split(" ", 1)[0] for line in self.lines if line.startswith("v")]
        at = self.draw(st.integers(0, len(names) - 1))
        reader = f"s{len(self.lines)}"
        line = f"{reader} = {self.draw(st.sampled_from(['Shape', 'Size']))} ({names[at]})"
        if self.draw(st.booleans()):
            own = self.draw(st.sampled_from([f"{reader}i", *names[at + 1 :], "y"]))
            line = (
                f"{reader} = If (p) <then_branch = t{reader} () => ({reader}t)"
                f" {{ {own} = Relu (x) {reader}a = Shape ({names[at]}) {reader}b = Shape ({own})"
                f" {reader}t = Add ({reader}a, {reader}b) }},"
                f" else_branch = e{reader} () => ({reader}e) {{ {reader}e = Shape (x) }}>"
            )
        where = next(index for index, other in enumerate(self.lines) if other.startswith(f"{names[at]} = "))
        self.lines.insert(where + 1, line)
        return reader


def drawn(data: st.DataObject) -> tuple[onnx.ModelProto, str]:
    """A model with a random sum, and a form for the BNs that stay."""
    writer = _Writer(data)
    text = writer.model()
    leftover = writer.draw(st.sampled_from(["conv", "mul-add", "keep"]))
    model = parse(text, **writer.constants)
    for node in model.graph.node:
        for inner in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            out = inner.output[0]
            out.CopyFrom(helper.make_tensor_value_info(out.name, TensorProto.INT64, [4]))
    for output in model.graph.output[1:]:
        sizes = next(node.op_type for node in model.graph.node if output.name in node.output) == "Size"
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.INT64, [] if sizes else [4]))
    return model, leftover


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@given(st.data())
@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=QUIET)
def test_random_sums(data):
    model, leftover = drawn(data)
    z = [size.dim_value for size in model.graph.input[1].type.tensor_type.shape.dim]
    feeds = {"x": random(1, CHANNELS, 6, 7), "z": random(*z), "p": np.array(True)}
    fold(model, feeds=feeds, merge=True, leftover=leftover, exactly=True)
    fold(to_single(model), compare=False, merge=True, leftover=leftover)


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=QUIET)
def test_a_second_fold_finds_nothing(data):
    """Other sums each time: in float32, a BN that stays is a convolution to the second fold."""
    model, leftover = drawn(data)
    for one in (model, to_single(model)):
        folded = bnfold.fold(one, leftover=leftover).model
        again = bnfold.fold(folded, leftover=leftover)
        assert as_bytes(again.model) == as_bytes(folded), again.plan.merges
