"""Kills a fold at any moment, and says what is on the disk then: the old model or the new one, never a mixture.

    python tests/attacks/kills.py 500

Three kinds of kills: SIGKILL after a random time; at each single system call that changes a file (a child that ends
itself at the n-th of them); two folds to one destination at once, of which one is killed. After each, the next run on
the same destination has to leave the two files of its model, and nothing else.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

import bnfold
from bnfold.errors import BnfoldError
from bnfold.onnx.file import output as output_module

_CALLS = ("replace", "rename", "fsync", "open", "mkdir", "chmod", "close", "unlink", "rmdir")


def make_model(path: Path, seed: int, *, external: bool, convolutions: int = 4, channels: int = 64) -> None:
    """A chain of Conv and BatchNormalization with weights of its own."""
    rng = np.random.default_rng(seed)
    nodes, tensors, value = [], [], "x"
    for index in range(convolutions):
        weight = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32) / 20
        tensors.append(onh.from_array(weight, f"w{index}"))
        names = [f"{part}{index}" for part in ("gamma", "beta", "mean", "var")]
        tensors += [onh.from_array(rng.uniform(0.5, 1.5, channels).astype(np.float32), name) for name in names]
        nodes.append(oh.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(oh.make_node("BatchNormalization", [f"c{index}", *names], [f"b{index}"], name=f"bn{index}"))
        value = f"b{index}"
    ends = [oh.make_tensor_value_info(name, 1, [1, channels, 8, 8]) for name in ("x", value)]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=external, location=f"{path.name}.weights", size_threshold=0)


def content(path: Path) -> bytes:
    """All that a model says, data included; b"unreadable" if it cannot be read."""
    try:
        return bytes(onnx.load(path).SerializeToString(deterministic=True))
    except Exception:  # noqa: BLE001 - whatever onnx raises on half a model
        return b"unreadable"


def fold(source: Path, destination: Path) -> None:
    """What is killed."""
    bnfold.fold(source).save(destination)


def child(work: Callable[[], None]) -> int:
    """Starts work in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    try:
        work()
    except BnfoldError:
        os._exit(5)
    except BaseException:  # noqa: BLE001 - the child ends here
        os._exit(99)
    os._exit(0)


def waited(number: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@contextmanager
def dying_at(call: int) -> Iterator[list[int]]:
    """Ends this process at the n-th system call that changes a file; before it, as a kill would.

    Gives a list whose length is the number of calls so far.
    """
    seen: list[int] = []
    real = {name: getattr(os, name) for name in _CALLS}
    write = output_module.Output._write_all

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            seen.append(1)
            if len(seen) == call:
                os._exit(77)
            return function(*arguments, **options)

        return step

    for name, function in real.items():
        setattr(os, name, counted(function))
    output_module.Output._write_all = counted(write)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        output_module.Output._write_all = write  # type: ignore[method-assign]


class Arena:
    """A folder with a destination that holds an old model, and a source that a new one is made of.

    Args:
        folder: An empty folder.
        external: Whether weights are in data files.
    """

    def __init__(self, folder: Path, *, external: bool) -> None:
        self.sources = [folder / f"source{number}.onnx" for number in range(3)]
        self.place = folder / "place"
        self.destination = self.place / "m.onnx"
        self._kept = folder / "kept"
        for number, source in enumerate(self.sources):
            make_model(source, number, external=external)
        self._kept.mkdir()
        self.place.mkdir()
        fold(self.sources[0], self._kept / "m.onnx")
        self.contents = []
        for source in self.sources:
            fold(source, self.destination)
            self.contents.append(content(self.destination))
        self.files = len(os.listdir(self.place))

    def reset(self) -> None:
        """Puts the old model back, alone."""
        shutil.rmtree(self.place)
        shutil.copytree(self._kept, self.place)

    def state(self) -> str:
        """Which model is there: "model 0" is the old one."""
        found = content(self.destination)
        return f"model {self.contents.index(found)}" if found in self.contents else "MIXED"

    def litter_after_next_run(self) -> list[str]:
        """What is too many after one more fold."""
        fold(self.sources[1], self.destination)
        names = os.listdir(self.place)
        right = self.state() == "model 1" and len(names) == self.files
        return [] if right else sorted(names)


def random_kills(arena: Arena, count: int, rng: random.Random) -> Counter[str]:
    """Kills at random moments of a fold."""
    arena.reset()
    started = time.monotonic()
    waited(child(lambda: fold(arena.sources[1], arena.destination)))
    usual_s = time.monotonic() - started
    found: Counter[str] = Counter()
    for _ in range(count):
        arena.reset()
        number = child(lambda: fold(arena.sources[1], arena.destination))
        time.sleep(rng.uniform(0, 1.1 * usual_s))
        os.kill(number, signal.SIGKILL)
        waited(number)
        _note(arena, found)
    return found


def kills_at_calls(arena: Arena, step: int = 1) -> Counter[str]:
    """Ends at each `step`-th system call in turn, until a fold gets through."""
    found: Counter[str] = Counter()
    call = 1
    while True:
        arena.reset()

        def work(call: int = call) -> None:
            with dying_at(call):
                fold(arena.sources[1], arena.destination)

        code = waited(child(work))
        _note(arena, found)
        if code != 77:
            found["moments"] = call
            return found
        call += step


def two_at_once(arena: Arena, count: int, rng: random.Random, *, kill: bool) -> Counter[str]:
    """Two folds to one destination; with `kill`, one of them is killed."""
    found: Counter[str] = Counter()
    for _ in range(count):
        arena.reset()
        numbers = [child(lambda source=source: fold(source, arena.destination)) for source in arena.sources[1:]]  # type: ignore[misc]
        if kill:
            time.sleep(rng.uniform(0, 0.2))
            os.kill(numbers[0], signal.SIGKILL)
        codes = [waited(number) for number in numbers]
        if codes[1] != 0 or codes[0] not in (0, -signal.SIGKILL):
            found[f"EXIT CODES {codes}"] += 1
        _note(arena, found)
    return found


def _note(arena: Arena, found: Counter[str]) -> None:
    found[arena.state()] += 1
    if arena.litter_after_next_run():
        found["LITTER"] += 1


def everything(folder: Path, count: int, *, step: int = 1, seed: int = 0) -> dict[str, Counter[str]]:
    """All kinds of kills, `count` of them at random moments; what was found, by kind."""
    rng = random.Random(seed)
    table = {}
    for name, external in (("in file", False), ("external", True)):
        place = folder / name.replace(" ", "_")
        place.mkdir()
        arena = Arena(place, external=external)
        each = max(1, count // 6)
        table[f"{name}, random moments"] = random_kills(arena, each, rng)
        table[f"{name}, every system call"] = kills_at_calls(arena, step)
        table[f"{name}, two at once"] = two_at_once(arena, each, rng, kill=False)
        table[f"{name}, two at once, one killed"] = two_at_once(arena, each, rng, kill=True)
    return table


def failures(table: dict[str, Counter[str]]) -> list[str]:
    """What should not have been found."""
    return [f"{kind}: {what}" for kind, found in table.items() for what in found if what.isupper() or "EXIT" in what]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        result = everything(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    for kind, found in result.items():
        print(f"{kind:32s} " + ", ".join(f"{what} {number}" for what, number in sorted(found.items())))
    sys.exit(bool(failures(result)))
