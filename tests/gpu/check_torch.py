"""The part of `check.py` that folds and verifies PyTorch networks on CUDA."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1]))

import conftest  # noqa: F401 - it finds tests/support
import numpy as np
import torch
import torch_networks

import bnfold
from bnfold.verification.runtime.devices import DeviceRequest
from bnfold.verification.torch.run.devices import settings, torch_device

RUNS = 20
ZOO_NAMES = ("resnet", "regnet", "mobilenet_v2", "efficientnet", "mobilevit", "levit")
DTYPES = ("float32", "float16", "bfloat16")
HEADER = (
    *("network", "type", "verdict", "worst site", "worst noise ratio", "worst ratio in float64", "rel L2 with TF32"),
    *("operations", "original (ms)", "folded (ms)", "verification (s)"),
)

Network = tuple[str, torch.nn.Module, tuple[torch.Tensor, ...]]


def networks(*, quick: bool) -> Iterator[Network]:
    """What is verified: five small networks, and six of transformers."""
    for name in torch_networks.NAMES:
        given = torch_networks.network(name)
        yield name, given.module, given.inputs
    if not quick:
        import zoo

        for entry in zoo.ZOO:
            if entry.name in ZOO_NAMES:
                yield (entry.name, *entry.build())


def report(*, quick: bool) -> bool:
    """Print the table, and say whether a network failed.

    Raises:
        DeviceError: CUDA cannot be used.
    """
    device, _ = torch_device(DeviceRequest.CUDA)
    print(f"\n# PyTorch on {device.name}\n")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, TF32 off for the verdict.\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    failed = False
    for network in networks(quick=quick):
        for dtype in DTYPES:
            cells = row(network, dtype, device.kind)
            failed |= cells[2].startswith("**fail")
            print(f"| {' | '.join(cells)} |", flush=True)
    return failed


def row(network: Network, dtype: str, device: str) -> list[str]:
    """One line of the table."""
    name, module, inputs = network
    kind = torch_networks.DTYPES[dtype]
    module = module.to(kind)
    inputs = tuple(value.to(kind) if value.is_floating_point() else value for value in inputs)
    try:
        folded = bnfold.fold(module, inputs).model
        tf32 = device == "cuda" and dtype == "float32"
        found = bnfold.verify(module, folded, example_inputs=inputs, device=device, tf32=tf32)
        times = [milliseconds(model, inputs, device) for model in (module, folded)]
    except (bnfold.BnfoldError, RuntimeError) as error:
        return [name, dtype, str(error).replace("|", "/")[:120], *[""] * (len(HEADER) - 3)]
    noise = [output.noise_ratio for output in found.outputs if output.noise_ratio is not None]
    exact = [output.float64_ratio for output in found.outputs if output.float64_ratio is not None]
    deployed = [output.rel_l2 for output in found.as_deployed if output.rel_l2 is not None]
    sites = [site.ratio for site in found.sites if site.ratio is not None]
    assert found.device is not None
    counts = ", ".join(f"{where} {count}" for where, count in found.device.nodes_per_provider.items())
    return [
        name,
        dtype,
        found.verdict if found.verdict == "pass" else f"**{found.verdict}**: {found.reason}",
        f"{max(sites, default=np.nan):.1f} of {len(sites)}",
        f"{max(noise, default=np.nan):.2f}",
        f"{max(exact, default=np.nan):.2f}",
        f"{max(deployed):.1e}" if deployed else "–",
        counts,
        *(f"{value:.2f}" for value in times),
        f"{found.timings_s['total']:.1f}",
    ]


def milliseconds(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], device: str) -> float:
    """The median duration of a run, without TF32; the device is done when the clock stops."""
    done: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    moved, here = module.to(device), tuple(value.to(device) for value in inputs)
    durations = []
    with settings(tf32=False):
        for _ in range(RUNS):
            start = time.perf_counter()
            moved(*here)
            done()
            durations.append(1e3 * (time.perf_counter() - start))
    module.to("cpu")
    return median(durations[RUNS // 4 :])
