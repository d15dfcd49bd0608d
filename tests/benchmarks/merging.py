"""What merging branches is worth: size, multiply-adds and latency of networks in training form, before and after.

    python tests/benchmarks/merging.py [--only NAME ...] [--runtime onnxruntime torch] [--seconds 12]
                                       [--threads N] [--results FILE] [--write]

The networks are those of tests/merging_full_size.py: the widths and depths of the papers' smallest models, with random
weights, for one image of 224 x 224. onnxruntime runs them as deployed, with all optimisations on; PyTorch runs them in
eager mode: before, the module; after, the folded exported program. The paper's form is the same network
written down in the deployment form of its paper, so the ratio to it is what bnfold is off from the author's own
conversion: above 1, what bnfold made is faster.

All ratios are medians over rounds in which both models take turns, with the 95 % interval of the sign test. Those to
the paper's form are taken in two pairs of fresh sessions, because two sessions of one model differ, depending on where
their memory lies.

With --results FILE, networks that are in that file are not measured again. --write puts the table into
tests/benchmarks/MERGING.md.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
import numpy as np
import onnx
import onnxruntime
import torch
from exporters import export
from merging_full_size import FULL_SIZE
from merging_networks import deployed, randomised
from model_size import Size

import bnfold
from bnfold.latency import Ratio, benchmark
from bnfold.latency.benchmarking import AnyModel
from bnfold.latency.pair import usable_cpus
from bnfold.verification.runtime.devices import cpu_device

PAGE = Path(__file__).with_name("MERGING.md")
RUNTIMES = ("onnxruntime", "torch")
SESSIONS = 2
SHARE_OF_GAIN = 0.5
CLOSE = 0.03
"""How far the latency may be from that of the paper's form, as the issue wants it."""


@dataclass(frozen=True)
class Speed:
    """Latencies in one runtime.

    Attributes:
        before_s: Median of the training form in seconds.
        after_s: Median of what bnfold made.
        gain: The one over the other: median, low, high.
        to_paper: The latency of the paper's form over that of what bnfold made: median, low, high.
    """

    before_s: float
    after_s: float
    gain: tuple[float, float, float]
    to_paper: tuple[float, float, float]

    @staticmethod
    def of(
        trained: AnyModel,
        merged: AnyModel,
        paper: AnyModel,
        seconds: float,
        threads: int | None,
        inputs: tuple[torch.Tensor, ...] | None = None,
    ) -> "Speed":
        """Measure; `seconds` is for each model of the comparison with the paper's form."""
        options = {"inputs": inputs, "threads": threads, "device": "cpu"}
        (gain,) = benchmark(trained, merged, seconds=seconds * SHARE_OF_GAIN, **options).comparisons
        ratios: list[float] = []
        for _ in range(SESSIONS):
            timing = benchmark(paper, merged, seconds=seconds / SESSIONS, **options)
            ratios += timing.comparisons[0].ratio.rounds
        return Speed(gain.original.median_s, gain.folded.median_s, _three(gain.ratio), _three(Ratio.of_ratios(ratios)))


def _three(ratio: Ratio) -> tuple[float, float, float]:
    return ratio.median, ratio.low, ratio.high


class Network:
    """A network in training form, as bnfold merges it, and in the deployment form of its paper."""

    def __init__(self, name: str) -> None:
        self._images = (torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)),)
        self._trained = randomised(FULL_SIZE[name]())
        self._paper = randomised(deployed(FULL_SIZE[name]()))

    def onnx(self, seconds: float, threads: int | None, folder: Path) -> tuple[Size, Size, Size, Speed]:
        """The sizes before, after and of the paper's form; and the latencies in onnxruntime."""
        trained, merged, paper = (folder / f"{form}.onnx" for form in ("trained", "merged", "paper"))
        export((self._trained, self._images), trained, exporter="torchscript", constant_folding=True)
        export((self._paper, self._images), paper, exporter="torchscript", constant_folding=True)
        name_output_like(paper, trained)
        bnfold.fold(trained).save(merged)
        sizes = [Size.of(onnx.load(path)) for path in (trained, merged, paper)]
        return sizes[0], sizes[1], sizes[2], Speed.of(trained, merged, paper, seconds, threads)

    def torch(self, seconds: float, threads: int | None) -> Speed:
        """The latencies in eager PyTorch."""
        with torch.no_grad():
            folded = bnfold.fold(torch.export.export(self._trained, self._images)).model
        return Speed.of(self._trained, folded, self._paper, seconds, threads, self._images)


def name_output_like(path: Path, other: Path) -> None:
    """Calls the output of one model what that of another is called: only such models are compared."""
    model, name = onnx.load(path), onnx.load(other).graph.output[0].name
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.input[:] = [f"{name}_" if read == name else name if read == old else read for read in node.input]
        node.output[:] = [f"{name}_" if made == name else name if made == old else made for made in node.output]
    model.graph.output[0].name = name
    onnx.save(model, path)


