"""Reports as a fold and a comparison fill them, without running anything."""

import math
from dataclasses import replace

from bnfold.planning.plan import Apart, Merge, MergeKind
from bnfold.reasons import StopCode
from bnfold.report import (
    Costs,
    DeviceInfo,
    Exact,
    FileInfo,
    InputInfo,
    OutputMetrics,
    PlanEntry,
    Report,
    Site,
    Unproved,
    Verdict,
    VerifyConfig,
)

DEVICE = DeviceInfo(
    "auto", "cpu", "a processor", "CPUExecutionProvider", "no GPU", nodes_per_provider={"CPUExecutionProvider": 3}
)
CONFIG = VerifyConfig(0, 4, (InputInfo("image", (1, 3, 224, 224), "float32", dynamic=True, source="seeded"),), 4)
LONG = "model/" + "backbone.layers.0.block." * 12 + "norm"
HOSTILE = "<script>alert(1)</script>|`x`](javascript:1)\n# @someone\u202e _a_ 'q' \"w\" &amp;"


def output(name="logits", verdict=Verdict.PASS, **figures):
    figures = {"max_abs": 2e-6, "rel_l2": 1e-7, "cosine": 1.0, "noise_ratio": 0.5, "top1_agreement": 1.0, **figures}
    return OutputMetrics(name, "float32", (1, 1000), verdict, samples=4, **figures)


def site(name, ratio, verdict=Verdict.PASS, reason=""):
    return Site(name, (f"conv_{name}",), verdict, reason, ratio, 1e-6, 1e-7, 3)


def fold(name, *path):
    return PlanEntry((name,), "batch_norm", None, None, (f"conv_{name}",), "output", path, 1)


def left(name, code="nonlinear", reason="backward: Relu 'r' is not linear; forward: it is an output"):
    return PlanEntry((name,), "batch_norm", code, reason, batch_norms=1)


FOLDED = Report(
    Verdict.PASS,
    outputs=(output(),),
    device=DEVICE,
    config=CONFIG,
    timings_s={"fold": 0.01},
    sites=tuple(site(f"bn{number}", 10 / (1 + number)) for number in range(53)),
    folds=tuple(fold(f"bn{number}", "relu", "concat") for number in range(53)),
    input=FileInfo("resnet.onnx", "ab" * 32, "onnx", 102_000_000),
    output=FileInfo("folded.onnx", "cd" * 32, "onnx", 101_000_000),
    operators_before={"Conv": 53, "BatchNormalization": 53},
    operators_after={"Conv": 53},
    costs_before=Costs(4_100_298_240, 9_633_792),
    costs_after=Costs(4_089_184_256, 9_633_792),
    bench={"comparisons": [{"batch": None, "original": {"median_s": 0.0315}, "folded": {"median_s": 0.0302}}]},
)
MERGED = replace(
    FOLDED,
    merges=(
        Merge(
            ("c1", "c2", "bn"), MergeKind.BRANCHES, "c0", 4, ((3, 3), (3, 3), (1, 1), ()), (3, 3), 888, 216, 928, 224, 1
        ),
        Merge((), MergeKind.BRANCHES, "d0", 2, ((3,), ()), (3,), 20, 10, 20, 10, 0),
        Merge(("e1",), MergeKind.CHAIN, "e0", 1, ((1, 1), (3, 3)), (3, 3), 20, 10, 20, 10, 0),
    ),
    apart=(Apart(("add",), StopCode.STRIDES, "their strides are 1 and 2"),),
)
FAILED = Report(
    Verdict.FAIL,
    "'conv_bn3' differs by 5.98e+04 times its rounding bound in channel 7",
    outputs=(output(verdict=Verdict.FAIL, reason="output 'logits' is 99 times as far off", noise_ratio=99.0),),
    device=DEVICE,
    config=CONFIG,
    sites=(
        site("nan", math.inf, Verdict.FAIL, "it gives NaN"),
        site("bn3", 5.98e4, Verdict.FAIL, "it differs"),
        site("bn1", 0.0),
        Site("skipped", ("conv",), Verdict.SKIPPED, "it is empty"),
    ),
    sites_note="'skipped' was not measured on its own",
    input=FileInfo("a.onnx", "ab" * 32, "onnx", 20_000),
)
LEFTOVERS = replace(
    FOLDED, left=tuple(left(f"{LONG}{number}") for number in range(60)), sites=(site(LONG, 3.0), site("層" * 90, 2.0))
)
INCONCLUSIVE = replace(FAILED, verdict=Verdict.INCONCLUSIVE, reason="the noise drowns the signal", sites=())
SKIPPED = Report(Verdict.SKIPPED, "dry run", folds=(fold("bn1"),), left=(left("bn2"),))
STRANGE = Report(
    Verdict.FAIL,
    f"output {HOSTILE!r}: {HOSTILE}",
    outputs=(output(HOSTILE, Verdict.FAIL, reason=HOSTILE),),
    device=replace(DEVICE, name=HOSTILE, nodes_elsewhere=(HOSTILE,)),
    config=replace(
        CONFIG, inputs=(InputInfo(HOSTILE, (), "float32", dynamic=False, source="given"),), inputs_note=HOSTILE
    ),
    sites=(site(HOSTILE, 1.0, reason=HOSTILE),),
    sites_note=HOSTILE,
    folds=(fold(HOSTILE, HOSTILE),),
    left=(left(HOSTILE, reason=HOSTILE),),
    merges=(Merge((HOSTILE,), MergeKind.BRANCHES, HOSTILE, 2, ((1, 1), ()), (1, 1), 2, 1, 2, 1, 0),),
    apart=(Apart((HOSTILE,), StopCode.STRIDES, HOSTILE),),
    assumptions=(HOSTILE,),
    exact=Exact(Verdict.FAIL, HOSTILE, 2, 1, 2, (Unproved((HOSTILE,), HOSTILE, HOSTILE, wrong=True),), 0.5),
    input=FileInfo(HOSTILE, None, "module", 1),
    output=FileInfo(HOSTILE, "00", "onnx", 1, (HOSTILE,)),
    operators_before={HOSTILE: 1},
)
ALL = {
    "folded": FOLDED,
    "merged": MERGED,
    "failed": FAILED,
    "leftovers": LEFTOVERS,
    "inconclusive": INCONCLUSIVE,
    "skipped": SKIPPED,
    "strange": STRANGE,
}
