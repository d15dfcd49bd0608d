"""verify for every kind of model that bnfold knows; torch is imported only for models of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

from bnfold.errors import UsageError
from bnfold.input_spec import Array, Shapes
from bnfold.model_kind import is_torch
from bnfold.report.records import Exact, Verdict
from bnfold.report.report import Report
from bnfold.text.progress import Progress, heard_by
from bnfold.verification.exact.deciding import decided, failed
from bnfold.verification.inputs.feeds import FeedRequest
from bnfold.verification.inputs.sampling import Range
from bnfold.verification.onnx.verifier import verify_onnx
from bnfold.verification.runtime.limits import RUN_LIMIT_S, limited_to
from bnfold.verification.runtime.request import Request
from bnfold.verification.runtime.source import ModelLike

if TYPE_CHECKING:
    from bnfold.torch.capture.example_inputs import ExampleInputs
    from bnfold.verification.torch.run.samples import Given
    from bnfold.verification.torch.run.subject import TorchLike

    AnyModel: TypeAlias = ModelLike | TorchLike
    AnyInputs: TypeAlias = Mapping[str, Array] | Sequence[Mapping[str, Array]] | Given | Sequence[Given]


def verify(
    original: AnyModel,
    folded: AnyModel,
    *,
    inputs: AnyInputs | None = None,
    example_inputs: ExampleInputs | None = None,
    device: str = "auto",
    samples: int = 4,
    seed: int = 0,
    shapes: Shapes | None = None,
    value_ranges: Mapping[str, Range] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    tf32: bool = False,
    timeout_s: float = RUN_LIMIT_S,
    threads: int | None = None,
    progress: Progress | None = None,
    names: Mapping[str, str] | None = None,
    exact: Exact | None = None,
) -> Report:
    """Compare a folded model with its original, by running both, with the runtime's own optimisations off.

    Two gates decide. Sites: what changed, fed with the original's own activations, gives what the original gives, up
    to rounding; this names the layer that is wrong. Outputs: an output passes if it is at most 4 times as far off as
    the original's own rounding noise. Nothing of the models, of torch's settings or of its random generators is
    changed.

    Args:
        original: A path (.onnx or .pt2), an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or a
            torch.export.ExportedProgram.
        folded: The same; for an original of PyTorch also an ONNX model that was made of it.
        inputs: Real data. For ONNX: arrays by input name, or a sequence of that, one a sample. For PyTorch: what the
            original is called with (a tuple, a dict or (args, kwargs); or arrays by name), or a list of that. What
            is left out by name is made up.
        example_inputs: For a torch.nn.Module, what it can be called with; made-up data has the same structure,
            shapes and dtypes.
        device: "auto" (the GPU if it works, else the CPU), "cpu", "cuda" or, for ONNX, "tensorrt"; only "auto" falls
            back. TensorRT folds BatchNorm itself, so the original runs on CUDA there.
        samples: Number of samples, where no data is given.
        seed: Seed of the inputs and of the noise.
        shapes: Other shapes of inputs; by name, or in order with None for a name left out.
        value_ranges: Lowest and highest value of inputs that are made up, by name.
        rtol: If this or `atol` is given, |folded − original| ≤ atol + rtol·|original| at the outputs decides, and no
            gate; the report lists the sites all the same.
        atol: See `rtol`; what is not given is 0.
        tf32: Run the folded model once more as it will be deployed, with TF32 and the runtime's optimisations, and
            report that beside the verdict; needs "cuda", or "auto" that finds it.
        timeout_s: Longest time for one run of a model.
        threads: How many threads the runtime may have; None for its own choice.
        progress: Told, in words, what is being done.
        names: For inputs and outputs of an ONNX original, what the folded model calls them, if something else.
        exact: What the exact gate found of this very fold (`FoldResult.check`), as a third gate. After a wrong region
            nothing is run; and what it proves, no draw of the noise has to.

    Returns:
        A report; a difference is a verdict in it, not an error.

    Raises:
        UsageError: An argument is out of range, names no input, or contradicts the model.
        ModelLoadError: A model cannot be read.
        UnsafeModelError: A model would run code when loaded, or reaches for files outside its folder.
        UnsupportedModelError: A model is of a kind that cannot be verified, or an input of a type that no value can be
            made up for.
        VerificationError: The original does not run, or a run does not end in time, so that nothing can be compared.
        DeviceError: The device cannot be used, or has no kernel for the original.
    """
    if exact is None:
        is_exact = False
    elif exact.verdict is Verdict.FAIL:
        return failed(exact)
    else:
        is_exact = exact.verdict is Verdict.PASS
    request = Request.of(device, rtol, atol, tf32=tf32, threads=threads, is_exact=is_exact)
    with heard_by(progress), limited_to(timeout_s):
        if is_torch(original):
            if names:
                raise UsageError("names are for ONNX models", hint="Let both return the same structure.")
            from bnfold.verification.torch.run.samples import SampleRequest
            from bnfold.verification.torch.verifier import verify_torch

            given = SampleRequest.of(example_inputs, inputs, samples, seed, shapes, value_ranges)
            report = verify_torch(cast("TorchLike", original), folded, given, request)
        else:
            if is_torch(folded):
                message = "the original is an ONNX model, but the folded one is not"
                raise UsageError(message, hint="Give the PyTorch original.")
            if example_inputs is not None:
                raise UsageError("example_inputs are for PyTorch models", hint="Give arrays by name as inputs.")
            arrays = cast("Mapping[str, Array] | Sequence[Mapping[str, Array]] | None", inputs)
            report = verify_onnx(
                cast(ModelLike, original),
                cast(ModelLike, folded),
                FeedRequest.of(arrays, samples, seed, shapes, value_ranges),
                request,
                names or {},
            )
    return report if exact is None else decided(report, exact)
