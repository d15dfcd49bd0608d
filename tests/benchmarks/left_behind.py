"""How many BatchNorms each tool leaves in the same files.

    python tests/benchmarks/left_behind.py [--networks NAME ...]

The files are `tests/moving_networks.py`, by both exporters, with a fixed and with an open batch, and `tests/zoo.py` in
the two variants that keep every BatchNormalization. Counted are BatchNormalization nodes, those of nested graphs and
functions included. For bnfold that is what its plan leaves, whatever is written instead; no tool is told the shapes.
onnxruntime counts twice: with all optimisations it writes a BN that it could not fold as a depthwise Conv in a layout
of its own, so that fewer are counted than stay.
A dash: the exporter, or the tool, fails on the file.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
import onnx
import onnxruntime
import onnxscript.optimizer
import onnxscript.rewriter
import zoo
from exporters import Exporter, Variant, export, quiet
from moving_networks import NETWORKS
from versions import versions

import bnfold


def count(model: onnx.ModelProto) -> int:
    return len(zoo.batch_norms(model))


def left_by_bnfold(path: Path) -> int:
    return bnfold.inspect(path).batch_norms_left


def left_by_onnxruntime(path: Path, level: str = "ORT_ENABLE_EXTENDED") -> int:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path.with_suffix(".ort.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return count(onnx.load(options.optimized_model_filepath))


def left_by_onnxscript(path: Path) -> int:
    return count(onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(onnx.load(path))))


def left_by_onnxslim(path: Path) -> int:
    import onnxslim

    return count(onnxslim.slim(onnx.load(path)))


TOOLS: dict[str, Callable[[Path], int]] = {
    "bnfold": left_by_bnfold,
    "onnxruntime": left_by_onnxruntime,
    "onnxruntime, all": lambda path: left_by_onnxruntime(path, "ORT_ENABLE_ALL"),
    "onnxscript": left_by_onnxscript,
    "onnxslim": left_by_onnxslim,
}


def files(folder: Path, names: list[str]) -> Iterator[tuple[str, Path]]:
    """Each file with its name, made just before it is needed."""
    for network in NETWORKS:
        if names and network.name not in names:
            continue
        built = network.build()
        for exporter in Exporter:
            for dynamic_batch in (False, True):
                path = folder / "model.onnx"
                export(built, path, exporter=exporter, constant_folding=False, dynamic_batch=dynamic_batch)
                yield f"{network.name}, {exporter}, {'dynamic' if dynamic_batch else 'static'}", path
    for model in zoo.ZOO:
        if names and model.name not in names:
            continue
        paths = zoo.export_all(model, model.build(), folder)
        for variant in (Variant.TORCHSCRIPT_RAW, Variant.DYNAMO_RAW):
            if variant in paths:
                yield f"{model.name}, {variant}", paths[variant]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[])
    arguments = parser.parse_args()
    sums: Counter[str] = Counter()
    print(f"{versions()}\n\n| file | BN | {' | '.join(TOOLS)} |\n|---|---|{'---|' * len(TOOLS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(Path(folder), arguments.networks):
            before = count(onnx.load(path))
            left = {}
            for tool, run in TOOLS.items():
                try:
                    with quiet():
                        left[tool] = run(path)
                except Exception:  # noqa: BLE001 - a peer that fails on a file leaves all of it
                    left[tool] = None
            sums.update({"BN": before, **{tool: before if n is None else n for tool, n in left.items()}})
            cells = " | ".join("–" if n is None else str(n) for n in left.values())
            print(f"| {name} | {before} | {cells} |", flush=True)
    print(f"| all, a failure counted as all left | {sums['BN']} | {' | '.join(str(sums[tool]) for tool in TOOLS)} |")


if __name__ == "__main__":
    main()