def measure(
    name: str, runtimes: Sequence[str], seconds: float, threads: int | None, known: dict[str, object]
) -> dict[str, object]:
    """What is known of a network, and what was missing."""
    missing = [runtime for runtime in runtimes if runtime not in known]
    if not missing:
        return known
    network, found = Network(name), dict(known)
    if "onnxruntime" in missing:
        with tempfile.TemporaryDirectory() as folder:
            before, after, paper, speed = network.onnx(seconds, threads, Path(folder))
        found |= {"before": asdict(before), "after": asdict(after), "paper": asdict(paper)}
        found["onnxruntime"] = asdict(speed)
    if "torch" in missing:
        found["torch"] = asdict(network.torch(seconds, threads))
    return found


def row(name: str, found: dict[str, object]) -> str:
    """A line of the table; a dash for what was not measured."""
    cells = [name, *["-"] * 4]
    if "before" in found:
        before, after, paper = (Size(**found[form]) for form in ("before", "after", "paper"))
        cells[1:] = [
            f"{before.batch_norms} → {after.batch_norms}",
            f"{before.nodes} → {after.nodes} ({paper.nodes})",
            f"{before.parameters / 1e6:.2f} → {after.parameters / 1e6:.2f} ({paper.parameters / 1e6:.2f})",
            f"{before.multiply_adds / 1e6:.0f} → {after.multiply_adds / 1e6:.0f} ({paper.multiply_adds / 1e6:.0f})",
        ]
    for runtime in RUNTIMES:
        if runtime not in found:
            cells += ["-"] * 4
            continue
        speed = Speed(**found[runtime])
        gain, low, high = speed.gain
        cells += [
            f"{speed.before_s * 1e3:.1f} → {speed.after_s * 1e3:.1f}",
            f"{gain:.2f} ({low:.2f} to {high:.2f})",
            "{:.3f} ({:.3f} to {:.3f})".format(*speed.to_paper),
            verdict(*speed.to_paper[1:]),
        ]
    return f"| {' | '.join(cells)} |"


def verdict(low: float, high: float) -> str:
    """Whether the latency is within 3 % of the paper's form, as far as the interval tells."""
    if low >= 1 - CLOSE and high <= 1 + CLOSE:
        return "yes"
    if high < 1 - CLOSE:
        return "no, slower"
    if low > 1 + CLOSE:
        return "no, faster"
    return f"open: the interval is {(high - low) * 100:.0f} % wide"


def head() -> list[str]:
    """The names of the columns."""
    columns = ["network", "BN", "nodes", "parameters, M", "multiply-adds, M"]
    for runtime in RUNTIMES:
        columns += [f"{runtime}: latency, ms", "speed-up", "paper's form / ours", "within 3 %"]
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def page(lines: Sequence[str], seconds: float, threads: int | None) -> str:
    """MERGING.md."""
    command = f"python tests/benchmarks/merging.py --seconds {seconds:g}"
    command += "" if threads is None else f" --threads {threads}"
    return "\n".join(
        [
            "# What merging branches is worth",
            "",
            f"Made by `{command}` on {cpu_device().name}, {usable_cpus()} cores, {platform.system()}; Python"
            f" {platform.python_version()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}. One image"
            " of 224 × 224, float32; as many threads as the runtime chooses where the command names no number.",
            "",
            "Before → after, and in parentheses the deployment form written down from the paper. Multiply-adds are of"
            " convolutions, matrix products, average pools (their window) and BNs (one a value). Parameters are all"
            " numbers stored, the statistics of BNs among them. Latencies are medians; ratios have their 95 % interval;"
            " above 1, what bnfold made is faster. onnxruntime runs with all its optimisations on, PyTorch in eager"
            " mode: before, the module; after, the folded exported program. The paper's form is a module there as well,"
            " which reaches its parameters faster: an exported program walks to each by its name at every call.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="for each of the two models compared")
    parser.add_argument("--threads", type=int, help="within an operator; left out, the runtime chooses")
    parser.add_argument("--only", nargs="+", choices=FULL_SIZE, default=list(FULL_SIZE), metavar="NAME")
    parser.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--results", type=Path, help="a JSON file with what was measured before; it is added to")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}, with all that is in the results")
    arguments = parser.parse_args()
    kept = arguments.results
    settings = {"seconds": arguments.seconds, "threads": arguments.threads}
    held = json.loads(kept.read_text()) if kept is not None and kept.exists() else {**settings, "networks": {}}
    if {name: held[name] for name in settings} != settings:
        parser.error(f"{kept} was measured with other --seconds or --threads")
    results = held["networks"]
    lines = head()
    print(*lines, sep="\n", flush=True)
    for name in FULL_SIZE:
        if name in arguments.only:
            known = results.get(name, {})
            results[name] = measure(name, arguments.runtime, arguments.seconds, arguments.threads, known)
            if kept is not None:
                kept.write_text(json.dumps(held, indent=1))
        elif name not in results:
            continue
        lines.append(row(name, results[name]))
        print(lines[-1], flush=True)
    if arguments.write:
        PAGE.write_text(page(lines, arguments.seconds, arguments.threads))


if __name__ == "__main__":
    main()
