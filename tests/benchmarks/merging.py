"""What merging branches is worth: multiply-adds and latency of four networks in training form, before and after.

    python tests/benchmarks/merging.py [--seconds 20] [--threads 2] [--size 224] [--only NAME]

The networks have the widths and depths of the papers' smallest models, with random weights and without classification
head or squeeze-and-excitation. They are exported as trained, folded, and run by onnxruntime as it is deployed, with all
optimisations on, original and result in turns. "paper's form" is the network written down in the deployment form of its
paper, so that ratio is what bnfold is off from the authors' own conversion; 1 is equal, above 1 bnfold is faster.
"""

import argparse
import sys
import tempfile
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx
import torch
from exporters import export
from merging_networks import FULL_SIZE, deployed, randomised

import bnfold
from bnfold.latency import benchmark


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of all convolutions, and of every BN one a value, from the shapes that onnx infers."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    declared = (*inferred.value_info, *inferred.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in declared}
    weights = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type == "Conv":
            total += prod(shapes[node.output[0]]) * prod(weights[node.input[1]][1:])
        elif node.op_type == "BatchNormalization":
            total += prod(shapes[node.output[0]])
    return total


def name_output_like(path: Path, other: Path) -> None:
    """Calls the output of one model what that of another is called."""
    model, name = onnx.load(path), onnx.load(other).graph.output[0].name
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.input[:] = [f"{name}_" if read == name else name if read == old else read for read in node.input]
        node.output[:] = [f"{name}_" if made == name else name if made == old else made for made in node.output]
    model.graph.output[0].name = name
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model of a pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--only", choices=FULL_SIZE)
    arguments = parser.parse_args()
    columns = ("network", "nodes", "BNs", "multiply-adds, M", "latency, ms", "speed-up (95 %)", "to the paper's form")
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for name, make in FULL_SIZE.items():
        if arguments.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            trained, merged, paper = (Path(folder) / f"{form}.onnx" for form in ("trained", "merged", "paper"))
            images = (torch.randn(1, 3, arguments.size, arguments.size),)
            module = randomised(make())
            export((module, images), trained, exporter="torchscript", constant_folding=True)
            export((deployed(module), images), paper, exporter="torchscript", constant_folding=True)
            name_output_like(paper, trained)
            result = bnfold.fold(trained)
            result.save(merged)
            before, after = onnx.load(trained), onnx.load(merged)
            options = {"device": "cpu", "threads": arguments.threads, "seconds": arguments.seconds}
            (gain,) = benchmark(trained, merged, **options).comparisons
            (against,) = benchmark(paper, merged, **options).comparisons
        plan = result.plan
        cells = (
            name,
            f"{len(before.graph.node)} -> {len(after.graph.node)}",
            f"{plan.batch_norms} -> {plan.batch_norms_left}",
            f"{multiply_adds(before) / 1e6:.0f} -> {multiply_adds(after) / 1e6:.0f}",
            f"{gain.original.median_s * 1e3:.1f} -> {gain.folded.median_s * 1e3:.1f}",
            f"{gain.ratio.median:.2f} ({gain.ratio.low:.2f} to {gain.ratio.high:.2f})",
            f"{against.ratio.median:.3f} ({against.ratio.low:.3f} to {against.ratio.high:.3f})",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
