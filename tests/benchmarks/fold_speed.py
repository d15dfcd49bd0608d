"""Time and peak memory of folding one file, whole process, beside what users would run instead.

    python tests/benchmarks/fold_speed.py [MODEL.onnx] [--rounds 5]

Without a file, a ResNet-50 with random weights and real statistics is exported first (94 MB). Each tool runs in a
process of its own, the tools take turns, and the best of the rounds counts; peers that are not installed are left out.
Ratios are to `bnfold fold --no-verify`: above 1, the peer is slower or larger.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
from versions import versions

BNFOLD = "bnfold fold --no-verify"

PEERS = {
    BNFOLD: "import sys; sys.argv = ['bnfold', 'fold', {model!r}, '-o', {out!r}, '--no-verify', '--force'];"
    "from bnfold.cli import main; main()",
    "onnx.load + onnx.save": "import onnx; onnx.save(onnx.load({model!r}), {out!r})",
    "onnxruntime offline": "import onnxruntime as ort; options = ort.SessionOptions();"
    "options.optimized_model_filepath = {out!r};"
    "options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC;"
    "options.log_severity_level = 4;"
    "ort.InferenceSession({model!r}, options, providers=['CPUExecutionProvider'])",
    "onnxscript": "import onnx, onnxscript.optimizer as optimizer, onnxscript.rewriter as rewriter;"
    "model = onnx.load({model!r});"
    "onnx.save(rewriter.rewrite(optimizer.optimize(model)), {out!r})",
    "onnxslim": "import onnxslim; onnxslim.slim({model!r}, {out!r})",
    "onnxsim": "import onnx, onnxsim; model, _ = onnxsim.simplify({model!r}); onnx.save(model, {out!r})",
}

COUNT = (
    "import onnx; print(sum(n.op_type == 'BatchNormalization' for n in"
    " onnx.load({out!r}, load_external_data=False).graph.node))"
)

EXPORT = """
import torch
from transformers import ResNetConfig, ResNetForImageClassification
torch.manual_seed(0)
model = ResNetForImageClassification(ResNetConfig(return_dict=False)).train()
with torch.no_grad():
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.weight.normal_(1, 0.3)
            part.bias.normal_(0, 0.3)
    model(torch.randn(4, 3, 96, 96))
torch.onnx.export(
    model.eval(), (torch.randn(1, 3, 224, 224),), {out!r}, dynamo=False, do_constant_folding=False,
    training=torch.onnx.TrainingMode.PRESERVE, input_names=["pixels"], output_names=["logits"],
)
"""


def run(code: str) -> tuple[float, float, bool]:
    """Runs Python code in a process of its own; its duration in s, its peak memory in MB, and whether it went well."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - start, usage.ru_maxrss / 1000, process.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder) / "resnet50.onnx"
        if arguments.model is None:
            subprocess.run([sys.executable, "-c", EXPORT.format(out=str(model))], check=True, capture_output=True)
        results: dict[str, list[tuple[float, float]]] = {}
        left = {}
        for round_number in range(arguments.rounds):
            for name, code in PEERS.items():
                if round_number and name not in results:
                    continue
                out = str(Path(folder) / f"{name.split()[0].replace('.', '_')}.onnx")
                # Replacing a file costs a flush to disk; what is compared is writing a new one.
                Path(out).unlink(missing_ok=True)
                duration_s, peak_mb, good = run(code.format(model=str(model), out=out))
                if not good:
                    continue
                results.setdefault(name, []).append((duration_s, peak_mb))
                if name not in left:
                    counted = subprocess.run(
                        [sys.executable, "-c", COUNT.format(out=out)],
                        check=True,
                        capture_output=True,
                        text=True,
                    )
                    left[name] = counted.stdout.strip()
    show(model, results, left)


def show(model: Path, results: dict[str, list[tuple[float, float]]], left: dict[str, str]) -> None:
    own_s, own_mb = (min(column) for column in zip(*results[BNFOLD], strict=True))
    print(f"{model.name}, whole process, best of {len(results[BNFOLD])}; {versions()}")
    print("| tool | time | ratio | peak memory | ratio | BN left |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        best_s, best_mb = (min(column) for column in zip(*runs, strict=True))
        print(
            f"| {name} | {best_s:.2f} s | {best_s / own_s:.2f} | {best_mb:.0f} MB | {best_mb / own_mb:.2f} |"
            f" {left[name]} |"
        )


if __name__ == "__main__":
    main()
