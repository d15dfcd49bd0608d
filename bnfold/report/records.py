"""What a report is made of: plain records, filled by the fold and by the verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """What a verification found; the command line writes nothing after FAIL or INCONCLUSIVE."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file that was read or written, or a module that was built.

    Attributes:
        path: As the caller gave it; for a module, the import path of its code.
        sha256: Hexadecimal digest of the file, followed by its external data files if it has some; None where nobody
            asked for it or there is no file.
        format: "onnx", "pt2", "safetensors", "pt" or "module".
        bytes: Size of the file with its external data; of a module, of its parameters and buffers.
        data_files: Names of its external data files, in the order in which they are hashed.
    """

    path: str
    sha256: str | None
    format: str
    bytes: int
    data_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Costs:
    """What one run of a model takes, with 1 for the batch where that is open.

    Attributes:
        multiply_adds: Of convolutions, matrix products, BatchNorms and multiplications.
        peak_activation_bytes: The most that is alive at a time of what the nodes compute, one after another.
    """

    multiply_adds: int
    peak_activation_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Where a verification really ran.

    Attributes:
        requested: "auto", "cpu", "cuda" or "tensorrt".
        used: "cpu", "cuda" or "tensorrt".
        name: Name of the processor or of the GPU.
        provider: The execution provider that heads the session; "torch" where PyTorch runs the models itself.
        fell_back: Why "auto" did not take the GPU; None where it did or where it was not asked.
        tf32: Whether TF32 may shorten float32 products; a verdict is taken with it off.
        nodes_per_provider: Nodes of the original by the provider that runs them; for PyTorch, operations by the kind of
            device that holds their results.
        nodes_elsewhere: Those that run elsewhere than asked for: small ones, for Conv, ConvTranspose, Gemm, MatMul and
            BatchNormalization there are an error.
    """

    requested: str
    used: str
    name: str
    provider: str
    fell_back: str | None = None
    tf32: bool = False
    nodes_per_provider: Mapping[str, int] = field(default_factory=dict)
    nodes_elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input as it was fed: with open dimensions resolved, and where the values came from.

    Attributes:
        name: Name of the graph input.
        shape: Shape in the first sample.
        dtype: NumPy name of the element type.
        dynamic: Whether bnfold or the caller had to choose some of the sizes.
        source: "seeded" or "given".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dynamic: bool
    source: str


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """Everything that it takes to repeat a verification.

    Attributes:
        seed: Seed of the inputs and of the noise draws.
        samples: Number of samples run.
        inputs: The inputs as fed.
        noise_draws: Perturbed copies of the original that were run; 0 where tolerances decided.
        noise_limit: Largest noise ratio of an output that passes.
        site_limit: Largest ratio of a site that passes.
        rtol: Relative tolerance if the caller overrode the noise ratio.
        atol: Absolute tolerance if the caller overrode the noise ratio.
        graph_optimizations: The runtime's graph optimisation level, the same for both models.
        oracle: What the original's rounding error is measured against: "float64"; "none" if that is not known.
        oracle_note: Why there is none where there should be one; "" otherwise.
        inputs_note: Which sizes the model calls by one name although they differ; "" if there are none.
    """

    seed: int
    samples: int
    inputs: tuple[InputInfo, ...] = ()
    noise_draws: int = 0
    noise_limit: float = 4.0
    site_limit: float = 32.0
    rtol: float | None = None
    atol: float | None = None
    graph_optimizations: str = "disabled"
    oracle: str = "none"
    oracle_note: str = ""
    inputs_note: str = ""


