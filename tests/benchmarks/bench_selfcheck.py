"""What `bnfold bench` says where the truth is known: a model against itself, and against a deeper one.

    python tests/benchmarks/bench_selfcheck.py [--repetitions 20] [--seconds 3] [--device cpu|cuda]

Chains of equal 3x3 convolutions. The same chain twice has a ratio of 1, and should be called as fast in 19 of 20
repetitions or more; eleven layers against ten have a ratio of about 1.1, and should not. Then what
`session.force_spinning_stop` is for: the median latency with two sessions in turns, without it and with it, over that
of a session alone in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import bnfold

SIZES = {"small": (16, 16), "medium": (64, 28), "large": (64, 56)}
"""Channels, and height and width."""

LAYERS = 10
TURNS_S = 2.0
MIN_CALLS = 20
PROCESSES = 3
SPINNING = {"as it comes": {}, "stopped": {"session.force_spinning_stop": "1"}}


def chain(size: str, layers: int = LAYERS) -> onnx.ModelProto:
    """Conv and Relu, again and again, with a weight for each Conv."""
    channels, width = SIZES[size]
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for layer in range(layers):
        weight = rng.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        value = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [value]))
    shape = [1, channels, width, width]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def check_ratio(size: str, deeper: int, arguments: argparse.Namespace) -> str:
    """A row of the table: a chain with `deeper` layers more against one without."""
    original, folded = chain(size, LAYERS + deeper), chain(size)
    ratios = []
    for _ in range(arguments.repetitions):
        timing = bnfold.benchmark(original, folded, device=arguments.device, seconds=arguments.seconds)
        ratios.append(timing.comparisons[0].ratio)
    medians = [ratio.median for ratio in ratios]
    widths = statistics.median(ratio.high - ratio.low for ratio in ratios)
    latency_ms = timing.comparisons[0].folded.median_s * 1e3
    return (
        f"| {size} | {latency_ms:.2f} ms | {LAYERS + deeper} / {LAYERS} | {min(medians):.3f} to {max(medians):.3f} |"
        f" {widths:.3f} | {sum(ratio.within_noise for ratio in ratios)} of {len(ratios)} |"
    )


def time_in_turns(size: str, spinning: str, sessions: int, block: int) -> float:
    """Median latency in ms of `sessions` sessions that take turns of `block` calls."""
    model = chain(size).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for key, value in SPINNING[spinning].items():
        options.add_session_config_entry(key, value)
    opened = [onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    feed = {"x": np.random.default_rng(1).standard_normal([1, SIZES[size][0], *[SIZES[size][1]] * 2], np.float32)}
    for session in opened:
        session.run(None, feed)
    durations_s: list[float] = []
    end = time.perf_counter() + TURNS_S
    while len(durations_s) < MIN_CALLS * sessions or time.perf_counter() < end:
        for session in opened:
            for _ in range(block):
                start = time.perf_counter()
                session.run(None, feed)
                durations_s.append(time.perf_counter() - start)
    return statistics.median(durations_s) * 1e3


def in_own_process(size: str, spinning: str, sessions: int, block: int) -> float:
    """The median over processes of `time_in_turns`."""
    command = [sys.executable, __file__, "--turns", size, spinning, str(sessions), str(block)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(PROCESSES)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--turns", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns:
        size, spinning, sessions, block = arguments.turns
        print(time_in_turns(size, spinning, int(sessions), int(block)))
        return
    print("| chain | latency | layers | ratios | width of the interval | called as fast |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        for deeper in (0, 1):
            print(check_ratio(size, deeper, arguments), flush=True)
    if arguments.device != "cpu":
        return
    print("\n| chain | alone | spinning | turns of 1 call / alone | turns of 10 calls / alone |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        alone_ms = in_own_process(size, "as it comes", 1, 1)
        for spinning in SPINNING:
            ones, tens = (in_own_process(size, spinning, 2, block) / alone_ms for block in (1, 10))
            print(f"| {size} | {alone_ms:.2f} ms | {spinning} | {ones:.2f} | {tens:.2f} |", flush=True)


if __name__ == "__main__":
    main()
