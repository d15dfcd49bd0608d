"""Quantise the digits network with torchao's flow for exported programs (pt2e), after a fold.

    pip install '.[samples]'
    python samples/quantise_digits_pt2e.py              # the folded network
    python samples/quantise_digits_pt2e.py --compare    # also as it was, which takes torchao half a minute

Prints the BatchNorms that stay in float and the accuracy on the held-out images. Ends with exit code 1 if a BatchNorm
is left of the folded network, or if it sees fewer images right than the float one does, but for one.
"""

import argparse
import sys

import torch
from digits import IMAGES, LABELS, accuracy, relative_l2, trained_net
from torch.export import Dim, ExportedProgram, export
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import bnfold


def quantised(program: ExportedProgram, images: torch.Tensor) -> torch.fx.GraphModule:
    """The program with int8 weights and activations, calibrated on a hundred images."""
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    for batch in images[:100].split(10):
        prepared(batch)
    return convert_pt2e(prepared)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compare", action="store_true")
    net, images = trained_net(), torch.from_numpy(IMAGES)
    program = export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: Dim("batch")},))
    programs = {"folded": bnfold.fold(program, verify=True).model}
    if parser.parse_args().compare:
        programs["as it was"] = program
    with torch.no_grad():
        reference = net(images).numpy()
        found = {}
        for name, candidate in programs.items():
            module = quantised(candidate, images)
            left = sum("batch_norm" in str(node.target) for node in module.graph.nodes)
            logits = module(images).numpy()
            found[name] = left, accuracy(logits)
            off = relative_l2(logits, reference)
            print(f"{name}: {left} BatchNorms in float, accuracy {accuracy(logits):.2%}, logits off by {off:.2%}")
    left, seen = found["folded"]
    return 0 if left == 0 and seen >= accuracy(reference) - 1.5 / len(LABELS) else 1


if __name__ == "__main__":
    sys.exit(main())
