"""Every usual way to write a PyTorch module as an ONNX file."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import onnx
import torch
from architectures import Built
from torch.onnx import ONNXProgram, TrainingMode


class Exporter(StrEnum):
    """The two exporters of PyTorch: by tracing with TorchScript, and by torch.export (dynamo=True)."""

    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"


class Variant(StrEnum):
    """How a file was made.

    With its defaults (`training=EVAL` and constant folding) the TorchScript exporter merges a BatchNorm into the
    convolution before it. With `training=PRESERVE` it folds constants and leaves every BatchNormalization; a module
    in eval mode still gives `training_mode=0`. Without constant folding it leaves them in either mode. The dynamo
    exporter merges Conv+BN if and only if it optimises.
    """

    TORCHSCRIPT_RAW = "torchscript, no folding"
    TORCHSCRIPT_FOLDED = "torchscript, constants folded"
    TORCHSCRIPT_DEFAULT = "torchscript, default"
    DYNAMO_RAW = "dynamo, not optimised"
    DYNAMO_OPTIMIZED = "dynamo, default"


TORCHSCRIPT = (Variant.TORCHSCRIPT_RAW, Variant.TORCHSCRIPT_FOLDED, Variant.TORCHSCRIPT_DEFAULT)
DYNAMO = (Variant.DYNAMO_RAW, Variant.DYNAMO_OPTIMIZED)

# The exporter merges BatchNorms itself, so that the file holds weights that it has rounded to float32.
MERGED = (Variant.TORCHSCRIPT_DEFAULT, Variant.DYNAMO_OPTIMIZED)


def export(
    built: Built,
    path: Path,
    *,
    exporter: str,
    constant_folding: bool,
    keep_batch_norm: bool = True,
    dynamic_batch: bool = False,
) -> None:
    """Writes the ONNX file of a module, and checks it.

    Args:
        built: The module, in eval mode, and its example inputs; the file calls them input_0, input_1 …
        path: Where the file goes.
        exporter: "torchscript" or "dynamo".
        constant_folding: For dynamo its `optimize`, which merges Conv+BN as well.
        keep_batch_norm: For TorchScript `training=PRESERVE`, which keeps it from merging Conv+BN while it folds
            constants; see `Variant`. Without effect on dynamo.
        dynamic_batch: Leaves the first dimension of every input open.

    Raises:
        Exception: Whatever the exporter raises, or onnx's checker on what the exporter has written.
    """
    if exporter == Exporter.DYNAMO:
        program = _program(built, dynamic_batch=dynamic_batch)
        if constant_folding:
            program.optimize()
        program.save(path)
    else:
        module, inputs = built
        names = _input_names(built)
        with quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                inputs,
                path,
                dynamo=False,
                do_constant_folding=constant_folding,
                training=TrainingMode.PRESERVE if keep_batch_norm else TrainingMode.EVAL,
                input_names=names,
                dynamic_axes={name: {0: "batch"} for name in names} if dynamic_batch else None,
            )
    onnx.checker.check_model(path, full_check=True)


def export_variant(built: Built, path: Path, variant: Variant) -> None:
    """Writes one file; errors as in `export`."""
    export(
        built,
        path,
        exporter=Exporter.DYNAMO if variant in DYNAMO else Exporter.TORCHSCRIPT,
        constant_folding=variant not in (Variant.TORCHSCRIPT_RAW, Variant.DYNAMO_RAW),
        keep_batch_norm=variant is not Variant.TORCHSCRIPT_DEFAULT,
    )


def export_dynamo(built: Built, raw: Path, optimized: Path) -> None:
    """Writes both dynamo variants from one run of torch.export."""
    program = _program(built, dynamic_batch=False)
    program.save(raw)
    program.optimize()  # what the exporter does by default before it saves
    program.save(optimized)
    for path in (raw, optimized):
        onnx.checker.check_model(path, full_check=True)


def _program(built: Built, *, dynamic_batch: bool) -> ONNXProgram:
    module, inputs = built
    batch = torch.export.Dim("batch", min=1, max=64)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            optimize=False,
            input_names=_input_names(built),
            verbose=False,
            # One entry for the one argument of forward, *inputs.
            dynamic_shapes=(tuple({0: batch} for _ in inputs),) if dynamic_batch else None,
        )
    assert program is not None
    return program


def _input_names(built: Built) -> list[str]:
    return [f"input_{i}" for i in range(len(built[1]))]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporters: what they warn of, log and print is about themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
