"""Fold and verify real networks on a GPU, and print what ran where, with which result, in what time.

    python tests/gpu/check.py [--device cuda|tensorrt] [--runtime onnxruntime|torch] [--quick] > tests/gpu/RESULTS.md

Without --runtime, onnxruntime comes first, then, on cuda, PyTorch with networks of its own.

Where the device cannot be used, this leaves with exit code 4 and says what is missing. Times are of one run with graph
optimisations off, TF32 off, inputs and outputs in host memory: they compare the original with its fold, nothing else.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import conftest  # noqa: F401 - it finds tests/support

import mutations
import numpy as np
import onnx
import onnxruntime

import bnfold
from bnfold.errors import DeviceError
from bnfold.onnx.file.load import from_proto
from bnfold.verification.inputs.feeds import FeedRequest, make_feeds
from bnfold.verification.inputs.sampling import declared_inputs
from bnfold.verification.runtime.devices import Device, cuda_device, tensorrt_device
from bnfold.verification.runtime.sessions import RuntimeFailure, Session, check_device_works

RUNS = 20
HEADER = (
    *("network", "type", "verdict", "worst site", "worst noise ratio", "rel L2 with TF32"),
    *("nodes per provider", "original (ms)", "folded (ms)", "verification (s)"),
)


def networks(*, quick: bool) -> Iterator[mutations.Network]:
    """What is verified: seven networks without transformers, or those and the mutation tests' networks of it."""
    digits = onnx.load(Path(__file__).parents[2] / "samples" / "digits_resnet.onnx")
    feeds, _ = make_feeds(declared_inputs(digits), FeedRequest.of(None, 1, 0, None, None), lambda _: None)
    yield mutations.Network("digits_resnet", digits, feeds[0])
    yield mutations.grouped_decoder()
    for name in mutations.LIGHT_NAMES:
        yield mutations.light_network(name)
    if not quick:
        for name in mutations.ZOO_NAMES:
            yield mutations.zoo_network(name)


def milliseconds(model: onnx.ModelProto, feeds: mutations.Feeds, device: Device) -> float:
    """The median duration of a run."""
    session = Session(from_proto(model).materialize().SerializeToString(), device)
    durations = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(feeds)
        durations.append(1e3 * (time.perf_counter() - start))
    return median(durations[RUNS // 4 :])


def row(network: mutations.Network, dtype: str, device: Device) -> list[str]:
    """One line of the table."""
    given = network if dtype == "float32" else mutations.stored_as(network, mutations.DTYPES[dtype])
    try:
        folded = bnfold.fold(given.model).model
        tf32 = device.kind == "cuda" and dtype == "float32"
        report = bnfold.verify(given.model, folded, inputs=given.feeds, device=device.kind, tf32=tf32)
        times = [milliseconds(model, given.feeds, device) for model in (given.model, folded)]
    except (bnfold.BnfoldError, RuntimeFailure) as error:
        return [network.name, dtype, str(error).replace("|", "/")[:120], *[""] * (len(HEADER) - 3)]
    noise = [output.noise_ratio for output in report.outputs if output.noise_ratio is not None]
    deployed = [output.rel_l2 for output in report.as_deployed if output.rel_l2 is not None]
    sites = [site.ratio for site in report.sites if site.ratio is not None]
    assert report.device is not None
    counts = report.device.nodes_per_provider.items()
    placed = [f"{provider.removesuffix('ExecutionProvider')} {count}" for provider, count in counts]
    return [
        network.name,
        dtype,
        report.verdict if report.verdict == "pass" else f"**{report.verdict}**: {report.reason}",
        f"{max(sites, default=np.nan):.1f} of {len(sites)}",
        f"{max(noise, default=np.nan):.2f}",
        f"{max(deployed):.1e}" if deployed else "–",
        ", ".join(placed),
        *(f"{value:.2f}" for value in times),
        f"{report.timings_s['total']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "tensorrt"), default="cuda")
    parser.add_argument("--runtime", choices=("onnxruntime", "torch"), help="only this one")
    parser.add_argument("--quick", action="store_true", help="leave out the networks that need transformers")
    options = parser.parse_args()
    runtimes = [options.runtime] if options.runtime else ["onnxruntime"] + ["torch"] * (options.device == "cuda")
    if options.device == "tensorrt" and "torch" in runtimes:
        parser.error("PyTorch models do not run on tensorrt")
    reports = {"onnxruntime": report_onnxruntime, "torch": report_torch}
    try:
        failed = [reports[runtime](options.device, quick=options.quick) for runtime in runtimes]
    except DeviceError as error:
        print(f"error: {error}. {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(1 if any(failed) else 0)


def report_onnxruntime(kind: str, *, quick: bool) -> bool:
    """Print the table of onnxruntime, and say whether a network failed.

    Raises:
        DeviceError: The device cannot be used.
    """
    device = {"cuda": cuda_device, "tensorrt": tensorrt_device}[kind]()
    check_device_works(device)
    print(f"# bnfold on {device.name}\n")
    print(f"onnxruntime {onnxruntime.__version__}, {device.provider}, TF32 off for the verdict.\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    failed = False
    for network in networks(quick=quick):
        for dtype in ("float32", "float16"):
            cells = row(network, dtype, device)
            failed |= cells[2].startswith("**fail")
            print(f"| {' | '.join(cells)} |", flush=True)
    return failed


def report_torch(_: str, *, quick: bool) -> bool:
    """Print the table of PyTorch, and say whether a network failed.

    Raises:
        DeviceError: CUDA cannot be used.
    """
    import check_torch  # PyTorch takes seconds to import, and onnxruntime needs none of it

    return check_torch.report(quick=quick)


if __name__ == "__main__":
    main()
