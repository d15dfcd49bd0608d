"""Every rule of the table and every merge broken on purpose, and what the exact gate alone makes of it.

`python tests/verification/exact_mutations.py` writes EXACT_MUTATIONS.md beside this file (some 40 minutes on one core).

A mutation is a change to the source of one function of bnfold, put in its place while a model is folded. A fold that
differs from the right one by its numbers has to fail, bit for bit, without any data and without the other gates.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import tempfile
import textwrap
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import onnx

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import conftest  # noqa: F401 - it finds tests/support

import oracle
from exact_faults import MUTATIONS, Mutation
from exact_networks import networks
from onnx_fold import random_feeds

from bnfold.onnx.file.load import OnnxModel, from_proto
from bnfold.onnx.fold import FoldedOnnx, FoldOptions, fold_onnx
from bnfold.report import Exact, Verdict
from bnfold.verification.exact.onnx.gate import check_onnx


def _resolve(path: str) -> types.FunctionType:
    module, _, name = path.partition(":")
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    function = getattr(found, "__func__", found)
    assert isinstance(function, types.FunctionType)
    return function


def _code_of(mutation: Mutation, function: types.FunctionType) -> types.CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    assert mutation.old in source, f"{mutation.name}: {mutation.old!r} is not in {mutation.function}"
    changed = "from __future__ import annotations\n" + source.replace(mutation.old, mutation.new)
    namespace = dict(function.__globals__)
    exec(compile(changed, f"<{mutation.name}>", "exec"), namespace)
    made = namespace[function.__name__]
    if mutation.inner:
        made = getattr(made(), mutation.inner.partition(".")[2])
    code = getattr(made, "__func__", made).__code__
    assert isinstance(code, types.CodeType)
    return code


@contextlib.contextmanager
def broken(mutation: Mutation) -> Iterator[None]:
    """Breaks bnfold inside the block."""
    function = _resolve(mutation.function)
    code = _code_of(mutation, function)
    target = function
    if mutation.inner:
        row, _, way = mutation.inner.partition(".")
        target = getattr(getattr(importlib.import_module(mutation.function.partition(":")[0]), row), way)
    right, target.__code__ = target.__code__, code
    try:
        yield
    finally:
        target.__code__ = right


class Outcome(StrEnum):
    """What came of a mutation on one model."""

    UNTOUCHED = "the fold is the same"
    CRASHED = "the fold ends with an error"
    CAUGHT = "wrong, and the gate fails"
    HARMLESS = "another fold, and right"
    UNPROVED = "wrong, and the gate is inconclusive"
    MISSED = "wrong, and the gate passes"
    CAUGHT_ALONE = "the gate fails, random data shows nothing"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with its right fold.

    Attributes:
        name: What it is called.
        model: The original.
        right: Its fold.
        folded: The folded model, with all its weights.
        is_wrong: Whether another fold computes something else.
        is_large: Whether it takes long to run, so that nobody asks where the gate fails.
    """

    name: str
    model: OnnxModel
    right: FoldedOnnx
    folded: onnx.ModelProto
    is_wrong: Callable[[onnx.ModelProto], bool]
    is_large: bool = False


def subject(name: str, proto: onnx.ModelProto, *, is_large: bool = False) -> Subject:
    """A model that is compared with its mutated folds in float64."""
    model = from_proto(proto)
    right = fold_onnx(model, FoldOptions())
    return Subject(name, model, right, right.model.materialize(), lambda folded: _differs(proto, folded), is_large)


def _differs(original: onnx.ModelProto, folded: onnx.ModelProto) -> bool:
    feeds = random_feeds(original)
    first, second = (oracle.evaluate(oracle.to_double(model), feeds) for model in (original, folded))
    for name, expected in first.items():
        found = second.get(name)
        if found is None or found.shape != expected.shape or oracle.relative_error(found, expected) > 1e-4:
            return True
    return False