@dataclass(frozen=True, slots=True)
class OutputMetrics:
    """How far one output of the folded model is from the original's; over samples, the worst.

    Attributes:
        name: Name of the graph output.
        dtype: NumPy name of the original's element type.
        shape: Shape in the first sample.
        verdict: What this output says.
        reason: One sentence, empty for a plain pass.
        samples: Samples compared.
        max_abs: Largest absolute difference of finite elements.
        rel_l2: ‖folded − original‖ / ‖original‖.
        sqnr_db: 20·log10(‖original‖ / ‖folded − original‖); None where nothing differs.
        cosine: Smallest cosine between the two; None where one of them is zero.
        top1_agreement: Share of rows (last axis) with the same largest element; None where that says nothing.
        noise_ratio: ‖folded − original‖ over the noise; None where no noise was measured.
        noise_rel_l2: The noise over ‖original‖; None where no noise was measured.
        float64_ratio: What the folded model is off in float64, where the rounding of its weights is all that is left,
            over what rounding the original's parameters does; None where float64 cannot tell.
        nonfinite_original: NaN and Inf elements of the original, all samples together.
        nonfinite_folded: NaN and Inf elements of the folded model, all samples together.
        may_be_rounding: Whether what fails here could come of rounding, if that grew enough or decided on an order:
            numbers, integers and sizes may; a missing output, another type, NaN and Inf may not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    verdict: Verdict
    reason: str = ""
    samples: int = 0
    max_abs: float | None = None
    rel_l2: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    noise_ratio: float | None = None
    noise_rel_l2: float | None = None
    float64_ratio: float | None = None
    nonfinite_original: int = 0
    nonfinite_folded: int = 0
    may_be_rounding: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """One value of the original, against what the changed nodes of the folded model make of the original's activations.

    Attributes:
        name: Name of the value.
        nodes: Names of the folded model's nodes that lead to it.
        verdict: What this site says; SKIPPED where it could not be measured.
        reason: One sentence, empty for a plain pass.
        ratio: Largest difference over its rounding bound u · Σ |terms|; None where it was not measured.
        max_abs: Largest absolute difference; None where it was not measured.
        rel_l2: ‖folded − original‖ / ‖original‖; None where it was not measured.
        channel: Number of the channel with the largest ratio; None where the value has no channels.
    """

    name: str
    nodes: tuple[str, ...]
    verdict: Verdict
    reason: str = ""
    ratio: float | None = None
    max_abs: float | None = None
    rel_l2: float | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One fold, or one thing left, as the plan told it.

    Attributes:
        nodes: Names of the nodes that it is about.
        kind: "batch_norm" or "affine".
        code: Stable code of the reason; None for a fold.
        reason: One sentence; None for a fold.
        targets: Names of the nodes that absorbed it.
        direction: "output" or "input", the side of the targets, or "both": the scale on the output of some, the shift
            on the input of others; None for what was left.
        path: Names of the nodes that it passed on the way, nearest first.
        batch_norms: How many of the nodes are batch norms.
        written: What was left was written as, such as "a 1x1 depthwise Conv"; None where it stays as it is.
    """

    nodes: tuple[str, ...]
    kind: str
    code: str | None = None
    reason: str | None = None
    targets: tuple[str, ...] = ()
    direction: str | None = None
    path: tuple[str, ...] = ()
    batch_norms: int = 0
    written: str | None = None


@dataclass(frozen=True, slots=True)
class Unproved:
    """A region that a fold changed and the exact gate did not find equal.

    Attributes:
        nodes: Names of the folded model's nodes in it.
        value: The original's value at which both sides were compared; "" if they were not.
        reason: A clause.
        wrong: Whether both sides differ; else they could not be compared exactly.
    """

    nodes: tuple[str, ...]
    value: str
    reason: str
    wrong: bool


@dataclass(frozen=True, slots=True)
class Exact:
    """What the exact gate found: every region that a fold changed, both sides on small integers.

    Attributes:
        verdict: PASS if every region is equal bit for bit; FAIL if one differs; INCONCLUSIVE if some could not be
            compared exactly, so that the other gates decide; SKIPPED if nobody asked.
        reason: One sentence, empty for a pass.
        regions: How many regions changed.
        equal: How many of them are equal bit for bit, at every size tried.
        sizes: How many choices of the model's open sizes were tried; 1 if it has none.
        unproved: The others, wrong ones first.
        duration_s: How long it took, in seconds.
    """

    verdict: Verdict
    reason: str = ""
    regions: int = 0
    equal: int = 0
    sizes: int = 0
    unproved: tuple[Unproved, ...] = ()
    duration_s: float = 0.0

    def summary(self) -> str:
        """What it found, in a few words."""
        if self.verdict is Verdict.SKIPPED:
            return "exact gate not run"
        if not self.regions:
            return f"exact gate: {self.reason or 'nothing to compare'}"
        sizes = f" at {self.sizes} sizes" if self.sizes > 1 else ""
        return f"{self.equal} of {self.regions} changed region{'' if self.regions == 1 else 's'} exactly equal{sizes}"
