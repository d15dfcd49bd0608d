"""What `fold` does with each kind of model: fold it, and know how to write and to verify the result."""

import glob
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bnfold.errors import ModelLoadError, OutputError, UnsupportedModelError, UsageError
from bnfold.files.job import Job
from bnfold.text.progress import begin

from .compare import Verification, compare
from .models import CodeOptions, ModelKind, kind_of
from .modules import Code, build, hints_of_types, import_torch, require_runs

if TYPE_CHECKING:
    import torch

    from bnfold.planning.plan import Plan
    from bnfold.report import Exact, FileInfo, Report

_STATE_SUFFIXES = (".safetensors", ".pt")
_OUTPUTS = {
    ModelKind.ONNX: (".onnx",),
    ModelKind.PROGRAM: (".pt2", ".onnx", *_STATE_SUFFIXES),
    ModelKind.CODE: (".pt2", ".onnx", *_STATE_SUFFIXES),
    ModelKind.STATE: (".pt2", ".onnx", *_STATE_SUFFIXES),
}
_NAMES = {
    ModelKind.ONNX: "an ONNX model",
    ModelKind.PROGRAM: "an exported program",
    ModelKind.CODE: "a PyTorch module",
    ModelKind.STATE: "a PyTorch module",
}


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """What is folded and where it goes, as it was typed.

    Attributes:
        output: The destination; None for a dry run without one.
        skip: Glob patterns.
        only: Glob patterns.
        leftover: "conv", "mul-add" or "keep".
        force: Whether OUT may be IN.
        merge: Whether parallel branches may become one layer.
        repair: Whether what the ONNX standard does not allow is mended.
    """

    output: Path | None
    skip: tuple[str, ...]
    only: tuple[str, ...]
    leftover: str
    force: bool
    merge: bool
    repair: bool = False

    @property
    def suffix(self) -> str:
        """The extension of the destination, which decides what is made of a PyTorch model."""
        return "" if self.output is None else self.output.suffix.lower()


def fold_model(
    model: str,
    options: FoldOptions,
    code: CodeOptions,
    verification: Verification,
    stack: ExitStack,
) -> Job:
    """Folds whatever a word of the command line names.

    Args:
        model: A path or an import path.
        options: What to fold, and where it goes.
        code: Weights and arguments for an import path.
        verification: Inputs, and how to compare.
        stack: Keeps temporary files until the result is written.
    """
    kind = kind_of(model)
    if options.repair and kind is not ModelKind.ONNX:
        raise UsageError(f"--repair is for an .onnx file, which {model} is not")
    if options.output is not None and kind is not ModelKind.ONNX:
        _require_output(options.output, kind)
    if kind.is_module:
        read = {Path(model)} if kind is ModelKind.STATE else set()
        read |= set() if code.weights is None else {code.weights}
        if options.output is not None and not options.force:
            from bnfold.system.staging import require_not_source

            require_not_source(options.output, read)
        return _fold_code(model, options, build(model, code, verification), verification, stack)
    code.require_unused(model)
    if kind is ModelKind.PROGRAM:
        import_torch()
        return _fold_program_file(Path(model), options, verification, stack)
    return _fold_onnx_file(Path(model), options, verification)


def _fold_onnx_file(path: Path, options: FoldOptions, verification: Verification) -> Job:
    import bnfold

    result = bnfold.fold(
        path,
        skip=options.skip,
        only=options.only,
        leftover=options.leftover,
        merge=options.merge,
        repair=options.repair,
    )
    return Job.of(
        result,
        path,
        lambda staged, exact: compare(path, staged, verification, exact=exact),
        force=options.force,
        is_copy=not result.changed,
    )


def _fold_program_file(path: Path, options: FoldOptions, verification: Verification, stack: ExitStack) -> Job:
    import bnfold

    if options.suffix == ".onnx":
        from bnfold.torch.file.load import load_program

        program = load_program(path)

        def verify_onnx(staged: Path, exact: "Exact") -> "Report":
            return compare(program, staged, verification, exact=exact)

        return _fold_to_onnx(program, path, options, {}, verify_onnx, stack)
    result = bnfold.fold(path, skip=options.skip, only=options.only, leftover=options.leftover, merge=options.merge)

    def verify(staged: Path, exact: "Exact") -> "Report":
        if options.suffix not in _STATE_SUFFIXES:
            return compare(path, staged, verification, exact=exact)
        folded = cast("torch.export.ExportedProgram", result.model)
        _require_same_bits(staged, folded.state_dict)
        return compare(path, folded, verification, exact=exact)

    return Job.of(result, path, verify, force=options.force)


def _fold_code(model: str, options: FoldOptions, code: Code, verification: Verification, stack: ExitStack) -> Job:
    import bnfold
    from bnfold.report import FileInfo

    source = Path(model) if kind_of(model) is ModelKind.STATE else FileInfo(model, None, "module", code.nbytes)

    if options.suffix in (".pt2", ".onnx"):
        program = _exported(code)

        def verify(staged: Path, exact: "Exact") -> "Report":
            return compare(code.module, staged, verification, code.call, exact=exact)

        if options.suffix == ".onnx":
            try:
                return _fold_to_onnx(program, source, options, code.dynamic, verify, stack)
            except UnsupportedModelError:
                require_runs(code)
                raise
        return Job.of(
            bnfold.fold(program, skip=options.skip, only=options.only, leftover=options.leftover, merge=options.merge),
            source,
            verify,
            force=options.force,
        )
    with hints_of_types(code):
        result = bnfold.fold(
            code.module, code.call, dynamic_shapes=code.dynamic_shapes, skip=options.skip, only=options.only
        )

    def verify_state(staged: Path, exact: "Exact") -> "Report":
        from bnfold.torch.file.state_dict import read_weights

        result.model.load_state_dict(cast("dict[str, torch.Tensor]", read_weights(staged)))
        return compare(code.module, result.model, verification, code.call, exact=exact)

    return Job.of(result, source, verify_state, force=options.force)


