"""The exact gate for exported programs and modules; see `gate` for ONNX."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn
from torch.export import ExportedProgram

from bnfold.errors import BnfoldError
from bnfold.planning.plan import Leftover
from bnfold.report.records import Exact, Unproved, Verdict
from bnfold.text.progress import each
from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.example_inputs import DynamicShapes, ExampleInputs, split_inputs
from bnfold.torch.capture.export import Refused, trace
from bnfold.torch.capture.wrappers import unwrap
from bnfold.torch.module.fold import FoldedModule, fold_module
from bnfold.torch.module.module_planner import Findings
from bnfold.torch.program.fold import FoldedProgram, fold_program
from bnfold.verification.exact.judging import NotCutError, summed_up
from bnfold.verification.exact.numbers import Numbers
from bnfold.verification.exact.plans import difference
from bnfold.verification.exact.torch.feeding import Sizes, symbols
from bnfold.verification.exact.torch.regions import Pair, WrongError
from bnfold.verification.exact.torch.small_numbers import SmallNumbers
from bnfold.verification.exact.torch.stand_in import stand_in_findings, stand_in_module, stand_in_program
from bnfold.verification.torch.run.traced import Traced, label, read
from bnfold.verification.torch.sites.pairing import Guess, by_name, pair
from bnfold.verification.torch.sites.planned import NotPairedError, by_known_plan

_ATTEMPTS = 3
_LEAST = (1, 2, 3, 4, 16, 24, 32, 48, 64, 96, 224, 256)
"""Sizes for a symbol, tried in this order, two after the other; never less than it may be."""


def check_program(
    program: ExportedProgram,
    real: FoldedProgram,
    *,
    skip: tuple[str, ...],
    only: tuple[str, ...],
    leftover: Leftover,
    merge: bool,
) -> Exact:
    """Whether a fold of a program is right for all parameters with the same signs, zeros and equalities.

    Args:
        program: The original; it is not changed.
        real: Its fold.
        skip: As given to the fold, like the others.
        only: See above.
        leftover: See above.
        merge: See above.
    """
    if not real.changed:
        return Exact(Verdict.PASS)
    started = time.perf_counter()
    found = Exact(Verdict.INCONCLUSIVE)
    for seed in range(_ATTEMPTS):
        try:
            original = stand_in_program(program, Numbers(seed))
            folded = fold_program(original, skip=skip, only=only, leftover=leftover, merge=merge)
        except BnfoldError as error:
            found = Exact(Verdict.INCONCLUSIVE, f"the program cannot be folded with small numbers: {error}")
            break
        other = difference(real.plan, folded.plan)
        if not other:
            first, second = read(original), read(folded.program)
            found = compare_programs(first, second, by_name(first, second))
            break
        found = other_plan(other)
    return replace(found, duration_s=time.perf_counter() - started)


def check_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    dynamic_shapes: DynamicShapes | None,
    real: FoldedModule,
    *,
    skip: tuple[str, ...],
    only: tuple[str, ...],
) -> Exact:
    """Whether a fold of a module is right for all parameters with the same signs, zeros and equalities.

    Args:
        module: The original; it is not changed.
        example_inputs: What it was folded for.
        dynamic_shapes: As given to the fold, like the others.
        real: Its fold.
        skip: See above.
        only: See above.
    """
    if not real.changed:
        return Exact(Verdict.PASS)
    started = time.perf_counter()

    def fold(stand_in: nn.Module, known: Findings | None) -> FoldedModule:
        return fold_module(stand_in, example_inputs, dynamic_shapes, skip=skip, only=only, known=known)

    def export(one: nn.Module) -> ExportedProgram:
        return trace(shadow(one), split_inputs(example_inputs), dynamic_shapes)

    try:
        found = _check_module(unwrap(module), real, fold, export)
    except Refused as refused:
        found = Exact(Verdict.INCONCLUSIVE, f"torch.export refuses the whole module: {refused.reason}")
    except (NotPairedError, BnfoldError) as error:
        found = Exact(Verdict.INCONCLUSIVE, f"its values could not be paired: {error}")
    return replace(found, duration_s=time.perf_counter() - started)


def _check_module(
    module: nn.Module,
    real: FoldedModule,
    fold: Callable[[nn.Module, Findings | None], FoldedModule],
    export: Callable[[nn.Module], ExportedProgram],
) -> Exact:
    program = real.findings.whole or export(module)
    found = Exact(Verdict.INCONCLUSIVE)
    for seed in range(_ATTEMPTS):
        small = SmallNumbers(program, Numbers(seed))
        original = stand_in_module(module, small)
        for known in dict.fromkeys((stand_in_findings(real.findings, small, original), None)):
            folded = fold(original, known)
            other = difference(real.plan, folded.plan)
            if other:
                found = other_plan(other)
                break
            first, second = read(folded.findings.whole or export(original)), read(export(folded.module))
            found = compare_programs(first, second, by_known_plan(first, second, folded.plan))
            if known is None or found.verdict is not Verdict.FAIL:
                return found
    return found


def other_plan(difference_: str) -> Exact:
    """What is said where small numbers lead to something else."""
    return Exact(Verdict.INCONCLUSIVE, f"small numbers do not give the same plan: {difference_}")


def compare_programs(original: Traced, folded: Traced, guess: Guess) -> Exact:
    """Compares every value that changed nodes yield, as a function of what they begin with.

    Args:
        original: The original, with small numbers.
        folded: Its fold.
        guess: What each node of the fold may stand for.
    """
    pairing = pair(original, folded, guess)
    if pairing is None:
        return Exact(Verdict.FAIL, "the folded model takes other inputs")
    shared = set(pairing.partners.values())
    ends = [node for node in pairing.changed if node in pairing.partners]
    bounds = symbols(original.program)
    unproved = []
    for end in each(ends, "region"):
        found = _compare(Pair(original, folded, end, pairing.partners, shared), lambda: _choices(bounds), bool(bounds))
        if found is not None:
            unproved.append(replace(found, value=label(pairing.partners[end])))
    return summed_up(unproved, len(ends), 2 if bounds else 1)


def _compare(region: Pair, choices: Callable[[], Iterator[Sizes]], is_open: bool) -> Unproved | None:
    nodes = tuple(dict.fromkeys(label(node) for node in region.nodes))
    equal, trouble = 0, "was not run"
    for seed, sizes in enumerate(choices()):
        try:
            verdict, clause = region.compare(sizes, seed)
        except NotCutError as error:
            trouble = str(error)
            continue
        except WrongError as error:
            return Unproved(nodes, "", str(error), wrong=True)
        if verdict is not Verdict.PASS:
            return Unproved(nodes, "", clause, wrong=verdict is Verdict.FAIL)
        equal += 1
        if equal == (2 if is_open else 1):
            return None
    # Some models are valid at one size of what they leave open.
    return None if equal else Unproved(nodes, "", trouble, wrong=False)


def _choices(bounds: dict[str, tuple[int, int]]) -> Iterator[Sizes]:
    """Sizes for the symbols: all as small as they may be, then others, no two of a choice equal if that can be."""
    if not bounds:
        yield {}
        return
    for least in _LEAST:
        yield {
            symbol: min(max(low, least + (index if least > 1 else 0)), high)
            for index, (symbol, (low, high)) in enumerate(bounds.items())
        }
