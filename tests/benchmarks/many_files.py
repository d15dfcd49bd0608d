"""Many small files with one command of several jobs, beside a loop of one command for each: wall and processor time.

    python tests/benchmarks/many_files.py /tmp                     # 200 files, 2 jobs
    python tests/benchmarks/many_files.py /tmp --files 50 --jobs 4

Both verify what they write. It fails if a file is missing, or if the one command takes longer than the loop.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))
import kills

_BNFOLD = [sys.executable, "-m", "bnfold", "fold"]


def run(words: list[list[str]]) -> tuple[float, float]:
    """Seconds, and seconds of processors, of commands one after another."""
    before, started = os.times(), time.perf_counter()
    for command in words:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, used


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, out = Path(name, "in"), Path(name, "out")
        source.mkdir()
        paths = [source / f"{number:04d}.onnx" for number in range(options.files)]
        for number, path in enumerate(paths):
            kills.make_model(path, number, external=False, convolutions=4, channels=32)
        device = ["--device", "cpu", "--quiet"]
        together = [*_BNFOLD, *map(str, paths), "--out-dir", str(out), "--jobs", str(options.jobs), *device]
        one_s, one_cpu_s = run([together])
        complete = all((out / path.name).exists() for path in paths)
        shutil.rmtree(out)
        out.mkdir()
        loop_s, loop_cpu_s = run([[*_BNFOLD, str(path), "-o", str(out / path.name), *device] for path in paths])
    for what, seconds, cpu_s in (
        (f"one command, {options.jobs} jobs", one_s, one_cpu_s),
        (f"a loop of {options.files} commands", loop_s, loop_cpu_s),
    ):
        print(f"{what:26} {seconds:6.1f} s   processors {cpu_s:6.1f} s", flush=True)
    print(f"one command takes {one_s / loop_s:.2f} of the time and {one_cpu_s / loop_cpu_s:.2f} of the processors")
    return int(not complete or one_s > loop_s)


if __name__ == "__main__":
    sys.exit(main())
