"""The same input gives the same bytes, on any number of threads and in any process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
PROGRAM = "import sys, bnfold; bnfold.fold(sys.argv[1]).save(sys.argv[2])"


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True])
def test_bytes_do_not_depend_on_threads_or_hashing(external: bool, tmp_path: Path) -> None:
    source = SAMPLE
    if external:
        import onnx

        source = tmp_path / "source.onnx"
        onnx.save(onnx.load(SAMPLE), source, save_as_external_data=True, location="weights", size_threshold=0)
    found = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("7", "2")):
        place = tmp_path / threads
        place.mkdir()
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment = os.environ | count | {"PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", PROGRAM, str(source), str(place / "out.onnx")]
        subprocess.run(words, env=environment, check=True)
        files = sorted(place.iterdir())
        assert len(files) == 1 + external
        found.add(tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files))
    assert len(found) == 1
