"""Chains of Conv, BatchNormalization and Relu with random weights, and their folds written out in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

EPSILON = 1e-5


@dataclass(frozen=True)
class Layer:
    """Parameters of one Conv (3×3, padded, no bias) with its BatchNorm, in float64 but exact in the storage dtype."""

    weight: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    def folded(self, epsilon: float = EPSILON) -> tuple[np.ndarray, np.ndarray]:
        """The definition: scale = gamma / sqrt(var + eps), W·scale and beta − scale·mean."""
        scale = self.gamma / np.sqrt(self.var + epsilon)
        return self.weight * scale[:, None, None, None], self.beta - scale * self.mean


def random_layers(
    depth: int, channels: int = 8, *, dtype: str = "float32", seed: int = 0, gain: float = 1.0
) -> list[Layer]:
    """Layers whose activations keep about their size; the first takes 3 channels."""
    rng = np.random.default_rng(seed)
    layers = []
    for index in range(depth):
        inputs = 3 if index == 0 else channels
        arrays = (
            rng.standard_normal((channels, inputs, 3, 3)) * np.sqrt(2 / (inputs * 9)),
            gain * rng.uniform(0.5, 1.5, channels),
            rng.standard_normal(channels) * 0.3,
            rng.standard_normal(channels) * 0.3,
            rng.uniform(0.3, 2.0, channels),
        )
        layers.append(Layer(*(array.astype(numpy_type(dtype)).astype(np.float64) for array in arrays)))
    return layers


def numpy_type(name: str) -> np.dtype:
    """A NumPy dtype by name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def original(layers: Sequence[Layer], *, dtype: str = "float32", head: Callable[[str], list] | None = None):
    """Conv → BatchNormalization → Relu, and so on; no Relu after the last."""
    tensors, nodes, value = [], [], "x"
    for index, layer in enumerate(layers):
        names = {key: f"{key}{index}" for key in ("weight", "gamma", "beta", "mean", "var")}
        tensors += [_tensor(getattr(layer, key), name, dtype) for key, name in names.items()]
        parameters = [names[key] for key in ("gamma", "beta", "mean", "var")]
        nodes.append(_conv(value, f"conv{index}", [names["weight"]]))
        nodes.append(
            helper.make_node("BatchNormalization", [f"conv{index}", *parameters], [f"bn{index}"], epsilon=EPSILON)
        )
        value = _activated(nodes, f"bn{index}", last=index == len(layers) - 1)
    return _model(nodes, tensors, dtype, head(value) if head else [])


def folded(
    layers: Sequence[Layer],
    *,
    dtype: str = "float32",
    epsilon: float = EPSILON,
    twice: int | None = None,
    head: Callable[[str], list] | None = None,
):
    """The same network with every BatchNorm in its Conv.

    Args:
        layers: Its layers.
        dtype: Storage type.
        epsilon: The epsilon to fold with.
        twice: A layer whose BatchNorm is folded in a second time.
        head: Makes further nodes.
    """
    tensors, nodes, value = [], [], "x"
    for index, layer in enumerate(layers):
        weight, bias = layer.folded(epsilon)
        if twice == index:
            scale = layer.gamma / np.sqrt(layer.var + epsilon)
            weight, bias = weight * scale[:, None, None, None], layer.beta + scale * (bias - layer.mean)
        tensors += [_tensor(weight, f"weight{index}", dtype), _tensor(bias, f"bias{index}", dtype)]
        nodes.append(_conv(value, f"bn{index}", [f"weight{index}", f"bias{index}"]))
        value = _activated(nodes, f"bn{index}", last=index == len(layers) - 1)
    return _model(nodes, tensors, dtype, head(value) if head else [])


def changed(layers: Sequence[Layer], index: int, **arrays: np.ndarray) -> list[Layer]:
    """The layers with other parameters in one of them."""
    return [replace(layer, **arrays) if place == index else layer for place, layer in enumerate(layers)]


def _activated(nodes: list[onnx.NodeProto], value: str, *, last: bool) -> str:
    nodes.append(helper.make_node("Identity" if last else "Relu", [value], ["y" if last else f"relu_{value}"]))
    return nodes[-1].output[0]


def _conv(value: str, output: str, parameters: list[str]) -> onnx.NodeProto:
    return helper.make_node("Conv", [value, *parameters], [output], pads=[1, 1, 1, 1])


def _tensor(array: np.ndarray, name: str, dtype: str) -> onnx.TensorProto:
    return numpy_helper.from_array(array.astype(numpy_type(dtype)), name)


def _model(nodes: list, tensors: list, dtype: str, head: list) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(numpy_type(dtype))
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    for node in head:
        integer = node.op_type == "ArgMax"
        outputs.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT64 if integer else kind, None))
    graph = helper.make_graph(
        [*nodes, *head], "chain", [helper.make_tensor_value_info("x", kind, ["N", 3, 16, 16])], outputs, tensors
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
