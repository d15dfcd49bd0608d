"""The light models of the onnx package: real classification networks whose weights are all one constant.

Opset 9, IR version 3 (every initializer is a graph input as well); the weights are ConstantOfShape nodes, some of
BatchNorm's parameters initializers. Each comes with the output recorded for the input arange(n) / n.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import oracle
import oracle_ops
from onnx import ModelProto, NodeProto

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

# How many BatchNormalization nodes each has, and how many no exact rule for neighbours removes: densenet121 is
# pre-activation, so that half of its BNs read a Concat and write a Relu.
BATCH_NORMS = {"resnet50": (53, 0), "densenet121": (121, 62), "inception_v2": (69, 0), "shufflenet": (49, 0)}

MIN_VARIANCE = 1e-5


def load(name: str) -> ModelProto:
    return onnx.load(FOLDER / f"light_{name}.onnx")


def input_of(model: ModelProto) -> tuple[str, tuple[int, ...]]:
    """The name and shape of the one input that has no initializer."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in initialized)
    return value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def recorded(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The input, float32, and the output that belongs to it."""
    input_name, shape = input_of(load(name))
    count = int(np.prod(shape))
    proto = onnx.TensorProto.FromString((FOLDER / f"light_{name}_output_0.pb").read_bytes())
    image = (np.arange(count, dtype=np.float32) / np.float32(count)).reshape(shape)
    return {input_name: image}, onnx.numpy_helper.to_array(proto)


def random_image(model: ModelProto, seed: int) -> dict[str, np.ndarray]:
    name, shape = input_of(model)
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def random_weights(model: ModelProto, seed: int) -> ModelProto:
    """The same network with weights that a trained one could have, all of them initializers and graph inputs.

    Weights of convolutions and of the last layer keep the variance of their input; gammas (and the Mul that some
    models have behind a BatchNorm) have both signs and exact zeros; running statistics are those of the network's
    own activations on a random image.
    """
    rng = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    shapes = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in [node for node in result.graph.node if node.op_type == "ConstantOfShape"]:
        shape = onnx.numpy_helper.to_array(shapes[node.input[0]])
        _add_initializer(result, node.output[0], np.zeros(tuple(shape), np.float32))
        result.graph.node.remove(node)
    _remove_unused_initializers(result)

    floats = {t.name: t for t in result.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    statistics: dict[str, tuple[str, str]] = {}
    for node, slot, name in _roles(result):
        if name in floats:
            array = _draw(rng, node.op_type, slot, tuple(floats[name].dims))
            floats[name].CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        if node.op_type == "BatchNormalization":
            statistics[node.output[0]] = (node.input[3], node.input[4])
    for output, measured in _batch_statistics(result, random_image(model, seed)).items():
        for name, array in zip(statistics[output], measured, strict=True):
            floats[name].CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(result, full_check=True)
    return result


def _add_initializer(model: ModelProto, name: str, array: np.ndarray) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))


def _remove_unused_initializers(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
        for value in [value for value in model.graph.input if value.name == tensor.name]:
            model.graph.input.remove(value)


def _roles(model: ModelProto) -> Iterator[tuple[NodeProto, int, str]]:
    """Every (node, input position, initializer) of a model, seen through Unsqueeze."""
    origin = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Unsqueeze"}
    for node in model.graph.node:
        if node.op_type != "Unsqueeze":
            for slot, name in enumerate(node.input):
                yield node, slot, origin.get(name, name)


def _draw(rng: np.random.Generator, op_type: str, slot: int, shape: tuple[int, ...]) -> np.ndarray:
    is_scale = (op_type, slot) in {("BatchNormalization", 1), ("Mul", 0), ("Mul", 1)}
    if is_scale:
        signed = rng.uniform(0.5, 1.5, shape) * np.where(rng.random(shape) < 0.3, -1.0, 1.0)
        return np.where(rng.random(shape) < 0.05, 0.0, signed)
    if op_type == "Conv" and slot == 1:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if op_type == "Gemm" and slot == 1:
        return rng.standard_normal(shape) / np.sqrt(shape[1])
    return rng.standard_normal(shape) * 0.2


def _batch_statistics(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each BatchNormalization's input, when all before it already use theirs; by its output."""
    measured: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    class BatchNormalization(oracle_ops.BatchNormalization):
        def _run(
            self,
            x: np.ndarray,
            gamma: np.ndarray,
            beta: np.ndarray,
            mean: np.ndarray,
            var: np.ndarray,
            **attributes: float,
        ) -> tuple[np.ndarray, ...]:
            mean, var = x.mean(axis=(0, 2, 3)), np.maximum(x.var(axis=(0, 2, 3)), MIN_VARIANCE)
            measured[self.onnx_node.output[0]] = (mean, var)
            return super()._run(x, gamma, beta, mean, var, **attributes)

    oracle.evaluate(model, feeds, operators=[BatchNormalization])
    return measured
