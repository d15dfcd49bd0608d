"""Where the processor time of a whole command goes, for each kind of work, beside what users would run instead.

    python tests/benchmarks/where_time_goes.py [ROW ...] [--rounds 3] [--list]

Every run is a process of its own, bnfold and its peer take turns, and medians count. Phases are seconds of processor
time of all threads, each without the phases inside of it; what is in none is "rest". `--list` names the rows. Models
are made first, in a temporary folder: those of torch need torch and transformers, and take a minute each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
from fold_speed import EXPORT, PEERS
from processes import in_turns, ratio
from versions import versions

PHASES = {
    "bnfold.onnx.file.load:load": "parse",
    "bnfold.onnx.fold:check": "check",
    "bnfold.onnx.fold:lift": "lift",
    "bnfold.onnx.lift.lift:with_inferred_shapes": "shapes",
    "bnfold.planning.planner:plan": "plan",
    "bnfold.onnx.fold:apply": "apply",
    "bnfold.onnx.file.save:_write": "write",
    "bnfold.onnx.file.save:Staged.commit": "commit",
    "bnfold.checking:onnx": "exact gate",
    "bnfold.verification.onnx.verifier:measure_sites": "sites gate",
    "bnfold.verification.onnx.verifier:judge_outputs": "noise",
    "bnfold.verification.onnx.verifier:_compare_models": "runs",
}
TORCH_PHASES = {
    "torch.export:export": "torch.export",
    "torch.onnx:export": "torch.onnx.export",
    "bnfold.torch.module.rehearsal.rehearsal:Rehearsal.objections": "rehearsal",
    "bnfold.torch.module.trials.trials:Trials.differing": "trials",
    "bnfold.torch.capture.capture:run_first": "first run",
    "bnfold.torch.module.module_planner:ModulePlanner.plan": "plan",
    "bnfold.torch.program.fold:fold_program": "plan",
    "bnfold.checking:module": "exact gate",
    "bnfold.checking:program": "exact gate",
    "bnfold.verification.torch.verifier:measure_sites": "sites gate",
    "bnfold.verification.torch.verifier:judge_by_noise": "noise",
    "bnfold.verification.torch.verifier:_compare": "runs",
}

TIMED = """
import atexit, functools, importlib, json, sys, time
inside, spent = [], {{}}

def timed(function, phase):
    @functools.wraps(function)
    def call(*args, **kwargs):
        start = time.process_time()
        inside.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            whole = time.process_time() - start
            spent[phase] = spent.get(phase, 0.0) + whole - inside.pop()
            if inside:
                inside[-1] += whole
    return call

{imports}
for place, phase in {phases!r}.items():
    file, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(file))
    setattr(owner, name, timed(getattr(owner, name), phase))
spent["imports"] = time.process_time()
inside.append(0.0)

def tell():
    spent["rest"] = time.process_time() - spent["imports"] - inside.pop()
    print()
    print(json.dumps(spent))

atexit.register(tell)
({call})()
"""

COMMAND = "lambda: importlib.import_module('bnfold.__main__').main()"
ARGUMENTS = "sys.argv = ['bnfold', *{words!r}, '--quiet', '--force', '--device', 'cpu']"
# As trained networks are: with the numbers that torch begins with activations shrink to denormals, which take long.
MODULE = """
import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
def network():
    torch.manual_seed(0)
    made = MobileNetV2ForImageClassification(MobileNetV2Config(return_dict=False)).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0.0, 0.1)
    return made
