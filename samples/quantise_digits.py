"""Quantise the digits network with onnxruntime, as it was, folded, and for each form of what a fold leaves.

    python samples/quantise_digits.py

Prints for each the accuracy on the held-out images and the relative L2 of the logits against the float original, with
a scale for each channel and with one scale a weight. What a fold leaves is made by having others read the convolutions.
Ends with exit code 1 if a quantised network sees fewer images right than the float one does, but for one.
"""

import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from digits import IMAGES, LABELS, MODEL, accuracy, relative_l2
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import bnfold


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """A hundred images, ten at a time."""

    def __init__(self) -> None:
        self.batches = iter(np.split(IMAGES[:100], 10))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch, as onnxruntime asks for it."""
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def with_other_readers(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its convolutions in front of a BatchNorm among its outputs."""
    convolved = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in convolved:
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    return model


def rows() -> Iterator[tuple[str, onnx.ModelProto]]:
    """A name and a model for each row."""
    original = onnx.load(MODEL)
    yield "as it was", original
    yield "folded", bnfold.fold(original).model
    read = with_other_readers(onnx.load(MODEL))
    for form in ("keep", "conv", "mul-add"):
        result = bnfold.fold(read, leftover=form)
        folded = result.model
        del folded.graph.output[1:]
        yield f"{result.plan.batch_norms_left} left, `--leftover {form}`", folded


def logits(path: Path) -> npt.NDArray[np.float32]:
    """What a file says of the held-out images, (360, 10)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(["logits"], {"image": IMAGES})[0]
    return found


def quantised(model: onnx.ModelProto, folder: Path, *, per_channel: bool) -> tuple[npt.NDArray[np.float32], int]:
    """The logits of a model that is quantised, and how often it quantises."""
    onnx.save(model, folder / "model.onnx")
    quantize_static(
        folder / "model.onnx",
        folder / "quantised.onnx",
        Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    nodes = onnx.load(folder / "quantised.onnx").graph.node
    return logits(folder / "quantised.onnx"), sum(node.op_type == "QuantizeLinear" for node in nodes)


def main() -> int:
    logging.disable(logging.WARNING)  # quantize_static advises to optimise first, which would fold BatchNorms
    reference = logits(MODEL)
    least = accuracy(reference) - 1.5 / len(LABELS)
    good = True
    print("| before quantising | accuracy | a scale for each channel | one scale a weight | QuantizeLinear |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, model in rows():
            found, count = quantised(model, Path(folder), per_channel=True)
            coarse, _ = quantised(model, Path(folder), per_channel=False)
            good = good and min(accuracy(found), accuracy(coarse)) >= least
            off, coarse_off = relative_l2(found, reference), relative_l2(coarse, reference)
            print(f"| {name} | {accuracy(found):.2%} | {off:.2%} | {coarse_off:.2%} | {count} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
