"""What `fold` and `verify` share: the verification, from the words of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bnfold.input_spec import Array
    from bnfold.report import Exact, Report
    from bnfold.torch.file.examples import Call
    from bnfold.verification import InputSpec


@dataclass(frozen=True, slots=True)
class Verification:
    """The options of a verification, as they were typed.

    Attributes:
        device: "auto", "cpu", "cuda" or "tensorrt".
        samples: Number of made-up samples.
        seed: Their seed.
        shapes: Texts such as "image:1,3,224,224".
        inputs: An .npz file with real data, or a folder of them.
        value_ranges: Texts such as "ids:0,30521".
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        tf32: Report a run with TF32 beside the verdict.
        timeout_s: Longest time for one run of a model; None for the usual limit.
    """

    device: str = "auto"
    samples: int = 4
    seed: int = 0
    shapes: Sequence[str] | None = None
    inputs: Path | None = None
    value_ranges: Sequence[str] | None = None
    rtol: float | None = None
    atol: float | None = None
    tf32: bool = False
    timeout_s: float | None = None

    def parsed_shapes(self) -> "list[tuple[str | None, InputSpec]]":
        """The shapes, with None for a name that was left out.

        Raises:
            UsageError: One is malformed.
        """
        from bnfold.verification import parse_input

        return [parse_input(text) for text in self.shapes or ()]

    def parsed_ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value by input name.

        Raises:
            UsageError: One is malformed.
        """
        from bnfold.verification import parse_value_range

        return dict(parse_value_range(text) for text in self.value_ranges or ())

    def loaded_inputs(self) -> "list[dict[str, Array]] | None":
        """The real data, one mapping a sample, or None.

        Raises:
            ModelLoadError: It cannot be read.
        """
        from bnfold.verification import load_inputs

        return None if self.inputs is None else load_inputs(self.inputs)

    def as_arguments(self, *, shapes: bool = True) -> dict[str, object]:
        """The arguments of `bnfold.verify`, apart from `progress`.

        Args:
            shapes: Whether shapes are among them, and are not told by what a module is called with.

        Raises:
            UsageError: One is malformed.
            ModelLoadError: The real data cannot be read.
        """
        given = {
            "inputs": self.loaded_inputs(),
            "shapes": self.parsed_shapes() or None if shapes else None,
            "value_ranges": self.parsed_ranges() or None,
            "rtol": self.rtol,
            "atol": self.atol,
            "timeout_s": self.timeout_s,
        }
        chosen = {"device": self.device, "samples": self.samples, "seed": self.seed, "tf32": self.tf32}
        return {**chosen, **{name: value for name, value in given.items() if value is not None}}


def compare(
    original: "str | Path | torch.nn.Module | torch.export.ExportedProgram",
    folded: "str | Path | torch.nn.Module | torch.export.ExportedProgram",
    options: Verification,
    call: "Call | None" = None,
    names: Mapping[str, str] | None = None,
    exact: "Exact | None" = None,
) -> "Report":
    """Runs `bnfold.verify` with options as they were typed.

    Args:
        original: The original.
        folded: The model to compare with it.
        options: The options.
        call: What a torch.nn.Module is called with; the shapes are in it.
        names: What the folded model calls inputs and outputs of the original.
        exact: What the exact gate found of the fold.

    Raises:
        UsageError: An option is malformed or does not fit the model.
    """
    import bnfold

    try:
        return bnfold.verify(
            original,
            folded,
            example_inputs=call,
            names=names,
            exact=exact,
            **options.as_arguments(shapes=call is None),  # type: ignore[arg-type]
        )
    except bnfold.VerificationError as error:
        hint = _type_hint(original, call)
        if not hint:
            raise
        raise bnfold.VerificationError(str(error), hint=hint) from error


def _type_hint(original: object, call: "Call | None") -> str:
    if call is None:
        return ""
    import torch

    from bnfold.torch.file.examples import type_hint

    return type_hint(original, call) if isinstance(original, torch.nn.Module) else ""
