"""Random small ONNX models made of every operator that the rule table has a row for.

Values have few elements, and sizes are equal on purpose, so that an axis that was guessed from its size can be the
wrong one. Everything is float64. Nothing divides by a number near zero, and nothing overflows, so that what a model
computes is well conditioned and an exact fold agrees to 1e-10.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

MOST_ELEMENTS = 400
OPSET = 20
BATCH = 3
"""Of a symbolic batch as well; see `onnx_fold.SYMBOLIC_SIZE`."""

SHAPES = ((BATCH, 4), (BATCH, 4, 4), (2, 4, 4), (BATCH, 4, 4, 4), (2, 4, 4, 3), (1, 4, 4, 4), (1, 4, 2, 2, 2))

Shape = tuple[int, ...]
Choose = Callable[[int], int]
"""A number from 0 to below n; 0 is the simplest choice."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value: its name and its shape in the run."""

    name: str
    shape: Shape


@dataclass(slots=True)
class Maker:
    """Adds nodes to a model; a step that does not fit its source adds nothing.

    Attributes:
        choose: Makes all choices.
        values: What has been computed, the input first.
    """

    choose: Choose
    values: list[Tensor]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def pick(self, *options: object) -> object:
        """One of some things; the first is the simplest."""
        return options[self.choose(len(options))]

    def number(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([7, len(self.tensors)])

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def normal(self, *shape: int) -> str:
        return self.constant(self.rng().standard_normal(shape))

    def away_from_zero(self, *shape: int) -> str:
        rng = self.rng()
        return self.constant(rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape))

    def add(
        self, op_type: str, inputs: Sequence[str], *shapes: Sequence[int], keep: bool = True, **attributes: object
    ) -> list[Tensor]:
        """Adds a node whose outputs have these shapes."""
        outputs = [Tensor(f"v{len(self.nodes)}_{index}", tuple(shape)) for index, shape in enumerate(shapes)]
        self.nodes.append(helper.make_node(op_type, inputs, [output.name for output in outputs], **attributes))
        if keep:
            self.values += outputs
        return outputs

    def partner(self, x: Tensor, fits: Callable[[Shape], bool]) -> Tensor:
        """Another value of a fitting shape, rather one that nothing reads yet, or x itself."""
        read = {name for node in self.nodes for name in node.input}
        fitting = [value for value in reversed(self.values) if value is not x and fits(value.shape)]
        return self.pick(*sorted(fitting, key=lambda value: value.name in read), x)

    def gate(self, x: Tensor, op_type: str) -> Tensor:
        """What another value is multiplied with, or divided by: bounded, and then away from zero."""
        if op_type == "Div":
            limits = [self.constant(np.array(limit)) for limit in (0.5, 2.0)]
            return self.add("Clip", [x.name, *limits], x.shape, keep=False)[0]
        return self.add("Sigmoid", [x.name], x.shape, keep=False)[0]

    def axis(self, x: Tensor) -> int:
        return self.number(0, len(x.shape) - 1)


def _size(old: int, kernel: int, pads: tuple[int, int], stride: int) -> int:
    return (old + sum(pads) - kernel) // stride + 1