"""
IMAGE = "torch.randn(1, 3, 224, 224)"
EXPORT_MODULE = MODULE + f"torch.onnx.export(network(), ({IMAGE},), {{out!r}}, dynamo=True)"
VERIFIED = f"""{MODULE}
import bnfold
module, inputs = network(), ({IMAGE},)
folded = bnfold.fold(module, inputs).model
"""


def conv_chain(path: Path, length: int = 4000) -> None:
    """Writes `length` Conv, BatchNormalization and Relu in a row."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    nodes, tensors = [], []
    for number in range(length):
        names = [f"{kind}{number}" for kind in ("gamma", "beta", "mean", "variance")]
        arrays = [draw.uniform(0.5, 1.5, (4, 8)).astype("f"), draw.normal(0, 0.1, (8, 8, 3, 3)).astype("f")]
        tensors += [numpy_helper.from_array(row, name) for row, name in zip(arrays[0], names, strict=True)]
        tensors.append(numpy_helper.from_array(arrays[1], f"weight{number}"))
        read = [f"relu{number - 1}" if number else "x", f"weight{number}"]
        nodes.append(helper.make_node("Conv", read, [f"conv{number}"], pads=[1] * 4, kernel_shape=[3, 3]))
        nodes.append(helper.make_node("BatchNormalization", [f"conv{number}", *names], [f"bn{number}"]))
        nodes.append(helper.make_node("Relu", [f"bn{number}"], [f"relu{number}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 8, 8]) for name in ("x", f"relu{length - 1}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def made(name: str, folder: Path) -> Path:
    """The file of a model."""
    path = folder / f"{name}.onnx"
    if name == "sample":
        return Path(__file__).parents[2] / "samples" / "digits_resnet.onnx"
    if name == "chain":
        conv_chain(path)
        return path
    dynamo = name.endswith("dynamo")
    code = EXPORT_MODULE if name == "mobilenet dynamo" else EXPORT
    subprocess.run([sys.executable, "-c", code.format(out=str(path), dynamo=dynamo)], check=True, capture_output=True)
    return path


FILES = {
    "sample": "sample",
    "mobilenet": "mobilenet dynamo",
    "resnet50": "resnet50",
    "resnet50-dynamo": "resnet50 dynamo",
    "chain": "chain",
}
MODULES = {"to-onnx": ".onnx", "to-safetensors": ".safetensors"}
ROWS = [
    *FILES,
    *(f"{name}-verified" for name in FILES if name != "chain"),
    *(f"{name}{kind}" for name in MODULES for kind in ("", "-verified")),
    "module-verify",
]


def codes(row: str, folder: Path, out: Path) -> dict[str, str]:
    """What a row runs: bnfold, and what stands beside it."""
    verified = row.endswith("-verified")
    name = row.removesuffix("-verified")
    checks = [] if verified else ["--no-verify"]
    if row == "module-verify":
        call = "lambda: bnfold.verify(module, folded, example_inputs=inputs, device='cpu')"
        return {row: TIMED.format(imports=VERIFIED, phases=TORCH_PHASES, call=call)}
    if name in MODULES:
        (folder / "benchmarked.py").write_text(MODULE)
        words = ["fold", "benchmarked:network", "--input", "1,3,224,224", "-o", str(out.with_suffix(MODULES[name]))]
        imports = f"sys.path.insert(0, {str(folder)!r})\n" + ARGUMENTS.format(words=[*words, *checks])
        phases = {**TORCH_PHASES, **PHASES}
        peer = (
            EXPORT_MODULE.format(out=str(out))
            if name == "to-onnx"
            else f"{MODULE}\ntorch.export.export(network(), ({IMAGE},))"
        )
        beside = "torch.onnx.export" if name == "to-onnx" else "torch.export"
        return {row: TIMED.format(imports=imports, phases=phases, call=COMMAND), beside: peer}
    model = str(made(FILES[name], folder))
    imports = ARGUMENTS.format(words=["fold", model, "-o", str(out), *checks])
    phases = PHASES if verified else {place: phase for place, phase in PHASES.items() if "verif" not in place}
    beside = "onnxruntime offline"
    return {
        row: TIMED.format(imports=imports, phases=phases, call=COMMAND),
        beside: PEERS[beside].format(model=model, out=str(out)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    unknown = set(options.rows) - {*ROWS}
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; --list names them")
    print(f"whole processes in turns, medians of {options.rounds}; {versions()}\n")
    print("| work | CPU | wall | peak memory | beside it | CPU ratio | wall ratio | phases: seconds of CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for row in options.rows or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"

            def clear(out: Path = out) -> None:
                for path in out.parent.glob("out.*"):
                    path.unlink()

            show(row, in_turns(codes(row, Path(folder), out), options.rounds, clear))


def show(row: str, found: dict) -> None:
    ours = found.pop(row, None)
    if ours is None:
        sys.exit(f"{row}: bnfold fails")
    figures = [median(getattr(usage, figure) for usage in ours) for figure in ("cpu_s", "wall_s", "peak_mb")]
    name, theirs = next(iter(found.items()), ("", []))
    beside = f"{name} {median(usage.cpu_s for usage in theirs):.2f} s" if theirs else ""
    ratios = [f"{ratio(ours, theirs, figure):.2f}" if theirs else "" for figure in ("cpu_s", "wall_s")]
    spent = [json.loads(usage.printed) for usage in ours]
    phases = {phase: median(each.get(phase, 0.0) for each in spent) for phase in spent[0]}
    told = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items() if seconds >= 0.005)
    cells = [row, f"{figures[0]:.2f} s", f"{figures[1]:.2f} s", f"{figures[2]:.0f} MB", beside, *ratios, told]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
