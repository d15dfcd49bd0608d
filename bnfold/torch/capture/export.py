"""torch.export in inference mode, and without a word: what it has to say ends up in the plan."""

import io
import logging
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold.torch.capture.example_inputs import DynamicShapes
from bnfold.torch.capture.kept_state import kept
from bnfold.torch.capture.module_paths import restore_paths
from bnfold.torch.capture.returned_values import plain
from bnfold.torch.capture.script_modules import replace_scripts
from bnfold.torch.fx.function_transforms import is_wrapped

_FIXES = "Suggested fixes:"
"""Behind this torch.export says what the sizes have to be that were to vary."""

_GUARD_DETAILS = " (unhinted:"
"""From here on torch.export repeats itself in other symbols."""

ONE_AT_A_TIME = threading.RLock()
"""torch.export is not re-entrant: it replaces methods of nn.Module while it runs, for all threads."""

Arguments = tuple[tuple[object, ...], Mapping[str, object]]


class Refused(Exception):  # noqa: N818 - not an error of the caller
    """torch.export cannot follow a module with these inputs.

    Args:
        reason: The first line of what it said.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def trace(
    module: nn.Module,
    arguments: Arguments,
    dynamic_shapes: DynamicShapes | None = None,
    *,
    must_record: Collection[str] = (),
    may_record: Collection[str] = (),
) -> ExportedProgram:
    """Exports a module as it is, without gradients; what its code keeps on it is put back.

    Args:
        module: What to export.
        arguments: The positional and named inputs.
        dynamic_shapes: As for torch.export.export.
        must_record: The paths of modules inside of it whose inputs and outputs are to be recorded, in
            `ExportedProgram.module_call_graph`.
        may_record: The same for modules where that may be left out, if torch.export cannot do it.

    Raises:
        Refused: It cannot be exported.
    """
    args, kwargs = arguments
    shapes = dict(dynamic_shapes) if isinstance(dynamic_shapes, Mapping) else dynamic_shapes
    shapes = shapes if shapes is None or isinstance(shapes, dict | list) else tuple(shapes)
    refusal: Exception | None = None
    first, second = tuple({*must_record, *may_record}), tuple(must_record)
    for recorded in (first, second) if len(first) > len(second) else (first,):
        try:
            with quiet(), kept(module), _plain_results(module), torch.no_grad():
                replace_scripts(module)
                program = torch.export.export(
                    module,
                    args,
                    dict(kwargs),
                    dynamic_shapes=shapes,
                    strict=False,
                    preserve_module_call_signature=recorded,
                )
            _require_constants(program)
            restore_paths(program, module)
            return program
        except Exception as error:  # noqa: BLE001 - it raises whatever the code that it runs raises
            refusal = error
    raise Refused(first_line(refusal)) from refusal


def _require_constants(program: ExportedProgram) -> None:
    """Refuses a program in which a value that belongs to a transform of torch.func is a constant: it does not run.

    Raises:
        Refused: That is so.
    """
    if any(isinstance(constant, Tensor) and is_wrapped(constant) for constant in program.constants.values()):
        raise Refused("a value inside of a transform of torch.func (vmap, grad, jvp) would be a constant")


@contextmanager
def _plain_results(module: nn.Module) -> Iterator[None]:
    """Lets a module return dicts for dataclasses that torch does not know."""
    handle = module.register_forward_hook(lambda _, __, result: plain(result))
    try:
        yield
    finally:
        handle.remove()


def first_line(error: BaseException | None) -> str:
    """The first line of what an exception says; of torch.export's what a reader can do something with."""
    text = str(error).strip() or type(error).__name__
    _, _, fixes = text.partition(_FIXES)
    if fixes:
        wanted = [line.strip() for line in fixes.split("\n\n")[0].splitlines() if line.strip()]
        return f"its code needs {', '.join(wanted)}"
    return text.splitlines()[0].partition(_GUARD_DETAILS)[0].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from warning, logging, and writing half-made graphs to stderr; one thread at a time."""
    with ONE_AT_A_TIME, _silenced():
        yield


@contextmanager
def _silenced() -> Iterator[None]:
    named = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    loggers = [logger for logger in named if not logger.disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.disabled = False
