"""Train a small residual CNN with BatchNorm on scikit-learn's digits and export it, BatchNorm included.

    python samples/train_digits.py [OUT_DIR]

Writes three files into OUT_DIR (the folder of this script by default):

    digits_resnet.onnx      input "image" float32 (batch, 1, 8, 8), pixels 0 to 16; "logits" (batch, 10)
    digits_test_images.npy  the held-out fifth of the data: uint8 (360, 8, 8)
    digits_test_labels.npy  uint8 (360,)

Needs torch, onnx, onnxscript and scikit-learn (which ships the data): `pip install -e '.[test]'`. About half
a minute on two CPU cores. The seed is fixed; another version of torch, another CPU or another number of
threads rounds differently on the way and ends with slightly different weights.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
EPOCHS = 40
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 4e-3


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is projected where the shape changes.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution and of the projection.
        groups: Groups of the second convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, H, W) to (batch, channels, H / stride, W / stride)."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class SeparableBlock(nn.Module):
    """A depthwise 3×3 and a pointwise convolution, added to their input without an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        # With a bias of its own, as many hand-written models have it in front of a BatchNorm.
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) to the same shape."""
        inner = functional.relu(self.bn1(self.depthwise(x)))
        return x + self.bn2(self.pointwise(inner))


class DigitsNet(nn.Module):
    """A network that has BatchNorm in all the places where its neighbour can take it in.

    After a dense, strided, grouped, depthwise, pointwise and transposed convolution and after a linear layer
    (these fold backward), before convolutions without padding and before a linear layer (these fold forward).
    The stem and the hidden layer have one on either side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1)  # takes raw pixels, so that the file needs no preprocessing
        self.stem = nn.Conv2d(1, 32, 3, bias=False)
        self.stem_bn = nn.BatchNorm2d(32)
        self.shallow = ResidualBlock(32, 32)
        self.deep = nn.Sequential(ResidualBlock(32, 64, stride=2, groups=4), SeparableBlock(64))
        self.transition_bn = nn.BatchNorm2d(64)
        self.transition = nn.Conv2d(64, 48, 1)
        self.upsample = nn.ConvTranspose2d(48, 48, 2, stride=2, bias=False)
        self.upsample_bn = nn.BatchNorm2d(48)
        self.lateral = nn.Conv2d(32, 48, 1, bias=False)
        self.lateral_bn = nn.BatchNorm2d(48)
        self.neck_bn = nn.BatchNorm1d(48)
        self.hidden = nn.Linear(48, 64)
        self.hidden_bn = nn.BatchNorm1d(64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 8, 8) with pixels 0 to 16, to the logits (batch, 10)."""
        stem = functional.relu(self.stem_bn(self.stem(self.input_norm(image))))  # 6×6
        shallow = self.shallow(stem)
        deep = functional.relu(self.transition(self.transition_bn(self.deep(shallow))))  # 3×3
        fused = self.upsample_bn(self.upsample(deep)) + self.lateral_bn(self.lateral(shallow))  # 6×6
        pooled = functional.relu(fused).mean(dim=(2, 3))
        hidden = functional.relu(self.hidden_bn(self.hidden(self.neck_bn(pooled))))
        return self.classifier(hidden)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by −1, 0 or +1 pixels on each axis; (n, 1, 8, 8) to the same shape."""
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # (n, 1, 3, 3, 8, 8)
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    """A network trained on images (n, 1, 8, 8) float32 and labels (n,) int64, in evaluation mode."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    net = DigitsNet()
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        losses = []
        # The last, incomplete batch is dropped: statistics of a handful of images are noise.
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            logits = net(shifted(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {np.mean(losses):.4f}")
    return net.eval()


def export(net: DigitsNet, test_accuracy: float) -> onnx.ModelProto:
    """The network as an ONNX model that still has its BatchNormalization nodes."""
    # optimize=False is what keeps them: the optimiser of torch.onnx.export folds BatchNorm where it can.
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    model = without_traces(program.model_proto)
    onnx.helper.set_model_props(
        model, {"data": "scikit-learn digits, pixels 0 to 16", "test_accuracy": f"{test_accuracy:.6f}"}
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without the exporter's notes, which hold stack traces with paths of this machine."""
    graph = model.graph
    scopes = [model, graph, *model.functions]
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for holder in [*scopes, *nodes, *values]:
        del holder.metadata_props[:]
        holder.doc_string = ""
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the digits network.")
    parser.add_argument("out_dir", nargs="?", type=Path, default=Path(__file__).parent)
    out_dir: Path = parser.parse_args().out_dir
    out_dir.mkdir(parents=True, exist_ok=True)

    # here, and not above: the samples that take the network alone need no scikit-learn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        digits.images.astype(np.uint8),
        digits.target.astype(np.uint8),
        test_size=0.2,
        stratify=digits.target,
        random_state=SEED,
    )
    net = train(torch.from_numpy(train_images).float()[:, None], torch.from_numpy(train_labels).long())
    with torch.no_grad():
        logits = net(torch.from_numpy(test_images).float()[:, None])
    test_accuracy = float((logits.argmax(dim=1).numpy() == test_labels).mean())
    print(f"accuracy on {len(test_labels)} held-out images: {test_accuracy:.2%}")

    path = out_dir / "digits_resnet.onnx"
    onnx.save(export(net, test_accuracy), path)
    np.save(out_dir / "digits_test_images.npy", test_images)
    np.save(out_dir / "digits_test_labels.npy", test_labels)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