def outcome_of(mutation: Mutation, one: Subject) -> Outcome:
    """Folds with the fault, and asks the exact gate."""
    try:
        with broken(mutation):
            folded = fold_onnx(one.model, FoldOptions())
            proto = folded.model.materialize()
            if proto == one.folded:
                return Outcome.UNTOUCHED
            found = check_onnx(one.model, folded, FoldOptions())
    except Exception:  # noqa: BLE001 - what a fault breaks
        return Outcome.CRASHED
    return _outcome(one, proto, found)


def _outcome(one: Subject, folded: onnx.ModelProto, found: Exact) -> Outcome:
    if one.is_large and found.verdict is Verdict.FAIL:
        return Outcome.CAUGHT
    try:
        wrong = one.is_wrong(folded)
    except Exception:  # noqa: BLE001 - a folded model that does not run
        wrong = True
    if found.verdict is Verdict.FAIL:
        return Outcome.CAUGHT if wrong else Outcome.CAUGHT_ALONE
    if not wrong:
        return Outcome.HARMLESS
    return Outcome.MISSED if found.verdict is Verdict.PASS else Outcome.UNPROVED


def random_subjects(seeds: Iterable[int]) -> Iterator[Subject]:
    """Random graphs of all rows of the table, and sums of random branches."""
    import random_models
    import random_rejoined

    for seed in seeds:
        for module in (random_models, random_rejoined):
            yield subject(f"{module.__name__} {seed}", module.of_seed(seed))


def small_subjects() -> Iterator[Subject]:
    """One model for each kind of move that random graphs seldom make."""
    for name, model in networks():
        yield subject(name, model)


def real_subjects() -> Iterator[Subject]:
    """Real architectures as the TorchScript exporter writes them, with their BatchNorms."""
    import zoo  # transformers take ten seconds to import
    from exporters import Variant

    for entry in zoo.ZOO:
        if entry.name in REAL:
            with tempfile.TemporaryDirectory() as folder:
                file = zoo.exported(entry, entry.build(), Path(folder), Variant.TORCHSCRIPT_RAW)
                yield subject(entry.name, onnx.load(file), is_large=True)


REAL = (
    *("resnet", "regnet", "mobilenet_v2", "efficientnet", "levit", "swiftformer", "uvdoc", "pp_lcnet_v3"),
    *("data2vec_vision", "emu3_temporal_block"),
)


def main() -> None:
    """Writes the table."""
    kinds = {
        "small": list(small_subjects()),
        "random": list(random_subjects((*range(7), 29))),
        "real": list(real_subjects()),
    }
    columns = [
        Outcome.CAUGHT,
        Outcome.CAUGHT_ALONE,
        Outcome.UNPROVED,
        Outcome.MISSED,
        Outcome.HARMLESS,
        Outcome.CRASHED,
    ]
    lines = [
        "# Faults in the rules and merges, and the exact gate",
        "",
        "Written by `python tests/verification/exact_mutations.py`. Each fault is a change to one function of bnfold,",
        f"in place while {len(kinds['small'])} small, {len(kinds['random'])} random and {len(kinds['real'])} real",
        f"networks are folded ({', '.join(one.name for one in kinds['real'])}).",
        "Nothing but the exact gate looks at the folds; how many of them, by what came of it:",
        "",
        "| fault | " + " | ".join(columns) + " | of them real |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for mutation in MUTATIONS:
        counts: Counter[Outcome] = Counter()
        real: Counter[Outcome] = Counter()
        for kind, subjects in kinds.items():
            found: Counter[Outcome] = Counter()
            for one in subjects:
                outcome = outcome_of(mutation, one)
                found[outcome] += 1
                if outcome in (Outcome.MISSED, Outcome.UNPROVED):
                    print(f"{mutation.name}, {one.name}: {outcome}", file=sys.stderr, flush=True)
            counts += found
            real += found if kind == "real" else Counter()
        lines.append(
            f"| {mutation.name} | "
            + " | ".join(str(counts[column] or "–") for column in columns)
            + f" | {real[Outcome.CAUGHT] + real[Outcome.CAUGHT_ALONE] or '–'} |"
        )
        print(lines[-1], flush=True)
    Path(__file__).with_name("EXACT_MUTATIONS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
