"""The digits network and its held-out images, for the samples that hand it to other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

if TYPE_CHECKING:
    from train_digits import DigitsNet

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits_resnet.onnx"
IMAGES: npt.NDArray[np.float32] = np.load(HERE / "digits_test_images.npy").astype(np.float32).reshape(-1, 1, 8, 8)
LABELS: npt.NDArray[np.uint8] = np.load(HERE / "digits_test_labels.npy")


def trained_net() -> "DigitsNet":
    """The module that the file was exported from, with the weights of the file."""
    import torch
    from train_digits import DigitsNet

    net = DigitsNet().eval()
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(MODEL).graph.initializer}
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    net.load_state_dict({name: torch.from_numpy(stored[name].copy()) for name in names}, strict=False)
    return net


def accuracy(logits: npt.NDArray[np.float32]) -> float:
    """The share of the held-out images that are seen as what they are, of logits (360, 10)."""
    return float(np.mean(logits.argmax(axis=1) == LABELS))


def relative_l2(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """How far logits are from the reference, as a share of its length."""
    return float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
