"""fold and inspect for every kind of model that bnfold knows."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack, overload

from bnfold import checking
from bnfold.errors import UsageError, VerificationError
from bnfold.model_kind import is_ir_model, is_module, is_program, is_pt2, is_torch
from bnfold.result import FoldResult
from bnfold.text.progress import begin, heard_by

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    import torch

    from bnfold.onnx.file.load import OnnxModel
    from bnfold.planning.plan import Leftover, Plan
    from bnfold.text.progress import Progress
    from bnfold.torch.capture.example_inputs import DynamicShapes, ExampleInputs

    OnnxLike = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model
    TorchLike = torch.nn.Module | torch.export.ExportedProgram

ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")


class _Options(TypedDict, total=False):
    """Those of `fold` for every kind of model."""

    skip: tuple[str, ...]
    only: tuple[str, ...]
    check: bool
    verify: bool
    progress: "Progress | None"


class _GraphOptions(_Options, total=False):
    leftover: str
    merge: bool


class _OnnxOptions(_GraphOptions, total=False):
    repair: bool


class _ModuleOptions(_Options, total=False):
    dynamic_shapes: "DynamicShapes | None"
    inplace: bool


@overload
def fold(
    model: "str | os.PathLike[str]", example_inputs: None = None, **options: "Unpack[_OnnxOptions]"
) -> "FoldResult[onnx.ModelProto | torch.export.ExportedProgram]": ...
@overload
def fold(
    model: "onnx.ModelProto", example_inputs: None = None, **options: "Unpack[_OnnxOptions]"
) -> "FoldResult[onnx.ModelProto]": ...
@overload
def fold(
    model: "onnx_ir.Model", example_inputs: None = None, **options: "Unpack[_OnnxOptions]"
) -> "FoldResult[onnx_ir.Model]": ...
@overload
def fold(
    model: "torch.export.ExportedProgram", example_inputs: None = None, **options: "Unpack[_GraphOptions]"
) -> "FoldResult[torch.export.ExportedProgram]": ...
@overload
def fold(
    model: ModuleT, example_inputs: "ExampleInputs", **options: "Unpack[_ModuleOptions]"
) -> FoldResult[ModuleT]: ...
def fold(
    model: "OnnxLike | TorchLike",
    example_inputs: "ExampleInputs | None" = None,
    *,
    dynamic_shapes: "DynamicShapes | None" = None,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    leftover: str = "conv",
    merge: bool = True,
    repair: bool = False,
    inplace: bool = False,
    check: bool = False,
    verify: bool = False,
    progress: "Progress | None" = None,
) -> "FoldResult[object]":
    """Folds the BatchNorms of a model into the weights around them.

    Args:
        model: The path of an .onnx or .pt2 file, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or a
            torch.export.ExportedProgram; it is not changed unless `inplace` says so.
        example_inputs: What to call a torch.nn.Module with: a tuple of positional inputs, a dict of named ones, or
            (args, kwargs); or a list of such examples. The fold is right for the paths that they take through the code
            of the module, and for other sizes of them that are tried; the plan's `assumptions` say what it takes for
            granted.
        dynamic_shapes: For a torch.nn.Module, as for torch.export.export.
        skip: Glob patterns (case-sensitive) of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        leftover: What becomes of the BNs that cannot be folded: "conv" writes a 1x1 depthwise Conv (Mul and Add where
            a runtime has none), "mul-add" Mul and Add, "keep" leaves them. In a torch.nn.Module they always stay.
        merge: Whether parallel branches that add up to one map become one, in models that are graphs: a
            torch.nn.Module keeps its branches.
        repair: Mend what runtimes tolerate in an ONNX model and the standard does not allow (nodes out of order, stale
            shapes, domains that are not imported). Else it stays, where nothing is folded.
        inplace: Fold a torch.nn.Module itself instead of a copy.
        check: Run the exact gate (see `FoldResult.check`). It takes several times what the fold takes, and is off here
            for that reason; the command line always runs it.
        verify: Compare the result with the original (see `FoldResult.verify`), and raise an error unless it passes.
        progress: Told, in words, what is being done; the log "bnfold" is told too, at level INFO.

    Returns:
        The folded model and the plan that was carried out. Nothing is written, and nothing verified but by `check` and
        `verify`.

    Raises:
        UsageError: A pattern matches no BN, or an argument is of the wrong kind.
        ModelLoadError: The model is missing, damaged or not valid.
        UnsafeModelError: It refers to files outside its folder, or would run code when loaded.
        UnsupportedModelError: It is of a kind that bnfold cannot fold.
        VerificationError: `check` found the fold to be wrong, or `verify` found the outputs to differ, or could not
            conclude anything.
    """
    if repair and is_torch(model):
        message = f"repair is for an ONNX model, not a {type(model).__name__}"
        raise UsageError(message)
    if verify and inplace:
        raise checking.no_original()
    with heard_by(progress):
        begin("folding")
        result = _fold(
            model,
            example_inputs,
            dynamic_shapes,
            skip=_patterns("skip", skip),
            only=_patterns("only", only),
            form=_leftover(leftover),
            merge=merge,
            repair=repair,
            inplace=inplace,
        )
        if check and result.check().verdict == "fail":
            raise VerificationError(
                f"the fold is wrong: {result.check().reason}",
                hint="This is a bug in bnfold; skip= leaves the BatchNorms that it is about as they are.",
            )
        if verify:
            result.report = result.verify()
            if result.report.verdict != "pass":
                raise VerificationError(
                    f"the folded model does not match: {result.report.summary_line()}",
                    hint="fold without verify=True, and result.verify().summary(), tells more.",
                )
    return result


def _fold(
    model: "OnnxLike | TorchLike",
    example_inputs: "ExampleInputs | None",
    dynamic_shapes: "DynamicShapes | None",
    *,
    skip: tuple[str, ...],
    only: tuple[str, ...],
    form: "Leftover",
    merge: bool,
    repair: bool,
    inplace: bool,
) -> "FoldResult[object]":
    if is_module(model):
        from bnfold.torch.capture.example_inputs import split_examples
        from bnfold.torch.file.folded_state import metadata_of
        from bnfold.torch.file.save import stage_module
        from bnfold.torch.module.fold import fold_module

        if example_inputs is None:
            raise _no_example(model)
        module = fold_module(model, example_inputs, dynamic_shapes, skip=skip, only=only, inplace=inplace)
        metadata = metadata_of(type(model).__name__, asdict(module.restructuring), module.plan.to_dict())
        return FoldResult(
            module.plan,
            module.changed,
            module.ops_before,
            module.ops_after,
            module.parameters,
            lambda: module.module,
            lambda path, force: stage_module(module.module, path, force=force, metadata=metadata),
            lambda: checking.module(model, example_inputs, dynamic_shapes, module, skip, only, inplace=inplace),
            lambda result, check, options: checking.verified(
                None if inplace else model,
                result,
                check,
                {"example_inputs": split_examples(example_inputs)[0], **options},
            ),
        )
    if example_inputs is not None or dynamic_shapes is not None or inplace:
        message = f"example_inputs, dynamic_shapes and inplace are for a torch.nn.Module, not a {type(model).__name__}"
        raise UsageError(message)
    exported = _program(model)
    if exported is not None:
        from bnfold.torch.file.save import stage_program
        from bnfold.torch.program.fold import fold_program

        source = Path(model) if is_pt2(model) else None
        program = fold_program(exported, skip=skip, only=only, leftover=form, merge=merge)
        return FoldResult(
            program.plan,
            program.changed,
            program.ops_before,
            program.ops_after,
            program.parameters,
            lambda: program.program,
            lambda path, force: stage_program(program.program, path, source, force=force),
            lambda: checking.program(exported, program, skip, only, form, merge=merge),
            lambda result, check, options: checking.verified(exported, result, check, options),
        )
    from bnfold.onnx.file.save import stage
    from bnfold.onnx.fold import FoldOptions, fold_onnx

    opened, options = _opened(model), FoldOptions(skip, only, form, merge, repair)
    folded = fold_onnx(opened, options)
    return FoldResult(
        folded.plan,
        folded.changed,
        folded.ops_before,
        folded.ops_after,
        folded.parameters,
        lambda: _like(model, folded.model),
        lambda path, force: stage(folded.model, path, force=force),
        lambda: checking.onnx(opened, folded, options),
        lambda result, check, options: checking.verified(model, result, check, options),
    )


def inspect(
    model: "OnnxLike | TorchLike",
    example_inputs: "ExampleInputs | None" = None,
    *,
    dynamic_shapes: "DynamicShapes | None" = None,
) -> "Plan":
    """Says what `fold` would do to a model, without doing it.

    Args:
        model: As for `fold`.
        example_inputs: As for `fold`.
        dynamic_shapes: As for `fold`.

    Returns:
        The plan: every BN either folded, or left with the reason.

    Raises:
        UsageError: An argument is of the wrong kind.
        ModelLoadError: The model is missing, damaged or not valid.
        UnsafeModelError: It refers to files outside its folder, or would run code when loaded.
        UnsupportedModelError: It is of a kind that bnfold cannot fold.
    """
    if is_module(model):
        from bnfold.torch.module.fold import inspect_module

        if example_inputs is None:
            raise _no_example(model)
        return inspect_module(model, example_inputs, dynamic_shapes)
    if example_inputs is not None or dynamic_shapes is not None:
        message = f"example_inputs and dynamic_shapes are for a torch.nn.Module, not a {type(model).__name__}"
        raise UsageError(message)
    exported = _program(model)
    if exported is not None:
        from bnfold.torch.program.fold import inspect_program

        return inspect_program(exported)
    from bnfold.onnx.fold import inspect_onnx

    return inspect_onnx(_opened(model))


def _leftover(text: str) -> "Leftover":
    from bnfold.planning.plan import Leftover

    try:
        return Leftover(text)
    except ValueError as error:
        message = f"leftover is '{text}', not one of {', '.join(Leftover)}"
        raise UsageError(message) from error


def _patterns(option: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        message = f"{option} is the string '{patterns}', not a tuple of patterns"
        raise UsageError(message, hint=f'Write {option}=("{patterns}",).')
    return tuple(patterns)


def _no_example(model: object) -> UsageError:
    message = f"a {type(model).__name__} needs example_inputs: what the code does with them is what is folded"
    return UsageError(message, hint="Give a tuple of tensors, a dict of named ones, or (args, kwargs).")


def _program(model: object) -> "torch.export.ExportedProgram | None":
    """The exported program that a model is, or that its file holds; None for other kinds."""
    if not is_pt2(model):
        return model if is_program(model) else None
    from bnfold.torch.file.load import load_program

    return load_program(Path(model))


def _opened(model: object) -> "OnnxModel":
    from bnfold.onnx.file.load import from_proto, load

    if isinstance(model, str | os.PathLike):
        return load(Path(model))
    import onnx

    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    if is_ir_model(model):
        from bnfold.onnx.file.ir_model import model_to_proto

        return from_proto(model_to_proto(model))
    message = f"a {type(model).__name__} is no model that bnfold knows"
    hint = (
        "Give the path of an .onnx or .pt2 file, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or a"
        " torch.export.ExportedProgram."
    )
    raise UsageError(message, hint=hint)


def _like(original: object, model: "OnnxModel") -> "onnx.ModelProto | onnx_ir.Model":
    proto = model.materialize()
    if not is_ir_model(original):
        return proto
    import onnx_ir

    return onnx_ir.from_proto(proto)
