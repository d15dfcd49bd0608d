"""Writes the paddle_*.onnx files beside it: small networks of PaddlePaddle, exported by paddle2onnx.

    pip install paddlepaddle paddle2onnx packaging
    python tests/onnx/exported/write_paddle.py

paddle2onnx keeps every BatchNormalization, writes biases as Add behind a Conv, and weights as Identity of constants.
"""

from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional


class ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int | tuple[int, int] = 1, groups: int = 1):
        conv = nn.Conv2D(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias_attr=False)
        super().__init__(conv, nn.BatchNorm2D(outputs))


class LcNet(nn.Layer):
    """A block of PP-LCNet: depthwise, a gate, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.point = ConvNorm(3, 8, 3, 2), ConvNorm(8, 8, 3, 1, 8), ConvNorm(8, 12, 1)
        self.squeeze, self.excite, self.head = nn.Conv2D(8, 4, 1), nn.Conv2D(4, 8, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.depth(functional.hardswish(self.stem(x))))
        gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1))))
        x = functional.hardswish(self.point(x * functional.hardsigmoid(gate, slope=0.2, offset=0.5)))
        return self.head(x.mean([2, 3]))


class OneNumber(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.create_parameter([1], default_initializer=nn.initializer.Constant(1.3))
        self.shift = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class Branches(nn.Layer):
    """PP-LCNetV3's layer as it is trained: branches that add up, and numbers before and behind the activation."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.same = nn.BatchNorm2D(channels) if stride == 1 else None
        kernels = (3, 3, 1)
        self.branches = nn.LayerList([ConvNorm(channels, channels, kernel, stride) for kernel in kernels])
        self.before, self.behind = OneNumber(), OneNumber()

    def forward(self, x: Tensor) -> Tensor:
        y = sum(branch(x) for branch in self.branches)
        y = y if self.same is None else y + self.same(x)
        return self.behind(functional.hardswish(self.before(y)))


class LcNetV3(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(3, 6, 3, 2), nn.ReLU(), Branches(6, 1), Branches(6, 2), nn.Conv2D(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Detection(nn.Layer):
    """The head of PP-OCR's text detection: transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.norm = ConvNorm(3, 8, 3), nn.Conv2DTranspose(8, 8, 2, 2), nn.BatchNorm2D(8)
        self.last = nn.Conv2DTranspose(8, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.sigmoid(self.last(functional.relu(self.norm(self.up(functional.relu(self.stem(x)))))))


class Recognition(nn.Layer):
    """Text recognition: an image that becomes a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = ConvNorm(3, 8, 3, (2, 1)), ConvNorm(8, 8, 3, (2, 1))
        self.norm, self.layer_norm, self.head = nn.BatchNorm1D(8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(functional.relu(self.body(functional.swish(self.stem(x)))), [2, 2])
        x = self.norm(x.mean(2)).transpose([0, 2, 1])
        return functional.softmax(self.head(self.layer_norm(x)), -1)


class Pyramid(nn.Layer):
    """PP-YOLO's neck: what is upsampled is joined with what was before, and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.lateral = ConvNorm(3, 8, 3), ConvNorm(8, 8, 3, 2), ConvNorm(8, 8, 1)
        self.out, self.norm, self.head = ConvNorm(16, 8, 3), nn.BatchNorm2D(8), nn.Conv2D(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = functional.leaky_relu(self.fine(x), 0.1)
        up = functional.interpolate(self.lateral(functional.leaky_relu(self.coarse(fine), 0.1)), size=[16, 16])
        pooled = functional.max_pool2d(self.out(paddle.concat([fine, up], 1)), 3, 2, 1)
        return self.head(self.norm(pooled))


NETWORKS = {
    "lcnet": (LcNet, (3, 16, 16)),
    "lcnet_v3": (LcNetV3, (3, 16, 16)),
    "detection": (Detection, (3, 12, 12)),
    "recognition": (Recognition, (3, 8, 16)),
    "pyramid": (Pyramid, (3, 16, 16)),
}


def randomise(model: nn.Layer) -> None:
    """Gives every batch norm statistics as training leaves them."""
    rng = np.random.default_rng(1)
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm1D | nn.BatchNorm2D):
            for weight in (layer.weight, layer._variance):
                weight.set_value(rng.uniform(0.5, 1.5, weight.shape).astype(np.float32))
            for weight in (layer.bias, layer._mean):
                weight.set_value(rng.normal(0, 0.3, weight.shape).astype(np.float32))


def main() -> None:
    for name, (kind, shape) in NETWORKS.items():
        paddle.seed(0)
        model = kind()
        randomise(model)
        model.eval()
        given = paddle.static.InputSpec([-1, *shape], "float32", "x")
        path = Path(__file__).with_name(f"paddle_{name}")
        paddle.onnx.export(model, str(path), input_spec=[given], opset_version=14)


if __name__ == "__main__":
    main()