def _exported(code: Code) -> "torch.export.ExportedProgram":
    from bnfold.torch.capture.export import Refused, trace

    ran = require_runs(code)
    begin("exporting")
    try:
        return trace(code.module, code.call, code.dynamic_shapes)
    except Refused as refused:
        hint = "Perhaps an axis of --dynamic cannot vary, or only together with another one."
        if not code.dynamic_shapes:
            # What it has kept of inputs of this size, such as the grid of a detector, has values now.
            with suppress(Refused):
                return trace(ran, code.call)
            hint = _what_else(code)
        name = type(code.module).__name__
        raise UnsupportedModelError(f"torch.export refuses {name}: {refused.reason}.", hint=hint) from refused


def _what_else(code: Code) -> str:
    """What can be written of a module that torch.export refuses."""
    from bnfold.torch.capture.capture import capture
    from bnfold.torch.capture.copying import shadow

    pieces = capture(shadow(code.module), code.call, None, must_record=(), may_record=()).pieces
    sizes = {
        piece.path: sum(parameter.numel() for parameter in code.module.get_submodule(piece.path).parameters())
        for piece in pieces
    }
    hint = "A .safetensors file can be written all the same: it needs only what can be exported of the parts."
    if not sizes or not max(sizes.values()):
        return hint
    return f"Its part '{max(sizes, key=sizes.__getitem__)}' can be exported: let the factory return that. {hint}"


def _fold_to_onnx(
    program: "torch.export.ExportedProgram",
    source: "Path | FileInfo",
    options: FoldOptions,
    dynamic: Mapping[str, Mapping[int, str]],
    verify: "Callable[[Path, Exact], Report]",
    stack: ExitStack,
) -> Job:
    """Folds a program, has torch.onnx export it, and folds the file: what only that graph can express."""
    import bnfold
    from bnfold.torch.file.to_onnx import exported_file
    from bnfold.verification.exact.deciding import together

    chosen = bool(options.skip or options.only)
    # What the file can still fold has to be a BatchNorm there; but where some are to stay, all is decided here.
    leftover = options.leftover if chosen else "keep"
    first = bnfold.fold(program, skip=options.skip, only=options.only, leftover=leftover, merge=options.merge)
    beside = None if options.output is None else options.output.resolve().parent
    begin("exporting to ONNX")
    path = stack.enter_context(exported_file(first.model, beside, dynamic=dynamic))
    _require_valid(path)
    try:
        kept = _batch_norms(bnfold.inspect(path)) if chosen else ()
        second = bnfold.fold(path, skip=tuple(map(glob.escape, kept)), leftover=options.leftover, merge=options.merge)
    except ModelLoadError as error:
        raise _not_valid((str(error).partition(": ")[2] or str(error)).rstrip(".")) from error
    plan = first.plan if chosen else _both(first.plan, second.plan)
    return Job(
        plan,
        first.ops_before,
        first.ops_after,
        (first.parameters[0], second.parameters[1]),
        is_copy=False,
        source=source,
        stage=lambda destination: second.staged(destination, force=options.force),
        check=lambda: together(first.check(), second.check()),
        verify=verify,
    )


def _require_valid(path: Path) -> None:
    """Requires that what torch.onnx wrote is ONNX: it gives convolutions of bfloat16, which no runtime has.

    Raises:
        UnsupportedModelError: It is not.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _not_valid(" ".join(str(error).partition("==> Context:")[0].split())[:300]) from error


def _not_valid(said: str) -> UnsupportedModelError:
    """What is said of a file by torch.onnx that is none, or that cannot be loaded."""
    return UnsupportedModelError(
        f"what torch.onnx makes of the model is not valid: {said}",
        hint="Write a .pt2 file instead; a model in bfloat16 can be exported in float16 or float32.",
    )


def _both(first: "Plan", second: "Plan") -> "Plan":
    """The plan of a program and then of the file that was made of it, in which each BatchNorm has its place once."""
    if not second.folds and not second.merges and second.batch_norms_left == first.batch_norms_left:
        return first
    return replace(
        first,
        folds=first.folds + second.folds,
        merges=first.merges + second.merges,
        left=second.left,
        apart=second.apart,
    )


def _batch_norms(plan: "Plan") -> tuple[str, ...]:
    from bnfold.graph import Kind

    nodes = [entry.nodes for entry in plan.folds if entry.kind is Kind.BATCH_NORM]
    nodes += [entry.nodes for entry in plan.left if entry.kind is Kind.BATCH_NORM]
    return tuple(name for names in nodes for name in names)


def _require_output(output: Path, kind: ModelKind) -> None:
    """Refuses a destination before the work begins, not after."""
    from bnfold.system.staging import require_writable

    require_writable(Path(os.path.realpath(output)), _OUTPUTS[kind], _NAMES[kind])


def _require_same_bits(staged: Path, state: "Mapping[str, torch.Tensor]") -> None:
    import torch

    from bnfold.torch.file.state_dict import read_weights

    written = cast("dict[str, torch.Tensor]", read_weights(staged))
    for name, tensor in state.items():
        bits, expected = (item.detach().cpu().contiguous().reshape(-1) for item in (written[name], tensor))
        if not torch.equal(bits.view(torch.uint8), expected.view(torch.uint8)):
            raise OutputError(f"{name!r} does not read back as it was written.", hint="The disk may be failing.")
