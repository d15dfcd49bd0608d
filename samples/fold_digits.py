"""Fold the BatchNorm of a trained network, from the command line and from Python, and compare accuracies.

    python samples/fold_digits.py [OUT_DIR]

Writes digits_folded.onnx (command line) and digits_folded_api.onnx (Python) into OUT_DIR, a temporary folder
by default. Ends with exit code 0 if no BatchNorm is left, the proof passed and every test image is classified
as before, otherwise with 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

import bnfold

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits_resnet.onnx"


def fold_from_command_line(folded: Path) -> bool:
    """`bnfold fold MODEL -o FOLDED`: folds, verifies, and writes only what passed."""
    # The command of this Python's environment first, which need not be activated.
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    bnfold_command = shutil.which("bnfold", path=places)
    if bnfold_command is None:
        print("the command bnfold is not installed; run `pip install -e .` in the repository", file=sys.stderr)
        return False
    arguments = ["fold", str(MODEL), "-o", str(folded)]
    print("$ bnfold", *arguments, flush=True)
    return subprocess.run([bnfold_command, *arguments], check=False).returncode == 0


def fold_from_python(folded: Path) -> bool:
    """The same in four lines."""
    result = bnfold.fold(MODEL)
    result.save(folded)
    report = bnfold.verify(MODEL, folded)
    print(f"{len(result.plan.folds)} folded, {len(result.plan.left)} left")
    print(report.summary_line())
    return bool(report.verdict == "pass")


def batch_norm_count(path: Path) -> int:
    """The number of BatchNormalization nodes in the file."""
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def predictions(path: Path) -> npt.NDArray[np.int64]:
    """The digit that the model sees in every test image, shape (360,)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.load(HERE / "digits_test_images.npy").astype(np.float32)[:, None]
    (logits,) = session.run(["logits"], {"image": images})
    seen: npt.NDArray[np.int64] = np.argmax(logits, axis=1)
    return seen


def compare(folded_files: list[Path]) -> bool:
    """Print BatchNorm count and accuracy of all files; true if none is left and predictions are the same."""
    labels = np.load(HERE / "digits_test_labels.npy")
    expected = predictions(MODEL)
    print(f"{'file':24} {'BatchNorm':>9} {'accuracy':>9}")
    good = True
    for path in [MODEL, *folded_files]:
        predicted = predictions(path)
        remaining = batch_norm_count(path)
        print(f"{path.name:24} {remaining:9} {np.mean(predicted == labels):9.2%}")
        if path != MODEL:
            good = good and remaining == 0 and np.array_equal(predicted, expected)
    return good


def run(out_dir: Path) -> int:
    out_dir.mkdir(parents=True, exist_ok=True)
    by_command, by_api = out_dir / "digits_folded.onnx", out_dir / "digits_folded_api.onnx"

    print("1. from the command line")
    if not fold_from_command_line(by_command):
        return 1
    print("\n2. from Python")
    proved = fold_from_python(by_api)
    print("\n3. before and after")
    same = compare([by_command, by_api])
    print("\nall good" if proved and same else "\nNOT as expected")
    return 0 if proved and same else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Fold, verify and compare the digits network.")
    parser.add_argument("out_dir", nargs="?", type=Path, help="folder for the folded files (default: a temporary one)")
    out_dir: Path | None = parser.parse_args().out_dir
    if out_dir is not None:
        return run(out_dir)
    with tempfile.TemporaryDirectory() as temporary:
        return run(Path(temporary))


if __name__ == "__main__":
    sys.exit(main())
