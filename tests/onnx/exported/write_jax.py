"""Writes the jax_*.onnx files beside it: small networks of Flax, exported by jax2onnx, with random weights.

    pip install jax2onnx flax 'jax[cpu]'
    python tests/onnx/exported/write_jax.py

jax2onnx declares shapes of constants, and where it has removed a pair of Transposes the shapes from before.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
from flax import nnx
from jax import Array
from jax2onnx import to_onnx


class Plain(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, strides=2, rngs=rngs)
        self.point = nnx.Conv(8, 12, (1, 1), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(n, use_running_average=True, rngs=rngs) for n in (8, 8, 12)])
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.norms[0](self.stem(x)))
        x = nnx.silu(self.norms[1](self.depth(x)))
        return self.head(jnp.mean(self.norms[2](self.point(x)), (1, 2)))


class Before(nnx.Module):
    """Batch norms before the layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.last = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Conv(8, 8, (3, 3), padding="VALID", rngs=rngs)
        self.point = nnx.Conv(8, 8, (1, 1), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(8, use_running_average=True, rngs=rngs) for _ in range(2)])
        self.pooled = nnx.BatchNorm(8, use_running_average=True, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.stem(x)
        x = x + self.point(nnx.relu(self.norms[0](x)))
        x = self.last(self.norms[1](nnx.gelu(x)))
        x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        return self.head(self.pooled(jnp.mean(x, (1, 2))))


class Dense(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(6, 8, use_bias=False, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.unscaled = nnx.BatchNorm(8, use_running_average=True, use_scale=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.last(nnx.tanh(self.unscaled(self.second(nnx.relu(self.norm(self.first(x)))))))


NETWORKS = {"plain": (Plain, (16, 16, 3)), "before": (Before, (16, 16, 3)), "dense": (Dense, (6,))}


def randomise(model: nnx.Module) -> None:
    """Gives every batch norm statistics as training leaves them."""
    rng = np.random.default_rng(1)
    for _, layer in nnx.iter_graph(model):
        if isinstance(layer, nnx.BatchNorm):
            for weight, positive in ((layer.scale, 1), (layer.bias, 0), (layer.mean, 0), (layer.var, 1)):
                if weight is not None and weight.get_value() is not None:
                    drawn = rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.3, weight.shape)
                    weight.set_value(jnp.asarray(drawn, jnp.float32))


def main() -> None:
    for name, (kind, shape) in NETWORKS.items():
        model = kind(nnx.Rngs(0))
        randomise(model)
        path = Path(__file__).with_name(f"jax_{name}.onnx")
        onnx.save(to_onnx(model, [("B", *shape)], model_name=name), path)


if __name__ == "__main__":
    main()
