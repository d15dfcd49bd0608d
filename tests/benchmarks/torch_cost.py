"""What folding PyTorch costs on top of torch.export: time for every network of the zoo, memory for two large ones.

    python tests/benchmarks/torch_cost.py [--rounds 3] [--only NAME]

Time: torch.export.export, `bnfold.fold(module, inputs)` (which exports as well) and `bnfold.fold(program)` take turns
in one process, and the best of the rounds counts. Ratios are to the export: (fold of the module − export) / export, and
(fold of the program) / export. Design: at most 0.5. What the module's ratio exceeds the program's by is the copy of the
module, its rehearsal, and the record of what its submodules are called with, which torch.export is asked for.

Memory: what a process takes at most while it exports or folds beyond what it had with the network built and run once
(VmHWM of Linux), in units of the network's parameters. Design: the copy and little more.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MOST = 0.5

LARGE = {
    "ResNet-50": "from transformers import ResNetConfig, ResNetForImageClassification as Network\n"
    "config = ResNetConfig(return_dict=False)",
    "RegNet-Y-16GF": "from transformers import RegNetConfig, RegNetForImageClassification as Network\n"
    "config = RegNetConfig(return_dict=False, hidden_sizes=[224, 448, 1232, 3024], depths=[2, 4, 11, 1],"
    " groups_width=112)",
}

PEAK = """
import gc, json, pathlib, warnings
warnings.simplefilter("ignore")
import torch
import bnfold, bnfold.torch.module.fold
{build}
torch.manual_seed(0)
module = Network(config).eval()
image = torch.randn(1, 3, 224, 224)
small = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
bnfold.fold(small, (image,)).model  # what torch.export loads when it is first used
with torch.no_grad():
    module(image)

def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3

gc.collect()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
base = memory("VmRSS:")
{work}
print(json.dumps([memory("VmHWM:") - base, sum(tensor.nbytes for tensor in module.parameters()) / 1e6]))
"""

WORK = {
    "export": "program = torch.export.export(module, (image,))",
    "fold of the module": "folded = bnfold.fold(module, (image,)).model",
    "in place": "folded = bnfold.fold(module, (image,), inplace=True).model",
    "export, fold of the program": "folded = bnfold.fold(torch.export.export(module, (image,))).model",
}


def times(only: str | None, rounds: int) -> bool:
    """Prints the table of times; says whether every ratio is small enough."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # noqa: F401 - it finds tests/support
    import torch
    from zoo import ZOO

    import bnfold

    print("| network | torch.export (s) | fold of the module | on top | fold of the program | ratio |")
    print("|---|---|---|---|---|---|")
    good = True
    for model in ZOO:
        if only and only != model.name:
            continue
        module, inputs = model.build()
        try:
            program = torch.export.export(module, inputs)
        except Exception as error:  # noqa: BLE001 - whatever torch.export raises
            print(f"| {model.name} | refused: {type(error).__name__} | | | | |")
            continue
        export, whole, alone = best(
            rounds,
            lambda module=module, inputs=inputs: torch.export.export(module, inputs),
            lambda module=module, inputs=inputs: bnfold.fold(module, inputs).model,
            lambda program=program: bnfold.fold(program).model,
        )
        on_top, ratio = whole / export - 1, alone / export
        cells = f"{export:.2f} | {whole:.2f} s | {on_top:.2f} | {alone:.2f} s | {ratio:.2f}"
        print(f"| {model.name} | {cells} |", flush=True)
        good &= max(on_top, ratio) <= MOST
    return good


def best(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The shortest duration of each call in seconds; they take turns."""
    durations: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, durations, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [min(found) for found in durations]


def memory() -> None:
    """Prints the table of memory."""
    print("\n| network | parameters (MB) | " + " | ".join(WORK) + " |")
    print("|---|---|" + "---|" * len(WORK))
    for name, build in LARGE.items():
        peaks = {}
        for work, code in WORK.items():
            script = PEAK.format(build=build, work=code)
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            peaks[work], size = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{peak:.0f} MB ({peak / size:.2f}×)" for peak in peaks.values()]
        print(f"| {name} | {size:.0f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only")
    options = parser.parse_args()
    good = times(options.only, options.rounds)
    print(f"every ratio within {MOST:g}" if good else f"ABOVE {MOST:g}")
    if not options.only:
        memory()


if __name__ == "__main__":
    main()
