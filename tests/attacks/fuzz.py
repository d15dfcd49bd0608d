"""Folds and reads files that were changed at random, for as long as wanted; says what should not have happened.

    python tests/attacks/fuzz.py 1800                  # half an hour, all kinds of files
    python tests/attacks/fuzz.py 60 --kind onnx --seed 7
    python tests/attacks/fuzz.py 1800 --kind onnx --atheris     # guided by coverage; pip install atheris

Whatever a file says, it is folded right, or refused with a sentence: no crash, no hang (10 s of processor time), no
traceback, no more than 3 GB of memory, no fold that the exact gate calls wrong. The work is done by children, so that a
crash is found like anything else. A finding can be had again by its kind, seed and number:
`python tests/attacks/fuzz.py --again onnx 0 4711`.
"""

import argparse
import importlib
import io
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401 - puts the helpers of the tests on the path

sys.path.insert(0, str(Path(__file__).parent))
import changed_bytes

import bnfold
from bnfold.errors import BnfoldError

HANG_S = 10.0
MEMORY_NBYTES = 3 << 30
BATCH = 200
_SEEDS = 40


class Wrong(Exception):  # noqa: N818 - what was found, not what went wrong
    """A fold that the exact gate calls wrong."""


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        suffix: What they end in.
        seeds: Makes good ones.
        mutate: Changes one.
        run: What is done with it.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    run: Callable[[Path], None]


@cache
def onnx_seeds() -> list[bytes]:
    import random_models

    return [random_models.of_seed(seed).SerializeToString() for seed in range(_SEEDS)]


@cache
def npz_seeds() -> list[bytes]:
    made = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, x=np.ones((2, 3), np.float32), ids=np.arange(4), flags=np.zeros(3, bool))
        made.append(file.getvalue())
    return made


@cache
def network() -> "object":
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()


@cache
def pt2_seeds() -> list[bytes]:
    import torch

    file = io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.zeros(1, 3, 8, 8),)), file)
    return [file.getvalue()]


@cache
def safetensors_seeds() -> list[bytes]:
    from safetensors.torch import save

    return [save(network().state_dict())]


def run_onnx(path: Path) -> None:
    result = bnfold.fold(path)
    if result.changed:
        exact = result.check()
        if exact.verdict == "fail":
            raise Wrong(exact.reason)
        result.save(path.with_name("folded.onnx"))


def run_npz(path: Path) -> None:
    from bnfold.verification import load_inputs

    load_inputs(path)


def run_pt2(path: Path) -> None:
    result = bnfold.fold(path)
    if result.check().verdict == "fail":
        raise Wrong(result.check().reason)


def run_safetensors(path: Path) -> None:
    import copy

    from bnfold.torch.file.state_dict import load_weights

    load_weights(copy.deepcopy(network()), path)


KINDS = {
    "onnx": Kind(".onnx", onnx_seeds, changed_bytes.model_of, run_onnx),
    "npz": Kind(".npz", npz_seeds, changed_bytes.archive_of, run_npz),
    "pt2": Kind(".pt2", pt2_seeds, changed_bytes.archive_of, run_pt2),
    "safetensors": Kind(".safetensors", safetensors_seeds, changed_bytes.safetensors_of, run_safetensors),
}


def made(kind: str, seed: int, number: int) -> bytes:
    """The changed file of a number."""
    rng = random.Random(f"{kind} {seed} {number}")
    return KINDS[kind].mutate(rng.choice(KINDS[kind].seeds()), rng)


def tried(kind: str, data: bytes, folder: Path) -> str:
    """What comes of a file: "folded", "refused", or what should not be."""
    path = folder / f"m{KINDS[kind].suffix}"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind].run(path)
    except BnfoldError as error:
        return "refused" if error.exit_code == 3 and str(error) else f"EXIT CODE {error.exit_code} {error}"
    except Wrong as error:
        return f"WRONG {error}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:200]
        return f"TRACEBACK {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {said}"
    return "folded"


