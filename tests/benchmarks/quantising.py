"""What the static quantisation of onnxruntime is off by, with BatchNorms, folded, and for each form of what is left.

    python tests/benchmarks/quantising.py

Prints the table in docs/recipes.md, for samples/digits_resnet.onnx and its held-out images: accuracy, and the relative
L2 of the logits against the float original. What is left is made by having others read the convolutions.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import bnfold

SAMPLES = Path(__file__).parents[2] / "samples"
IMAGES = np.load(SAMPLES / "digits_test_images.npy").astype(np.float32)[:, None]
LABELS = np.load(SAMPLES / "digits_test_labels.npy")


class Calibration(CalibrationDataReader):
    """A hundred images, ten at a time."""

    def __init__(self):
        self.batches = iter(np.split(IMAGES[:100], 10))

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def with_other_readers(model):
    """The model with its convolutions in front of a BatchNorm among its outputs."""
    convolved = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in convolved:
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    return model


def rows():
    """A name and a model for each row."""
    original = onnx.load(SAMPLES / "digits_resnet.onnx")
    yield "as it was", original
    yield "folded", bnfold.fold(original).model
    read = with_other_readers(onnx.load(SAMPLES / "digits_resnet.onnx"))
    for form in ("keep", "conv", "mul-add"):
        result = bnfold.fold(read, leftover=form)
        folded = result.model
        del folded.graph.output[1:]
        yield f"{result.plan.batch_norms_left} left, `--leftover {form}`", folded


def logits(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": IMAGES})[0]


def quantised(model, folder, *, per_channel):
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


def main():
    reference = logits(SAMPLES / "digits_resnet.onnx")
    print("| before quantising | accuracy | a scale for each channel | one scale a weight | QuantizeLinear |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, model in rows():
            found, count = quantised(model, Path(folder), per_channel=True)
            coarse, _ = quantised(model, Path(folder), per_channel=False)
            off, coarse_off = (np.linalg.norm(x - reference) / np.linalg.norm(reference) for x in (found, coarse))
            accuracy = np.mean(found.argmax(1) == LABELS)
            print(f"| {name} | {100 * accuracy:.2f} % | {100 * off:.2f} % | {100 * coarse_off:.2f} % | {count} |")


if __name__ == "__main__":
    main()
