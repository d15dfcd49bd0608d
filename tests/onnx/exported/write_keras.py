"""Writes the keras_*.onnx files beside it: small networks of Keras, exported by tf2onnx, with random weights.

    pip install tensorflow-cpu tf2onnx
    python tests/onnx/exported/write_keras.py

TensorFlow folds what it can before tf2onnx sees it, writes the other batch norms as Mul and Add on channels that come
last, and unrolls TimeDistributed over its steps.
"""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import KerasTensor, layers

Network = Callable[[KerasTensor], KerasTensor]


def _normed(x: KerasTensor, activation: str) -> KerasTensor:
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def efficientnet(x: KerasTensor) -> KerasTensor:
    x = layers.Rescaling(1 / 127.5, -1)(x)
    short = x = _normed(layers.Conv2D(6, 3, 2, "same", use_bias=False)(x), "swish")
    x = _normed(layers.Conv2D(12, 1, use_bias=False)(x), "swish")
    x = _normed(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x), "swish")
    gate = layers.Reshape((1, 1, 12))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(12, 1, activation="sigmoid")(layers.Conv2D(3, 1, activation="swish")(gate))
    x = layers.BatchNormalization()(layers.Conv2D(6, 1, use_bias=False)(layers.Multiply()([x, gate])))
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Add()([short, x])))


def mobilenet(x: KerasTensor) -> KerasTensor:
    x = layers.Conv2D(6, 3, 2, use_bias=False)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    x = _normed(layers.SeparableConv2D(8, 3, padding="same")(x), "hard_swish")
    return layers.Flatten()(layers.Conv2D(4, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x)))


def resnet_v2(x: KerasTensor) -> KerasTensor:
    x = layers.Conv2D(8, 3, 2)(layers.ZeroPadding2D(1)(x))
    for down in (True, False):
        normed = _normed(x, "relu")
        y = _normed(layers.Conv2D(4, 1, use_bias=False)(normed), "relu")
        y = _normed(layers.Conv2D(4, 3, use_bias=False)(layers.ZeroPadding2D(1)(y)), "relu")
        x = layers.Add()([layers.Conv2D(8, 1)(normed) if down else x, layers.Conv2D(8, 1)(y)])
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(_normed(x, "relu")))


def densenet(x: KerasTensor) -> KerasTensor:
    x = _normed(layers.Conv2D(8, 3, padding="same", use_bias=False)(x), "relu")
    y = _normed(layers.Conv2D(8, 1, use_bias=False)(_normed(x, "relu")), "relu")
    x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", use_bias=False)(y)])
    x = layers.AveragePooling2D(2, 2)(layers.Conv2D(6, 1, use_bias=False)(_normed(x, "relu")))
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)))


def time_distributed(x: KerasTensor) -> KerasTensor:
    x = layers.TimeDistributed(layers.Conv2D(4, 3, padding="same"))(x)
    x = layers.ReLU()(layers.TimeDistributed(layers.BatchNormalization())(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.TimeDistributed(layers.Conv2D(4, 3))(x)))
    return layers.Dense(3)(layers.LSTM(2)(layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)))


def signal(x: KerasTensor) -> KerasTensor:
    x = _normed(layers.Conv1D(8, 5, padding="same")(x), "relu")
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(layers.Conv1D(8, 3, padding="causal")(x)))
    x = layers.Conv1D(4, 3)(layers.BatchNormalization(center=False)(layers.MaxPooling1D(2)(x)))
    return layers.Dense(3)(layers.Dropout(0.5)(_normed(layers.Dense(8)(layers.Flatten()(x)), "relu")))


def unet(x: KerasTensor) -> KerasTensor:
    across = _normed(layers.Conv2D(6, 3, padding="same")(x), "relu")
    x = layers.LeakyReLU()(
        layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(across)))
    )
    x = layers.BatchNormalization()(layers.Conv2DTranspose(6, 3, 2, "same")(x))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(layers.Concatenate()([across, x])))
    x = layers.BatchNormalization()(layers.UpSampling2D()(layers.PReLU(shared_axes=[1, 2])(x)))
    return layers.Conv2D(2, 1, activation="softmax")(x)


def dense(x: KerasTensor) -> KerasTensor:
    x = _normed(layers.Dense(8)(layers.Normalization(mean=[1.0] * 6, variance=[2.0] * 6)(x)), "relu")
    x = _normed(layers.Dense(8, use_bias=False)(layers.BatchNormalization()(x)), "tanh")
    return layers.Dense(2)(layers.LayerNormalization()(x))


def volume(x: KerasTensor) -> KerasTensor:
    x = _normed(layers.Conv3D(4, 3, padding="same", use_bias=False)(x), "relu")
    return layers.Dense(3)(
        layers.GlobalAveragePooling3D()(layers.BatchNormalization()(layers.Conv3D(4, 3, use_bias=False)(x)))
    )


def dilated(x: KerasTensor) -> KerasTensor:
    x = _normed(layers.Conv2D(6, 3, padding="same", dilation_rate=2, use_bias=False)(x), "relu")
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", depth_multiplier=2)(x))
    return layers.Conv2D(2, 1)(layers.Resizing(20, 20)(x))


IMAGE = (16, 16, 3)
NETWORKS: dict[Network, tuple[int, ...]] = {
    efficientnet: IMAGE,
    mobilenet: IMAGE,
    resnet_v2: IMAGE,
    densenet: IMAGE,
    time_distributed: (3, 10, 10, 3),
    signal: (32, 4),
    unet: IMAGE,
    dense: (6,),
    volume: (6, 8, 8, 2),
    dilated: IMAGE,
}


def randomise(model: keras.Model) -> None:
    """Gives every batch norm statistics as training leaves them."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                positive = weight.name in ("gamma", "moving_variance")
                drawn = rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.3, weight.shape)
                weight.assign(drawn)


def main() -> None:
    for network, shape in NETWORKS.items():
        keras.utils.set_random_seed(0)
        given = layers.Input(shape)
        model = keras.Model(given, network(given))
        randomise(model)
        signature = [tf.TensorSpec((None, *shape), tf.float32, name="x")]
        function = tf.function(lambda x, model=model: model(x, training=False), input_signature=signature)
        path = Path(__file__).with_name(f"keras_{network.__name__}.onnx")
        tf2onnx.convert.from_function(function, signature, opset=15, output_path=str(path))


if __name__ == "__main__":
    main()
