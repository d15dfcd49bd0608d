"""fold and inspect for every kind of model that bnfold knows."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeGuard, TypeVar, cast, overload

from bnfold.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    from bnfold.onnx.fold import FoldedOnnx
    from bnfold.onnx.load import OnnxModel
    from bnfold.onnx.save import Staged
    from bnfold.plan import Plan

    OnnxLike = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model

ModelT = TypeVar("ModelT")


@dataclass(slots=True, eq=False)
class FoldResult(Generic[ModelT]):
    """What `fold` returns.

    Attributes:
        plan: What was folded, and what was left with the reason.
    """

    plan: "Plan"
    _folded: "FoldedOnnx"
    _original: object
    _model: ModelT | None = field(default=None)

    @property
    def model(self) -> ModelT:
        """The folded model, of the type that was given; an onnx.ModelProto where a path was given."""
        if self._model is None:
            self._model = cast(ModelT, _like(self._original, self._folded.model))
        return self._model

    @property
    def changed(self) -> bool:
        """Whether the folded model differs from the original at all."""
        return self._folded.changed

    @property
    def ops_before(self) -> Mapping[str, int]:
        """How many nodes of each operator the original has."""
        return self._folded.ops_before

    @property
    def ops_after(self) -> Mapping[str, int]:
        """How many nodes of each operator the folded model has."""
        return self._folded.ops_after

    def save(self, path: "str | os.PathLike[str]", *, force: bool = False) -> None:
        """Writes the folded model, without verifying it.

        Args:
            path: An .onnx file in an existing folder; another file there is replaced.
            force: Allow the file that the model was read from to be replaced.

        Raises:
            OutputError: It cannot be written; what was there before is as it was.
        """
        from bnfold.onnx.save import save  # noqa: PLC0415 - only who saves pays for it

        save(self._folded.model, path, force=force)

    def staged(self, path: "str | os.PathLike[str]", *, force: bool = False) -> "AbstractContextManager[Staged]":
        """Writes the folded model into a private folder beside its destination, to be verified there.

        Args:
            path: An .onnx file in an existing folder.
            force: Allow the file that the model was read from to be replaced.

        Returns:
            A context manager; inside it `staged.path` is the complete file, and `staged.commit()` puts it in place.

        Raises:
            OutputError: It cannot be written; what was there before is as it was.
        """
        from bnfold.onnx.save import stage  # noqa: PLC0415 - only who saves pays for it

        return stage(self._folded.model, path, force=force)


@overload
def fold(
    model: "str | os.PathLike[str] | onnx.ModelProto",
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    leftover: str = "conv",
) -> "FoldResult[onnx.ModelProto]": ...
@overload
def fold(
    model: "onnx_ir.Model", *, skip: tuple[str, ...] = (), only: tuple[str, ...] = (), leftover: str = "conv"
) -> "FoldResult[onnx_ir.Model]": ...
def fold(
    model: "OnnxLike", *, skip: tuple[str, ...] = (), only: tuple[str, ...] = (), leftover: str = "conv"
) -> "FoldResult[onnx.ModelProto] | FoldResult[onnx_ir.Model]":
    """Folds the BatchNorms of a model into the weights around them.

    Args:
        model: The path of an .onnx file, an onnx.ModelProto or an onnx_ir.Model; it is not changed.
        skip: Glob patterns (case-sensitive) of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        leftover: What becomes of the BNs that cannot be folded: "conv" writes a 1x1 depthwise Conv (Mul and Add where
            a runtime has none), "mul-add" Mul and Add, "keep" leaves them.

    Returns:
        The folded model and the plan that was carried out. Nothing is written, and nothing verified.

    Raises:
        UsageError: A pattern matches no BN, or an argument is of the wrong kind.
        ModelLoadError: The model is missing, damaged or not valid.
        UnsafeModelError: It refers to files outside its folder.
        UnsupportedModelError: It is of a kind that bnfold cannot fold.
    """
    from bnfold.onnx.fold import fold_onnx  # noqa: PLC0415 - `import bnfold` stays light
    from bnfold.onnx.leftover import Leftover  # noqa: PLC0415

    try:
        form = Leftover(leftover)
    except ValueError as error:
        message = f"leftover is '{leftover}', not one of {', '.join(Leftover)}"
        raise UsageError(message) from error
    folded = fold_onnx(_opened(model), skip=_patterns("skip", skip), only=_patterns("only", only), leftover=form)
    return FoldResult(folded.plan, folded, model)


def inspect(model: "OnnxLike") -> "Plan":
    """Says what `fold` would do to a model, without doing it.

    Args:
        model: The path of an .onnx file, an onnx.ModelProto or an onnx_ir.Model.

    Returns:
        The plan: every BN either folded, or left with the reason.

    Raises:
        ModelLoadError: The model is missing, damaged or not valid.
        UnsafeModelError: It refers to files outside its folder.
        UnsupportedModelError: It is of a kind that bnfold cannot fold.
    """
    from bnfold.onnx.fold import inspect_onnx  # noqa: PLC0415 - `import bnfold` stays light

    return inspect_onnx(_opened(model))


def _patterns(option: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        message = f"{option} is the string '{patterns}', not a tuple of patterns"
        raise UsageError(message, hint=f'Write {option}=("{patterns}",).')
    return tuple(patterns)


def _opened(model: object) -> "OnnxModel":
    from bnfold.onnx.load import from_proto, load  # noqa: PLC0415 - `import bnfold` stays light

    if isinstance(model, str | os.PathLike):
        return load(Path(model))
    import onnx  # noqa: PLC0415

    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    if _is_ir_model(model):
        from bnfold.onnx.ir import model_to_proto  # noqa: PLC0415

        return from_proto(model_to_proto(model))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        message = f"a {type(model).__name__} of PyTorch was given, and bnfold folds ONNX models"
        raise UnsupportedModelError(message, hint="Export it with torch.onnx.export and fold the .onnx file.")
    message = f"a {type(model).__name__} is no model that bnfold knows"
    raise UsageError(message, hint="Give the path of an .onnx file, an onnx.ModelProto or an onnx_ir.Model.")


def _is_ir_model(model: object) -> "TypeGuard[onnx_ir.Model]":
    # A model of onnx_ir can only exist where onnx_ir has been imported.
    onnx_ir = sys.modules.get("onnx_ir")
    return onnx_ir is not None and isinstance(model, onnx_ir.Model)


def _like(original: object, model: "OnnxModel") -> "onnx.ModelProto | onnx_ir.Model":
    proto = model.materialize()
    if not _is_ir_model(original):
        return proto
    import onnx_ir  # noqa: PLC0415 - only who gives such a model pays for it

    return onnx_ir.from_proto(proto)
