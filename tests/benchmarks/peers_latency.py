"""How long a runtime takes for the file that each tool makes of the same model, all of its own optimisations on.

    python tests/benchmarks/peers_latency.py [--runtime onnxruntime|openvino] [--networks NAME ...] [--runs 40]

The files are ten networks of `tests/support/networks/zoo.py`, written by torch's newer exporter without its optimiser,
as it is before anybody has folded anything. One thread, one image at a time, the tools in turns, each run twice; the
shortest second run counts, as CPU time. Shown are ratios to the best of the other tools: above 1.05 bnfold's file is
the slower one. A dash: the tool fails on the file.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import onnxscript.rewriter
import zoo
from exporters import Exporter, Variant, export, quiet
from versions import versions

import bnfold

NETWORKS = 10


def by_bnfold(source: Path, target: Path) -> None:
    bnfold.fold(source).save(target)


def by_onnxscript(source: Path, target: Path) -> None:
    onnx.save(onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(onnx.load(source))), target)


def by_onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def as_it_is(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "bnfold": by_bnfold,
    "onnxscript": by_onnxscript,
    "onnxslim": by_onnxslim,
    "nobody": as_it_is,
}


Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], object]


def in_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def in_openvino(path: Path) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", settings).create_infer_request().infer


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def feeds(model: onnx.ModelProto) -> Feeds:
    rng = np.random.default_rng(0)
    shapes = {
        given.name: [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim] for given in model.graph.input
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def shortest(runs: dict[str, Run], given: Feeds, times: int) -> dict[str, float]:
    """CPU seconds of the shortest run of each."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(times):
        for tool, run in runs.items():
            run(given)  # what another one has left in the caches is no merit of it
            start = time.process_time()
            run(given)
            best[tool] = min(best[tool], time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime")
    parser.add_argument("--networks", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    files = [model for model in zoo.ZOO if Variant.DYNAMO_RAW not in model.failures]
    chosen = [model for model in files if not arguments.networks or model.name in arguments.networks]
    print(f"{arguments.runtime}; {versions()}\n\n| file | {' | '.join(TOOLS)} | bnfold / best other |")
    print(f"|---|{'---|' * (len(TOOLS) + 1)}")
    for model in chosen if arguments.networks else chosen[:NETWORKS]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            export(model.build(), source, exporter=Exporter.DYNAMO, constant_folding=False)
            runs = {}
            for tool, write in TOOLS.items():
                target = Path(folder) / f"{tool}.onnx"
                try:
                    with quiet():
                        write(source, target)
                    runs[tool] = RUNTIMES[arguments.runtime](target)
                except Exception:  # noqa: BLE001 - a peer that fails on a file is no peer there
                    continue
            best = shortest(runs, feeds(onnx.load(source)), arguments.runs)
            cells = [f"{best[tool] * 1e3:.2f} ms" if tool in best else "–" for tool in TOOLS]
            others = [seconds for tool, seconds in best.items() if tool != "bnfold"]
            ratio = f"{best['bnfold'] / min(others):.2f}" if others and "bnfold" in best else "–"
            print(f"| {model.name} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