def conv(m: Maker, x: Tensor) -> None:
    if not 3 <= len(x.shape) <= 5:
        return
    channels, spatial = x.shape[1], x.shape[2:]
    kernel = m.pick(1, 1, 3, 2)
    before, after = m.pick((0, 0), (0, 0), (1, 1), (0, 1)) if kernel > 1 else (0, 0)
    stride = m.pick(1, 1, 2)
    groups = m.pick(*(groups for groups in (1, 2, channels) if channels % groups == 0))
    sizes = [_size(size, kernel, (before, after), stride) for size in spatial]
    out = groups * m.number(1, max(1, 4 // groups))
    if min(sizes) < 1:
        return
    inputs = [x.name, m.normal(out, channels // groups, *[kernel] * len(spatial))]
    inputs += m.pick([], [m.normal(out)])
    pads = [before] * len(spatial) + [after] * len(spatial)
    m.add("Conv", inputs, (x.shape[0], out, *sizes), group=groups, pads=pads, strides=[stride] * len(spatial))


def conv_transpose(m: Maker, x: Tensor) -> None:
    if not 3 <= len(x.shape) <= 5 or prod(x.shape) > MOST_ELEMENTS // 4:
        return
    kernel, stride = m.pick((1, 1), (2, 2), (2, 1))
    groups = m.pick(*(groups for groups in (1, 2) if x.shape[1] % groups == 0))
    out = m.pick(2, 1, 3)
    sizes = [(size - 1) * stride + kernel for size in x.shape[2:]]
    weight = m.normal(x.shape[1], out, *[kernel] * len(sizes))
    inputs = [x.name, weight, *m.pick([], [m.normal(out * groups)])]
    m.add("ConvTranspose", inputs, (x.shape[0], out * groups, *sizes), group=groups, strides=[stride] * len(sizes))


def matmul(m: Maker, x: Tensor) -> None:
    out = m.pick(4, 3, x.shape[-1])
    (y,) = m.add("MatMul", [x.name, m.normal(x.shape[-1], out)], (*x.shape[:-1], out))
    if len(x.shape) > 1 and m.pick(False, True):
        m.add("Add", m.pick([y.name, m.normal(out)], [m.normal(out), y.name]), y.shape)


def matmul_left(m: Maker, x: Tensor) -> None:
    if len(x.shape) < 2:
        return
    out = m.pick(4, 3, x.shape[-2])
    (y,) = m.add("MatMul", [m.normal(out, x.shape[-2]), x.name], (*x.shape[:-2], out, x.shape[-1]))
    if m.pick(False, True):
        m.add("Add", [y.name, m.normal(out, 1)], y.shape)


def gemm(m: Maker, x: Tensor) -> None:
    if len(x.shape) != 2:
        return
    turned, weight_turned = m.pick(0, 0, 1), m.pick(0, 1)
    rows, inner = reversed(x.shape) if turned else x.shape
    out = m.pick(4, 3)
    weight = m.normal(out, inner) if weight_turned else m.normal(inner, out)
    bias = m.pick([], [(out,)], [(1, out)], [()], [(rows, out)], [(rows, 1)])
    inputs = [x.name, weight, *(m.normal(*shape) for shape in bias)]
    alpha, beta = m.pick((1.0, 1.0), (0.5, 2.0))
    m.add("Gemm", inputs, (rows, out), transA=turned, transB=weight_turned, alpha=alpha, beta=beta)


def branches(m: Maker, x: Tensor) -> None:
    """Two maps of one value, each perhaps with a BN of its own, and what joins them."""
    ends = []
    for _ in range(2):
        if 3 <= len(x.shape) <= 5:
            weight = m.normal(4, x.shape[1], *[1] * (len(x.shape) - 2))
            (y,) = m.add("Conv", [x.name, weight], (x.shape[0], 4, *x.shape[2:]), keep=False)
        else:
            (y,) = m.add("MatMul", [x.name, m.normal(x.shape[-1], 4)], (*x.shape[:-1], 4), keep=False)
        if m.pick(False, True):
            batch_norm(m, y)
            y = m.values.pop() if len(y.shape) > 1 else y
        ends.append(y)
    first, second = ends
    match m.pick("Add", "Sub", "Sum", "Concat", "Mul", "Div"):
        case "Concat":
            axis = m.axis(first)
            shape = [2 * size if at == axis else size for at, size in enumerate(first.shape)]
            m.add("Concat", [first.name, second.name], shape, axis=axis)
        case "Mul" | "Div" as op_type:
            m.add(op_type, [first.name, m.gate(second, op_type).name], first.shape)
        case op_type:
            m.add(op_type, [first.name, second.name], first.shape)


def batch_norm(m: Maker, x: Tensor) -> None:
    if len(x.shape) < 2:
        return
    channels, rng = x.shape[1], m.rng()
    gamma = rng.uniform(0.5, 2, channels)
    beta, mean, variance = (
        rng.uniform(0.1, 1, channels),
        rng.uniform(-1, -0.1, channels),
        rng.uniform(0.25, 4, channels),
    )
    match m.pick("positive", "positive", "signs", "zeros", "scale", "neutral in part", "same", "shift"):
        case "signs":
            gamma *= rng.choice([-1, 1], channels)
        case "zeros":
            gamma[::2] = 0
        case "scale":
            beta, mean = np.zeros(channels), np.zeros(channels)
        case "neutral in part":
            half = channels // 2
            gamma[half:], beta[half:], mean[half:], variance[half:] = 1, 0, 0, 1
        case "same":
            gamma, beta, mean, variance = (np.full(channels, array[0]) for array in (gamma, beta, mean, variance))
        case "shift":
            gamma, variance = np.ones(channels), np.ones(channels)
    parameters = [m.constant(array) for array in (gamma, beta, mean, variance)]
    m.add("BatchNormalization", [x.name, *parameters], x.shape, epsilon=m.pick(0.0, 1e-5))


def spelled_out(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    along = tuple(size if at == axis else 1 for at, size in enumerate(x.shape))
    shape = m.pick(along, along[axis:], (), x.shape[1:], x.shape[-1:], (1,))
    op_type = m.pick("Mul", "Add", "Sub", "Div")
    array = m.away_from_zero(*shape)
    inputs = [array, x.name] if op_type != "Div" and m.pick(False, True) else [x.name, array]
    m.add(op_type, inputs, x.shape)


def activation(m: Maker, x: Tensor) -> None:
    match m.pick(*2 * ["Relu", "LeakyRelu", "PRelu"], "Sigmoid", "Clip"):
        case "LeakyRelu":
            m.add("LeakyRelu", [x.name], x.shape, alpha=0.25)
        case "PRelu":
            m.add("PRelu", [x.name, m.normal(*m.pick((1,), x.shape[1:2] + (1,) * len(x.shape[2:])))], x.shape)
        case "Clip":
            m.add("Clip", [x.name, m.constant(np.array(-1.0)), m.constant(np.array(2.0))], x.shape)
        case op_type:
            m.add(op_type, [x.name], x.shape)


def pool(m: Maker, x: Tensor) -> None:
    if len(x.shape) < 3:
        return
    op_type = m.pick("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool")
    spatial = x.shape[2:]
    if op_type == "GlobalMaxPool" and len(spatial) != 2:
        return  # onnx's reference evaluator drops the other axes
    if op_type.startswith("Global"):
        m.add(op_type, [x.name], (*x.shape[:2], *[1] * len(spatial)))
        return
    pad = m.pick(0, 1)
    stride = m.pick(1, 2)
    sizes = [_size(size, 2, (pad, pad), stride) for size in spatial]
    if min(sizes) < 1:
        return
    attributes = {
        "kernel_shape": [2] * len(spatial),
        "strides": [stride] * len(spatial),
        "pads": [pad] * 2 * len(spatial),
    }
    if op_type == "AveragePool":
        attributes["count_include_pad"] = m.pick(0, 1)
    m.add(op_type, [x.name], (*x.shape[:2], *sizes), **attributes)


def reduction(m: Maker, x: Tensor) -> None:
    op_type = m.pick("ReduceMean", "ReduceMax", "ReduceSum")
    first, second = m.axis(x), m.axis(x)
    axes = m.pick([first], sorted({first, second}), [*range(2, len(x.shape))] or [first])
    keep = m.pick(1, 0)
    shape = [1 if at in axes else size for at, size in enumerate(x.shape) if keep or at not in axes]
    if not shape:
        return
    numbers = [axis - len(x.shape) for axis in axes] if m.pick(False, True) else axes
    m.add(op_type, [x.name, m.integers(*numbers)], shape, keepdims=keep)


def two_values(m: Maker, x: Tensor) -> None:
    def fits(shape: Shape) -> bool:
        pairs = zip(shape[::-1], x.shape[::-1], strict=False)
        return (
            all(one == other or 1 in (one, other) for one, other in pairs)
            and prod(np.broadcast_shapes(shape, x.shape)) <= MOST_ELEMENTS
        )

    y = m.partner(x, fits)
    shape = np.broadcast_shapes(x.shape, y.shape)
    op_type = m.pick("Add", "Mul", "Sub", "Sum", "Mean", "Div")
    if op_type in ("Div", "Mul"):
        y = m.gate(y, op_type)
    inputs = [y.name, x.name] if op_type != "Div" and m.pick(False, True) else [x.name, y.name]
    m.add(op_type, [*inputs, x.name] if op_type in ("Sum", "Mean") and m.pick(False, True) else inputs, shape)


def concat(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)

    def fits(shape: Shape) -> bool:
        return len(shape) == len(x.shape) and all(
            at == axis or one == other for at, (one, other) in enumerate(zip(shape, x.shape, strict=True))
        )

    parts = [x, m.partner(x, fits)]
    parts += m.pick([], [m.partner(x, fits)])
    total = sum(part.shape[axis] for part in parts)
    if prod(x.shape) // x.shape[axis] * total <= MOST_ELEMENTS:
        shape = [total if at == axis else size for at, size in enumerate(x.shape)]
        m.add("Concat", [part.name for part in parts], shape, axis=m.pick(axis, axis - len(x.shape)))


def split(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    if x.shape[axis] < 2:
        return
    first = m.number(1, x.shape[axis] - 1)
    sizes = (first, x.shape[axis] - first)
    shapes = [tuple(size if at == axis else old for at, old in enumerate(x.shape)) for size in sizes]
    m.add("Split", [x.name, m.integers(*sizes)], *shapes, axis=axis)
    if m.pick(False, True):
        m.values.pop()


def slice_(m: Maker, x: Tensor) -> None:
    axes = sorted({m.axis(x), m.axis(x)})
    starts, ends, steps, shape = [], [], [], list(x.shape)
    for axis in axes:
        start, end, step = m.pick((0, 2, 1), (1, 2**62, 1), (-1, -(2**62), -1), (0, 100, 2), (-2, 100, 1), (-1, 0, -2))
        size = len(range(x.shape[axis])[slice(start, end, step)])
        if size < 1:
            return
        shape[axis] = size
        starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
    numbers = [m.integers(*starts), m.integers(*ends), m.integers(*axes), m.integers(*steps)]
    m.add("Slice", [x.name, *numbers], shape)


def gather(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    size = x.shape[axis]
    indices = m.pick([0, size - 1], -1, [*reversed(range(size))], [0, 0, size - 1], [[0], [size - 1]], [size // 2])
    array = np.array(indices, np.int64)
    shape = (*x.shape[:axis], *array.shape, *x.shape[axis + 1 :])
    if 0 < len(shape) <= 5 and prod(shape) <= MOST_ELEMENTS:
        m.add("Gather", [x.name, m.constant(array)], shape, axis=axis)


def transpose(m: Maker, x: Tensor) -> None:
    rest = [*range(len(x.shape))]
    axes = [rest.pop(m.choose(len(rest))) for _ in x.shape]
    m.add("Transpose", [x.name], [x.shape[axis] for axis in axes], perm=axes)


def reshape(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    shape = list(x.shape)
    if shape[axis] % 2 == 0 and m.pick(True, False):
        shape[axis : axis + 1] = m.pick([2, shape[axis] // 2], [shape[axis] // 2, 2])
    elif axis + 1 < len(shape):
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    else:
        shape = m.pick([-1, shape[-1]], [shape[0], -1])
    if len(shape) > 5:
        return
    full = [prod(x.shape) // -prod(shape) if size == -1 else size for size in shape]
    place = m.number(0, len(shape) - 1)
    written = [-1 if at == place and -1 not in shape else size for at, size in enumerate(shape)]
    if written[0] == x.shape[0] and m.pick(False, True):
        written[0] = 0
    m.add("Reshape", [x.name, m.integers(*written)], full)


def shape_of_another(m: Maker, x: Tensor) -> None:
    y = m.partner(x, lambda shape: prod(shape) == prod(x.shape))
    (shape,) = m.add("Shape", [y.name], (len(y.shape),), keep=False)
    m.add("Reshape", [x.name, shape.name], y.shape)


def channel_shuffle(m: Maker, x: Tensor) -> None:
    if len(x.shape) < 3 or x.shape[1] != 4:
        return
    batch, spatial = x.shape[0], x.shape[2:]
    (y,) = m.add("Reshape", [x.name, m.integers(0, 2, 2, *spatial)], (batch, 2, 2, *spatial), keep=False)
    perm = [0, 2, 1, *range(3, 3 + len(spatial))]
    (z,) = m.add("Transpose", [y.name], y.shape, perm=perm, keep=False)
    m.add("Reshape", [z.name, m.integers(m.pick(-1, 0), 4, *spatial)], x.shape)


def flatten(m: Maker, x: Tensor) -> None:
    axis = m.number(0, len(x.shape))
    m.add("Flatten", [x.name], (prod(x.shape[:axis]), prod(x.shape[axis:])), axis=axis)


def squeeze(m: Maker, x: Tensor) -> None:
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if ones and len(x.shape) > 1:
        gone = m.pick(ones[:1], ones[1:] or ones[:1])
        m.add("Squeeze", [x.name, m.integers(*gone)], [size for at, size in enumerate(x.shape) if at not in gone])


def unsqueeze(m: Maker, x: Tensor) -> None:
    if len(x.shape) < 5:
        axis = m.number(0, len(x.shape))
        m.add("Unsqueeze", [x.name, m.integers(axis)], (*x.shape[:axis], 1, *x.shape[axis:]))


def expand(m: Maker, x: Tensor) -> None:
    y = m.partner(
        x,
        lambda shape: (
            len(shape) >= len(x.shape)
            and all(small in (1, large) for small, large in zip(x.shape[::-1], shape[::-1], strict=False))
        ),
    )
    if m.pick(False, True):
        (shape,) = m.add("Shape", [y.name], (len(y.shape),), keep=False)
        m.add("Expand", [x.name, shape.name], y.shape)
    else:
        m.add("Expand", [x.name, m.integers(*y.shape)], y.shape)


def tile(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    repeats = [2 if at == axis else 1 for at in range(len(x.shape))]
    shape = [size * count for size, count in zip(x.shape, repeats, strict=True)]
    if prod(shape) <= MOST_ELEMENTS:
        m.add("Tile", [x.name, m.integers(*repeats)], shape)


def pad(m: Maker, x: Tensor) -> None:
    mode = m.pick("constant", "reflect", "edge", "wrap")
    axis = m.axis(x)
    amounts = m.pick((1, 1), (0, 1))
    shape = [size + sum(amounts) if at == axis else size for at, size in enumerate(x.shape)]
    if x.shape[axis] < 2 or prod(shape) > MOST_ELEMENTS:
        return
    value = m.pick("", m.constant(np.array(0.0)), m.constant(np.array(1.5))) if mode == "constant" else ""
    if m.pick(False, True):
        inputs = [m.integers(*amounts), value, m.integers(axis)]
    else:
        half = len(x.shape)
        numbers = [amounts[at // half] if at % half == axis else 0 for at in range(2 * half)]
        inputs = [m.integers(*numbers), value]
    m.add("Pad", [x.name, *inputs], shape, mode=mode)


def resize(m: Maker, x: Tensor) -> None:
    axis = m.axis(x)
    factor = m.pick(2.0, 1.5, 0.5, 1.2)
    scales = np.array([factor if at == axis else 1 for at in range(len(x.shape))], np.float32)
    shape = [int(np.floor(np.float32(size) * scale)) for size, scale in zip(x.shape, scales, strict=True)]
    if min(shape) < 1 or prod(shape) > MOST_ELEMENTS:
        return
    transform = m.pick("half_pixel", "align_corners", "asymmetric")
    # The evaluator interpolates with float32 weights, which sum to one only where they are short binary fractions.
    exact = factor in (2.0, 0.5) and transform != "align_corners" and len(x.shape) < 5
    mode = m.pick("nearest", "linear", "cubic") if exact else "nearest"
    inputs = m.pick(["", m.constant(scales)], ["", "", m.integers(*shape)])
    m.add("Resize", [x.name, *inputs], shape, mode=mode, coordinate_transformation_mode=transform)


def depth_to_space(m: Maker, x: Tensor) -> None:
    if len(x.shape) == 4 and x.shape[1] % 4 == 0:
        batch, channels, height, width = x.shape
        shape = (batch, channels // 4, 2 * height, 2 * width)
        m.add("DepthToSpace", [x.name], shape, blocksize=2, mode=m.pick("DCR", "CRD"))


def space_to_depth(m: Maker, x: Tensor) -> None:
    if len(x.shape) == 4 and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        batch, channels, height, width = x.shape
        m.add("SpaceToDepth", [x.name], (batch, 4 * channels, height // 2, width // 2), blocksize=2)


def identity(m: Maker, x: Tensor) -> None:
    op_type = m.pick("Identity", "Dropout", "Cast")
    m.add(op_type, [x.name], x.shape, **({"to": TensorProto.DOUBLE} if op_type == "Cast" else {}))


def scatter(m: Maker, x: Tensor) -> None:
    """All elements along an axis are added up at one place of zeros, or of another value."""
    (shape,) = m.add("Shape", [x.name], (len(x.shape),), keep=False)
    (places,) = m.add("Expand", [m.integers(0), shape.name], x.shape, keep=False)
    (base,) = m.add("Expand", [m.constant(np.zeros(1)), shape.name], x.shape, keep=False)
    base = m.pick(base, m.partner(x, lambda other: other == x.shape))
    m.add("ScatterElements", [base.name, places.name, x.name], x.shape, axis=m.axis(x), reduction="add")


def choice(m: Maker, x: Tensor) -> None:
    """One of two values at each place, by their order or by a mask."""
    y = m.partner(x, lambda other: other == x.shape)
    op_type = m.pick("Max", "Min", "Where")
    mask = [m.constant(np.arange(x.shape[-1]) % 2 == 0)] if op_type == "Where" else []
    m.add(op_type, [*mask, x.name, y.name], x.shape)


MAPS = (conv, conv, matmul, matmul_left, gemm, conv_transpose)
AFFINES = (batch_norm, batch_norm, batch_norm, spelled_out)
MOVES = (
    activation, pool, reduction, two_values, two_values, concat, concat, split, slice_, gather, transpose, reshape,
    shape_of_another, channel_shuffle, flatten, squeeze, unsqueeze, expand, tile, pad, resize, depth_to_space,
    space_to_depth, identity, scatter, choice,
)  # fmt: skip
BRANCHES = (branches,)


def make(choose: Choose, most_steps: int = 8) -> onnx.ModelProto:
    """A model with one input, some outputs, and values that nothing reads.

    It begins with a linear map more often than not, and often ends with some that read what is new, so that affines
    have somewhere to go.
    """
    maker = Maker(choose, [])
    maker.values.append(Tensor("x", maker.pick(*SHAPES)))
    groups = [*maker.pick([MAPS], [MAPS, BRANCHES], [BRANCHES], [AFFINES])]
    groups += [maker.pick(MOVES, AFFINES, MOVES, MOVES, BRANCHES) for _ in range(maker.number(1, most_steps))]
    groups += maker.pick([], [MAPS], [MAPS, MAPS])
    spread = maker.pick((1,), (1,), (1, 1, 1, 1, 1, 2), (1, 1, 2, 3))
    for group in groups:
        # Mostly the newest value, so that chains form.
        source = maker.values[-min(maker.pick(*spread), len(maker.values))]
        maker.pick(*group)(maker, source)
    return finish(maker)


def of_seed(seed: int) -> onnx.ModelProto:
    """The model of a seed, the same every time; all choices are equally likely."""
    rng = np.random.default_rng(seed)
    return make(lambda count: int(rng.integers(count)))


@st.composite
def models(draw: Callable[..., int]) -> onnx.ModelProto:
    """The same as a strategy of hypothesis, which makes a failing model smaller."""
    return make(lambda count: draw(st.integers(0, count - 1)))


def finish(maker: Maker) -> onnx.ModelProto:
    """The model, with the last value and perhaps others as outputs, and perhaps an open batch."""
    symbolic = maker.values[0].shape[0] == BATCH and maker.pick(False, True)
    if len(maker.values) == 1:
        maker.add("Identity", ["x"], maker.values[0].shape)
    read = {name for node in maker.nodes for name in node.input}
    outputs = [value for value in maker.values[1:] if value is maker.values[-1] or _is_output(maker, value, read)]
    shape = maker.values[0].shape
    declared = ("N", *shape[1:]) if symbolic else shape
    graph = helper.make_graph(
        maker.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, declared)],
        [
            helper.make_tensor_value_info(y.name, TensorProto.DOUBLE, [None] * len(y.shape) if symbolic else y.shape)
            for y in outputs
        ],
        [tensor for tensor in maker.tensors if tensor.name in read],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", OPSET)])


def _is_output(maker: Maker, value: Tensor, read: set[str]) -> bool:
    return maker.number(0, 30) == 30 if value.name in read else maker.pick(False, False, True)
