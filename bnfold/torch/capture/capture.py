"""Everything that can be captured of a module: one program, or, where torch.export refuses it, those of its parts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.export import ExportedProgram

from bnfold.errors import UsageError
from bnfold.torch.capture.descend import Frame, run_example
from bnfold.torch.capture.eager_run import run_first
from bnfold.torch.capture.example_inputs import DynamicShapes, array_hint
from bnfold.torch.capture.export import Arguments, Refused, first_line, trace


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of a module that was captured.

    Attributes:
        path: The path of the part, "" for the whole.
        program: What it does with one kind of inputs.
        inputs: In words, those of the example; empty for the first.
    """

    path: str
    program: ExportedProgram
    inputs: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """What was captured of a module.

    Attributes:
        pieces: The programs, in the order in which the example reaches them.
        refusals: The paths of the modules that were run but could not be captured, with what torch.export said.
        callers: For each part the path of such a module whose code calls it.
        read_outside: The memory of the parameters and buffers that code outside of the pieces reads.
    """

    pieces: tuple[Piece, ...]
    refusals: Mapping[str, str]
    callers: Mapping[str, str]
    read_outside: frozenset[int]

    @property
    def reason(self) -> str:
        """What torch.export said, all of it."""
        return "; ".join(dict.fromkeys(self.refusals.values()))

    def joined(self, other: "Capture", inputs: str) -> "Capture":
        """What was captured of a module, with what was captured of it with other inputs.

        Args:
            other: The second capture.
            inputs: In words, its inputs.
        """
        return Capture(
            (*self.pieces, *(replace(piece, inputs=inputs) for piece in other.pieces)),
            {**other.refusals, **self.refusals},
            {**other.callers, **self.callers},
            self.read_outside | other.read_outside,
        )


def capture(
    module: nn.Module,
    arguments: Arguments,
    dynamic_shapes: DynamicShapes | None,
    *,
    must_record: Collection[str],
    may_record: Collection[str],
) -> Capture:
    """Captures what a module does with an example.

    Args:
        module: A module that may be run: its state may change.
        arguments: The example.
        dynamic_shapes: As for torch.export.export.
        must_record: The paths of modules whose inputs and outputs have to be recorded.
        may_record: Those of modules for which that is only useful.

    Raises:
        UsageError: The module fails with these inputs.
    """
    run_first(module, arguments)
    try:
        whole = trace(module, arguments, dynamic_shapes, must_record=must_record, may_record=may_record)
        return Capture((Piece("", whole),), {}, {}, frozenset())
    except Refused as refused:
        reason = refused.reason
    if dynamic_shapes is not None:
        _refuse_dynamic_shapes(module, arguments, reason)
    return _Descent(module, arguments, must_record, may_record).capture(reason)


def _refuse_dynamic_shapes(module: nn.Module, arguments: Arguments, reason: str) -> None:
    """Raises an error if it is the dynamic shapes that torch.export does not like."""
    try:
        trace(module, arguments)
    except Refused:
        return
    message = f"torch.export refuses the dynamic_shapes: {reason}"
    raise UsageError(message, hint="Without dynamic_shapes the module can be captured.")


class _Descent:
    """Goes down into a module until its parts can be exported."""

    def __init__(
        self, module: nn.Module, arguments: Arguments, must_record: Collection[str], may_record: Collection[str]
    ) -> None:
        self._module = module
        self._arguments = arguments
        self._must_record = must_record
        self._may_record = may_record
        self._pieces: list[Piece] = []
        self._refusals: dict[str, str] = {}
        self._callers: dict[str, str] = {}
        self._read: set[int] = set()

    def capture(self, reason: str) -> Capture:
        waiting = [("", reason)]
        while waiting:
            path, reason = waiting.pop(0)
            self._refusals[path] = reason
            frame = self._run(path)
            self._read |= frame.read
            for child, calls in frame.calls.items():
                self._callers[child] = path
                if child in self._refusals or any(child == seen for seen, _ in waiting):
                    continue
                refusal = self._export(child, calls)
                if refusal is not None:
                    waiting.append((child, refusal))
        return Capture(tuple(self._pieces), self._refusals, self._callers, frozenset(self._read))

    def _run(self, path: str) -> Frame:
        try:
            return run_example(self._module, self._arguments, path)
        except Exception as error:
            message = f"{type(self._module).__name__} fails with the example inputs: {first_line(error)}"
            raise UsageError(message, hint=array_hint(self._arguments)) from error

    def _export(self, path: str, calls: Sequence[Arguments]) -> str | None:
        """Captures a part with every kind of inputs that it was called with, or says why not."""
        child = self._module.get_submodule(path)
        must, may = (_inside(path, names) for names in (self._must_record, self._may_record))
        try:
            programs = [trace(child, arguments, must_record=must, may_record=may) for arguments in calls]
        except Refused as refused:
            return refused.reason
        self._pieces += [Piece(path, program) for program in programs]
        return None


def _inside(path: str, names: Collection[str]) -> list[str]:
    """The paths, seen from a module, of those that are in it."""
    return [name.removeprefix(f"{path}.") for name in names if name.startswith(f"{path}.")]
