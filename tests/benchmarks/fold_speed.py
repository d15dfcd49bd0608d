"""Time and peak memory of folding one file, whole process, beside what users would run instead.

    python tests/benchmarks/fold_speed.py [MODEL.onnx] [--rounds 9] [--exporter torchscript|dynamo]

Without a file, a ResNet-50 with random weights and real statistics is exported first, by either exporter of
torch.onnx: TorchScript's leaves its BatchNorms in a plain file, dynamo's writes metadata on every node. Each tool runs
in a process of its own, the tools take turns, and medians count; peers that are not installed are left out. Ratios are
to `bnfold fold --no-verify`, the median over the rounds: above 1, the peer is slower or larger. CPU is the processor
time of all threads, which a machine that is busy changes less than the time that passes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
from processes import Usage, in_turns, ratio
from versions import versions

BNFOLD = "bnfold fold --no-verify"

PEERS = {
    BNFOLD: "import sys; sys.argv = ['bnfold', 'fold', {model!r}, '-o', {out!r}, '--no-verify', '--force'];"
    "from bnfold.__main__ import main; main()",
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
    model.eval(), (torch.randn(1, 3, 224, 224),), {out!r}, input_names=["pixels"], output_names=["logits"],
    external_data=False, optimize=False, dynamo={dynamo}, do_constant_folding=False,
    training=torch.onnx.TrainingMode.EVAL if {dynamo} else torch.onnx.TrainingMode.PRESERVE,
)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or Path(folder) / f"resnet50-{arguments.exporter}.onnx"
        if arguments.model is None:
            code = EXPORT.format(out=str(model), dynamo=arguments.exporter == "dynamo")
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        outs = {name: Path(folder) / f"{name.split()[0].replace('.', '_')}-out.onnx" for name in PEERS}

        def clear() -> None:  # replacing a file costs a flush to disk; what is compared is writing a new one
            for out in outs.values():
                out.unlink(missing_ok=True)

        codes = {name: code.format(model=str(model), out=str(outs[name])) for name, code in PEERS.items()}
        found = in_turns(codes, arguments.rounds, clear)
        left = {}
        for name in found:
            clear()
            counted = COUNT.format(out=str(outs[name]))
            code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {codes[name]!r}]); {counted}"
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            left[name] = done.stdout.strip().splitlines()[-1]
        show(model, found, left)


def show(model: Path, found: dict[str, list[Usage]], left: dict[str, str]) -> None:
    ours = found[BNFOLD]
    print(f"{model.name}, {model.stat().st_size / 1e6:.0f} MB, whole process, medians of {len(ours)}; {versions()}")
    print("| tool | CPU | ratio | time | ratio | peak memory | ratio | BN left |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        cells = []
        for figure, form in (("cpu_s", "{:.2f} s"), ("wall_s", "{:.2f} s"), ("peak_mb", "{:.0f} MB")):
            cells += [form.format(median(getattr(usage, figure) for usage in runs)), f"{ratio(runs, ours, figure):.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {left[name]} |")


if __name__ == "__main__":
    main()
