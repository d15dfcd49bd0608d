"""The same input gives the same bytes, on any number of threads and in any process: every format, folds and merges."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
PROGRAM = """
import sys, bnfold
for line in sys.argv[2:]:
    source, target = line.split("=")
    result = bnfold.fold(source)
    assert result.plan.folds or result.plan.merges
    result.save(f"{sys.argv[1]}/{target}")
"""


def branches(path: Path) -> None:
    """Three branches of one value, each with a BatchNorm, in the training form of RepVGG."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,16,9,9] x) => (float[N,16,9,9] y) {'
        " a = Conv <pads = [1, 1, 1, 1]> (x, w3) p = BatchNormalization (a, s0, b0, m0, v0)"
        " c = Conv (x, w1) q = BatchNormalization (c, s1, b1, m1, v1)"
        " r = BatchNormalization (x, s2, b2, m2, v2) t = Add (p, q) y = Add (t, r) }"
    )
    rng = np.random.default_rng(0)
    shapes = {"w3": (16, 16, 3, 3), "w1": (16, 16, 1, 1)}
    shapes |= {f"{name}{index}": (16,) for index in range(3) for name in "sbmv"}
    arrays = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)


@pytest.mark.slow
def test_bytes_do_not_depend_on_threads_or_hashing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from merging_networks import RepVgg

    onnx.save(
        onnx.load(SAMPLE), tmp_path / "external.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    branches(tmp_path / "branches.onnx")
    torch.manual_seed(0)
    batch = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(RepVgg(16, 16).eval(), (torch.zeros(2, 16, 9, 9),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    words = [
        f"{SAMPLE}=a.onnx",
        "external.onnx=b.onnx",
        "branches.onnx=c.onnx",
        "net.pt2=d.pt2",
        "net.pt2=e.safetensors",
    ]
    found = set()
    for threads, seed in (("1", "0"), ("7", "1")):
        place = tmp_path / threads
        place.mkdir()
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment = os.environ | count | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", PROGRAM, threads, *words], cwd=tmp_path, env=environment, check=True)
        files = sorted(place.iterdir())
        assert len(files) == len(words) + 1  # one has a data file
        found.add(tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files))
    assert len(found) == 1
