"""Time and peak memory of `bnfold.verify`, in units of running the original.

    python tests/benchmarks/verify_cost.py [MODEL.onnx] [--rounds 3] [--samples 4]

Without a file, a ResNet-50 with random weights and real statistics is exported first (94 MB). Every measurement is a
process of its own. Printed are, for the best of the rounds: the duration of the verification without imports and the
creation of its sessions, over samples × one run of the original (graph optimisations off, as in the verification), and
its peak memory over that of a process that only loads and runs the original. Design: at most 8 runs a sample, at most
twice the memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fold_speed import EXPORT

MOST_RUNS = 8.0
MOST_MEMORY = 2.0

PEAK = "import resource; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3"

FEED = """
import json, sys, time
import numpy as np
from bnfold.onnx.file.load import load
from bnfold.verification.runtime.devices import cpu_device
from bnfold.verification.inputs.feeds import FeedRequest, make_feeds
from bnfold.verification.runtime.sessions import Session
from bnfold.verification.inputs.sampling import declared_inputs
"""

ALONE = f"""{FEED}
session = Session({{model!r}}, cpu_device())
(feed,), _ = make_feeds(declared_inputs(load({{model!r}}).proto), FeedRequest.of(None, 1, 0, None, None), session.run)
durations = []
for _ in range(12):
    start = time.perf_counter()
    session.run(feed)
    durations.append(time.perf_counter() - start)
{PEAK}
print(json.dumps({{{{"run_s": sorted(durations)[len(durations) // 2], "peak_mb": peak}}}}))
"""

VERIFY = f"""
import json, time
import onnxruntime
import bnfold
from bnfold.verification.runtime import sessions
from bnfold.verification.onnx import verifier

creation = []
create = sessions.Session.__init__

def timed(self, *args, **options):
    start = time.perf_counter()
    create(self, *args, **options)
    creation.append(time.perf_counter() - start)

sessions.Session.__init__ = timed
report = bnfold.verify({{model!r}}, {{folded!r}}, device="cpu", samples={{samples}})
{PEAK}
print(json.dumps({{{{
    "verdict": report.verdict, "line": report.summary_line(), "sessions": len(creation), "sessions_s": sum(creation),
    "timings_s": dict(report.timings_s), "peak_mb": peak,
}}}}))
"""


def run(code: str) -> dict:
    """What Python code in a process of its own prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, folded = options.model or str(Path(folder, "resnet50.onnx")), str(Path(folder, "folded.onnx"))
        if options.model is None:
            subprocess.run(
                [sys.executable, "-c", EXPORT.format(out=model, dynamo=False)], check=True, capture_output=True
            )
        subprocess.run([sys.executable, "-c", f"import bnfold; bnfold.fold({model!r}).save({folded!r})"], check=True)
        best = None
        for _ in range(options.rounds):
            alone = run(ALONE.format(model=model))
            verified = run(VERIFY.format(model=model, folded=folded, samples=options.samples))
            work_s = verified["timings_s"]["total"] - verified["sessions_s"]
            figures = {
                "runs of the original per sample": work_s / alone["run_s"] / options.samples,
                "peak memory over that of the original alone": verified["peak_mb"] / alone["peak_mb"],
                "one run of the original (ms)": 1e3 * alone["run_s"],
                "whole verification (s)": verified["timings_s"]["total"],
                "sessions created": verified["sessions"],
                "their creation (s)": verified["sessions_s"],
                "peak memory (MB)": verified["peak_mb"],
            }
            key = "runs of the original per sample"
            if best is None or figures[key] < best[0][key]:
                best = figures, verified
        figures, verified = best
        print(verified["line"])
        for name, value in figures.items():
            print(f"  {name:<45} {value:8.2f}")
        print("  phases (s)", {name: round(value, 2) for name, value in verified["timings_s"].items()})
        within = figures["runs of the original per sample"] <= MOST_RUNS
        within &= figures["peak memory over that of the original alone"] <= MOST_MEMORY
        print("within the limits" if within else f"ABOVE the limits ({MOST_RUNS:g} runs, {MOST_MEMORY:g} times)")


if __name__ == "__main__":
    main()
