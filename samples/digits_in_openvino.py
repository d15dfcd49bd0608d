"""Run the digits network in OpenVINO, as it was and folded.

    pip install '.[samples]'
    python samples/digits_in_openvino.py

Prints the operations of both as they are read, the accuracy on the held-out images, and how far the logits differ. Ends
with exit code 1 if any image is seen otherwise, or if the logits differ by more than float32 rounds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import openvino
from digits import IMAGES, MODEL, accuracy, relative_l2

import bnfold


def main() -> int:
    core = openvino.Core()
    logits = []
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "digits_folded.onnx"
        bnfold.fold(MODEL, verify=True).save(folded)
        for name, path in (("as it was", MODEL), ("folded", folded)):
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            logits.append(compiled(IMAGES)[0])
            print(f"{name}: {len(model.get_ops())} operations, accuracy {accuracy(logits[-1]):.2%}")
    original, other = logits
    print(f"largest difference of the logits: {np.max(np.abs(original - other)):.1e}")
    same = np.array_equal(original.argmax(axis=1), other.argmax(axis=1))
    return 0 if same and relative_l2(other, original) < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
