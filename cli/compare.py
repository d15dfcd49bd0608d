"""What `fold` and `verify` share: the verification, from the words of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.report import Report


def compare(
    original: Path,
    folded: Path,
    device: str,
    samples: int,
    seed: int,
    shapes: Sequence[str] | None,
    inputs: Path | None,
    value_ranges: Sequence[str] | None,
    rtol: float | None,
    atol: float | None,
    *,
    tf32: bool = False,
) -> "Report":
    """Runs `bnfold.verify` with options as they were typed.

    Args:
        original: The original file.
        folded: The file to compare with it.
        device: "auto", "cpu", "cuda" or "tensorrt".
        samples: Number of made-up samples.
        seed: Their seed.
        shapes: Texts such as "image:1,3,224,224".
        inputs: An .npz file with real data, or a folder of them.
        value_ranges: Texts such as "ids:0,30521".
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        tf32: Report a run with TF32 beside the verdict.

    Raises:
        UsageError: An option is malformed or does not fit the model.
    """
    import bnfold  # noqa: PLC0415 - `bnfold --help` need not wait for it
    from bnfold.verification import load_inputs, parse_input, parse_value_range  # noqa: PLC0415

    return bnfold.verify(
        original,
        folded,
        inputs=None if inputs is None else load_inputs(inputs),
        device=device,
        samples=samples,
        seed=seed,
        shapes=[parse_input(text) for text in shapes or ()] or None,
        value_ranges=dict(parse_value_range(text) for text in value_ranges or ()) or None,
        rtol=rtol,
        atol=atol,
        tf32=tf32,
    )
