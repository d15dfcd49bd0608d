"""What fold returns: the plan, the model, and what can be done with it."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from bnfold.text.progress import begin, heard_by
from bnfold.text.tables import Block, as_html, as_text

if TYPE_CHECKING:
    from bnfold.planning.plan import Plan
    from bnfold.report import Exact, Report
    from bnfold.system.staging import Staged, Written
    from bnfold.text.progress import Progress

ModelT_co = TypeVar("ModelT_co", covariant=True)


@dataclass(slots=True, eq=False, repr=False)
class FoldResult(Generic[ModelT_co]):
    """What `fold` returns.

    Attributes:
        plan: What was folded, and what was left with the reason.
        changed: Whether the folded model differs from the original at all.
        ops_before: How many nodes of each operator the original has.
        ops_after: How many nodes of each operator the folded model has.
        parameters: How many floating-point numbers the original and the folded model store.
        report: What `fold(..., verify=True)` found; None where nobody asked.
    """

    plan: "Plan"
    changed: bool
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    parameters: tuple[int, int]
    _build: Callable[[], ModelT_co]
    _stage: "Callable[[Path, bool], AbstractContextManager[Staged]]"
    _check: "Callable[[], Exact]"
    _verify: "Callable[[ModelT_co, Callable[[], Exact], Mapping[str, object]], Report]"
    _model: ModelT_co | None = field(default=None)
    _exact: "Exact | None" = field(default=None)
    report: "Report | None" = field(default=None)

    @property
    def model(self) -> ModelT_co:
        """The folded model, of the type that was given; for a path, an onnx.ModelProto or an ExportedProgram."""
        if self._model is None:
            self._model = self._build()
        return self._model

    def check(self) -> "Exact":
        """Whether the fold is right as algebra, by the exact gate: no data, no tolerance, on the CPU.

        The model and its fold are made anew with small numbers for parameters, and whatever changed is run on small
        integers, at two sizes of each open dimension: both have to give the same bits. The first call takes several
        times what the fold took; later ones give the same result.

        Returns:
            What was found; a wrong fold is a verdict in it, not an error.
        """
        if self._exact is None:
            begin("comparing changed regions exactly")
            self._exact = self._check()
        return self._exact

    def verify(self, **options: object) -> "Report":
        """Compares the folded model with the original: the exact gate first, then `bnfold.verify`.

        Args:
            **options: Those of `bnfold.verify`, besides the models.

        Returns:
            A report; a difference is a verdict in it, not an error.

        Raises:
            UsageError: A module was folded in place, so that there is no original; or as of `bnfold.verify`.
        """
        with heard_by(cast("Progress | None", options.get("progress"))):
            return self._verify(self.model, self.check, options)

    def save(self, path: "str | os.PathLike[str]", *, force: bool = False) -> "Written":
        """Writes the folded model, without verifying it.

        Args:
            path: A file in an existing folder; another file there is replaced. An ONNX model goes to .onnx, an exported
                program to .pt2, or its state dict to .safetensors or .pt, as a module's does.
            force: Allow the file that the model was read from to be replaced.

        Returns:
            The files that are there now: the model, and its data file where the weights are not in it.

        Raises:
            OutputError: It cannot be written; what was there before is as it was.
        """
        with self.staged(path, force=force) as staged:
            return staged.commit()

    def staged(self, path: "str | os.PathLike[str]", *, force: bool = False) -> "AbstractContextManager[Staged]":
        """Writes the folded model into a private folder beside its destination, to be verified there.

        Args:
            path: See `save`.
            force: Allow the file that the model was read from to be replaced.

        Returns:
            A context manager; inside it `staged.path` is the complete file, and `staged.commit()` puts it in place.

        Raises:
            OutputError: It cannot be written; what was there before is as it was.
        """
        return self._stage(Path(path), force)

    def summary(self) -> str:
        """Several lines: the verdict if there is one, before and after, and what was folded, merged and left."""
        return as_text(self.blocks())

    def blocks(self) -> list[Block]:
        """The lines of `summary`, with its tables as tables."""
        nodes = (sum(self.ops_before.values()), sum(self.ops_after.values()))
        before_after = [
            ("", "before", "after"),
            ("BatchNorms", str(self.plan.batch_norms), str(self.plan.batch_norms_left)),
            ("nodes", *map(str, nodes)),
            ("parameters", *(f"{count:,}" for count in self.parameters)),
        ]
        verdict: list[Block] = [] if self.report is None else [*self.report.verdict_lines(), ""]
        return [*verdict, before_after, "", *self.plan.blocks()]

    def __repr__(self) -> str:
        verdict = "" if self.report is None else f"; {self.report.verdict}"
        return f"<FoldResult: {self.plan.headline()}{verdict}>"

    def _repr_html_(self) -> str:
        return as_html(self.blocks())