def fuzz(kind: str, seconds: float, seed: int) -> tuple[Counter[str], dict[int, str]]:
    """Tries files until the time is up.

    Returns:
        How many came out how, and what should not have been, by number.
    """
    importlib.import_module("bnfold.verification.exact.onnx.gate")  # once, and not in each child
    KINDS[kind].seeds()
    counts: Counter[str] = Counter()
    findings: dict[int, str] = {}
    number, end = -1, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            results = _batch(kind, seed, number + 1, end, Path(folder))
            for number, said in results:
                outcome = said if said in ("folded", "refused") else said.partition(" ")[0]
                counts[outcome] += 1
                if outcome.isupper():
                    findings[number] = said
    return counts, findings


def _batch(kind: str, seed: int, start: int, end: float, folder: Path) -> list[tuple[int, str]]:
    """What a child finds, up to a file that ends it."""
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(source)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _try_many(kind, seed, start, end, folder, target)
            code = 0
        finally:
            os._exit(code)
    os.close(target)
    told, seen_s = b"", _processor_s(child)
    ended = ""
    while not ended:
        ready, _, _ = select.select([source], [], [], 0.5)
        if ready:
            read = os.read(source, 1 << 16)
            if not read:
                status = os.waitpid(child, 0)[1]
                ended = f"CRASH {os.waitstatus_to_exitcode(status)}" if status else "over"
                break
            told, seen_s = told + read, _processor_s(child)
        elif _processor_s(child) - seen_s > HANG_S:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended = "HANG"
    os.close(source)
    lines = [line.partition(" ") for line in told.decode().splitlines()]
    found = [(int(number), said) for number, _, said in lines]
    if ended != "over":
        found.append((found[-1][0] + 1 if found else start, ended))
    return found


def _try_many(kind: str, seed: int, start: int, end: float, folder: Path, target: int) -> None:
    """What the child does, which tells of each file as soon as it is done."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_NBYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(start, start + BATCH):
        said = tried(kind, made(kind, seed, number), folder).replace("\n", " ")[:400]
        os.write(target, f"{number} {said}\n".encode("utf-8", "backslashreplace"))
        if time.monotonic() > end:
            break


def _processor_s(process: int) -> float:
    """The processor time that a process has used."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def guided(kind: str, seconds: float, seed: int) -> None:
    """The same, with files that reach code which none has reached before."""
    import atheris

    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "corpus")
        corpus.mkdir()
        for number, data in enumerate(KINDS[kind].seeds()):
            (corpus / str(number)).write_bytes(data)

        def one(data: bytes) -> None:
            said = tried(kind, data, Path(name))
            if said not in ("folded", "refused"):
                raise AssertionError(said)

        def mutate(data: bytes, limit: int, step: int) -> bytes:
            try:
                changed = KINDS[kind].mutate(data, random.Random(step))
            except Exception:  # noqa: BLE001 - what is no model any more has only bytes to change
                changed = changed_bytes.bytes_of(data, random.Random(step))
            return changed[:limit]

        words = [sys.argv[0], f"-max_total_time={seconds:.0f}", f"-seed={seed}", "-timeout=60", "-max_len=100000"]
        atheris.instrument_all()
        atheris.Setup([*words, str(corpus)], one, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--again", nargs=3, metavar=("KIND", "SEED", "NUMBER"))
    options = parser.parse_args()
    if options.again:
        kind, seed, number = options.again[0], *map(int, options.again[1:])
        sys.stdout.buffer.write(made(kind, seed, number))
        return 0
    kinds = options.kind or [*KINDS]
    found = False
    for kind in kinds:
        if options.atheris:
            guided(kind, options.seconds / len(kinds), options.seed)
            continue
        counts, findings = fuzz(kind, options.seconds / len(kinds), options.seed)
        print(f"{kind:12} " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())), flush=True)
        for number, said in findings.items():
            print(f"  --again {kind} {options.seed} {number}: {said}", flush=True)
        found = found or bool(findings)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
