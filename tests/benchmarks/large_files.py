"""Folds of files of gigabytes beside `cp` of the same file on the same disk, in turns: throughput, and peak memory.

    python tests/benchmarks/large_files.py /tmp                  # 3 GB with external data, 1.5 GB in one file
    python tests/benchmarks/large_files.py /tmp --external 6 --turns 5

Both sides are timed to the point at which the disk has confirmed what was written (a fold ends with fsync, and `cp` is
followed by `sync FILE`). Of the layers one in four has a BatchNorm, or every one: the others' weights are copied by the
kernel. What is made is removed at the end. It fails below 0.6 times the throughput of `cp`, or above 0.25 times the
file in memory.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

CHANNELS = 512
LEAST_THROUGHPUT = 0.6
MOST_MEMORY = 0.25
_FOLD = "import sys, bnfold; bnfold.fold(sys.argv[1]).save(sys.argv[2])"


def make(path: Path, nbytes: int, external: bool, every: int) -> None:
    """Writes a chain of 3×3 convolutions tensor by tensor, so that it need not fit into memory."""
    rng = np.random.default_rng(0)
    layer_nbytes = CHANNELS * CHANNELS * 9 * 4
    nodes, value = [], "x"
    statistics_of = {
        name: rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for name in ("gamma", "beta", "mean", "var")
    }
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in statistics_of.items()]
    count = max(1, nbytes // layer_nbytes)
    weight = (rng.standard_normal(layer_nbytes // 4) / 70).astype(np.float32)
    with path.with_suffix(".data").open("wb") as data:
        for index in range(count):
            tensor = onnx.TensorProto(name=f"w{index}", data_type=1, dims=[CHANNELS, CHANNELS, 3, 3])
            weight = np.roll(weight, 1)
            if external:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, item in (
                    ("location", path.with_suffix(".data").name),
                    ("offset", data.tell()),
                    ("length", layer_nbytes),
                ):
                    tensor.external_data.add(key=key, value=str(item))
                data.write(weight.tobytes())
            else:
                tensor.raw_data = weight.tobytes()
            tensors.append(tensor)
            nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1] * 4))
            value = f"c{index}"
            if index % every == 0:
                nodes.append(helper.make_node("BatchNormalization", [value, *statistics_of], [f"b{index}"]))
                value = f"b{index}"
            nodes.append(helper.make_node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
    ends = [helper.make_tensor_value_info(name, 1, [1, CHANNELS, 8, 8]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    if not external:
        path.with_suffix(".data").unlink()


def run(words: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of processors, and the peak of memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(words)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def measured(folder: Path, nbytes: int, turns: int, *, external: bool, every: int) -> bool:
    """Prints one line; whether it is as it should be."""
    source = folder / "model.onnx"
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(source, nbytes, external, every))
    maker.start()  # the memory of this process would count as that of those that it starts
    maker.join()
    files = [path for path in (source, source.with_suffix(".data")) if path.exists()]
    total = sum(path.stat().st_size for path in files)
    copies, folds = [], []
    for _ in range(turns):
        out = folder / "copy"
        out.mkdir()
        words = " ".join(map(str, files))
        copies.append(run(["sh", "-c", f"cp {words} {out} && sync {out}/*"]))
        shutil.rmtree(out)
        out.mkdir()
        folds.append(run([sys.executable, "-c", _FOLD, str(source), str(out / "folded.onnx")]))
        shutil.rmtree(out)
    for path in files:
        path.unlink()
    (copy, copy_cpu), (fold, fold_cpu) = (
        [statistics.median(column) for column in zip(*runs, strict=True)][:2] for runs in (copies, folds)
    )
    peak = max(run[2] for run in folds)
    name = f"{'external' if external else 'in one file'}, a BatchNorm every {every}"
    print(
        f"{name:34} {total / 1e9:4.1f} GB   cp {total / copy / 1e6:5.0f} MB/s   fold {total / fold / 1e6:5.0f} MB/s"
        f" ({copy / fold:.2f} of cp)   processors {copy_cpu:.1f} s, {fold_cpu:.1f} s"
        f"   peak {peak / 1e6:4.0f} MB ({peak / total:.2f} of the file)",
        flush=True,
    )
    return copy / fold >= LEAST_THROUGHPUT and peak / total <= MOST_MEMORY


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--external", type=float, default=3.0, help="GB")
    parser.add_argument("--in-file", type=float, default=1.5, help="GB")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for external, size in ((True, options.external), (False, options.in_file)):
            for every in (4, 1):
                good &= measured(Path(name), int(size * 1e9), options.turns, external=external, every=every)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
