"""Make an ExecuTorch program of the digits network, as it was and folded, and run it.

    pip install '.[samples]'
    python samples/digits_in_executorch.py

Prints the size of both `.pte` files, the accuracy on the held-out images, and how far the logits are from those of
PyTorch. Ends with exit code 1 if any image is seen otherwise, or if the logits differ by more than float32 rounds.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from digits import IMAGES, accuracy, relative_l2, trained_net
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

import bnfold


def main() -> int:
    net, images = trained_net(), torch.from_numpy(IMAGES)
    program = torch.export.export(net, (torch.zeros(1, 1, 8, 8),))
    with torch.no_grad():
        reference = net(images).numpy()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name, candidate in (("as it was", program), ("folded", bnfold.fold(program, verify=True).model)):
            path = Path(folder) / f"{name}.pte"
            path.write_bytes(to_edge_transform_and_lower(candidate).to_executorch().buffer)
            method = Runtime.get().load_program(path).load_method("forward")
            logits = torch.cat([method.execute([image])[0].clone() for image in images.split(1)]).numpy()
            far = np.max(np.abs(logits - reference))
            print(
                f"{name}: {path.stat().st_size:,} bytes, accuracy {accuracy(logits):.2%}, within {far:.1e} of PyTorch"
            )
            same = np.array_equal(logits.argmax(axis=1), reference.argmax(axis=1))
            good = good and same and relative_l2(logits, reference) < 1e-5
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
