"""The gates as `api` calls them, each imported when it is needed: `import bnfold` stays light."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from bnfold.errors import UsageError

if TYPE_CHECKING:
    import torch

    from bnfold.onnx.file.load import OnnxModel
    from bnfold.onnx.fold import FoldedOnnx, FoldOptions
    from bnfold.planning.plan import Leftover
    from bnfold.report import Exact, Report
    from bnfold.torch.capture.example_inputs import DynamicShapes, ExampleInputs
    from bnfold.torch.module.fold import FoldedModule
    from bnfold.torch.program.fold import FoldedProgram


def onnx(original: "OnnxModel", folded: "FoldedOnnx", options: "FoldOptions") -> "Exact":
    """The exact gate for an ONNX model."""
    from bnfold.verification.exact.onnx.gate import check_onnx

    return check_onnx(original, folded, options)


def program(
    original: "torch.export.ExportedProgram",
    folded: "FoldedProgram",
    skip: tuple[str, ...],
    only: tuple[str, ...],
    form: "Leftover",
    *,
    merge: bool,
) -> "Exact":
    """The exact gate for an exported program."""
    from bnfold.verification.exact.torch.gate import check_program

    return check_program(original, folded, skip=skip, only=only, leftover=form, merge=merge)


def module(
    original: "torch.nn.Module",
    example_inputs: "ExampleInputs",
    dynamic_shapes: "DynamicShapes | None",
    folded: "FoldedModule",
    skip: tuple[str, ...],
    only: tuple[str, ...],
    *,
    inplace: bool,
) -> "Exact":
    """The exact gate for a module.

    Raises:
        UsageError: It was folded in place.
    """
    from bnfold.verification.exact.torch.gate import check_module

    if inplace:
        raise no_original()
    return check_module(original, example_inputs, dynamic_shapes, folded, skip=skip, only=only)


def no_original() -> UsageError:
    """What is said where a module was changed itself, and is to be compared with what it was."""
    message = "a module that was folded in place cannot be checked: its original is gone"
    return UsageError(message, hint="Fold a copy, with inplace=False.")


def verified(original: object, folded: object, check: "Callable[[], Exact]", options: Mapping[str, object]) -> "Report":
    """What `bnfold.verify` finds after the exact gate; without an original nothing."""
    from bnfold.verification import verify
    from bnfold.verification.runtime.limits import limited_to

    if original is None:
        raise no_original()
    with limited_to(cast("float | None", options.get("timeout_s"))):
        report: Report = verify(original, folded, **{"exact": check(), **options})  # type: ignore[arg-type]
    return report
