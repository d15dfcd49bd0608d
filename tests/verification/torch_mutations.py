"""Faults planted in folded PyTorch modules, and what the verification makes of them.

`python tests/verification/torch_mutations.py` writes TORCH_MUTATIONS.md beside this file (a few minutes on two cores).

A fault is planted in the parameters of one batch norm before a fold, so that the result is what a tool with that fault
would give, or in the folded layer itself.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import conftest  # noqa: F401 - it finds tests/support

import torch_networks as networks

import bnfold
from bnfold.report import Report, Verdict
from bnfold.verification.judging.sites import SITE_LIMIT

ZOO_NAMES = ("resnet", "mobilenet_v2", "mobilevit", "levit")
"""Those that are tested; the table has more."""

MORE_ZOO_NAMES = ("regnet", "mobilenet_v1", "efficientnet", "hgnet_v2", "rt_detr_resnet", "data2vec_vision", "parakeet")
FLOAT32_ONLY = frozenset({"levit", "parakeet"})
"""Networks whose code computes in float32 whatever the weights are."""

PLANTS: dict[str, Callable[[nn.Module, str], None]] = {
    "bias off by 0.1 %": networks.plant_in_bias,
    "weight in fp16": networks.plant_in_weight,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, and how to fold it.

    Attributes:
        name: Its name.
        module: The network, in float32.
        inputs: Its inputs.
        norm: The path of a batch norm in the middle of it, which goes into one layer.
        layer: The path of that layer.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    norm: str
    layer: str

    def in_dtype(self, dtype: torch.dtype) -> "Subject":
        """The network in another dtype."""
        inputs = tuple(value.to(dtype) if value.is_floating_point() else value for value in self.inputs)
        return Subject(self.name, copy.deepcopy(self.module).to(dtype), inputs, self.norm, self.layer)

    def folded(self) -> nn.Module:
        """The fold."""
        return bnfold.fold(self.module, self.inputs).model

    def verify(self, folded: nn.Module) -> Report:
        """What the verification says of a fold."""
        return bnfold.verify(self.module, folded, example_inputs=self.inputs, device="cpu", samples=1)

    def faults(self) -> Iterator[tuple[str, nn.Module]]:
        """Folds with a fault each."""
        for name, fault in networks.FAULTS.items():
            wrong = copy.deepcopy(self.module)
            networks.change_batch_norm(wrong.get_submodule(self.norm), fault)
            yield name, bnfold.fold(wrong, self.inputs).model
        right = self.folded()
        for name, plant in PLANTS.items():
            folded = copy.deepcopy(right)
            plant(folded, self.layer)
            yield name, folded


@cache
def small(name: str) -> Subject:
    """One of the small networks."""
    given = networks.network(name)
    layer, norm = given.pairs[len(given.pairs) // 2]
    return Subject(name, given.module, given.inputs, norm, layer)


@cache
def real(name: str) -> Subject:
    """A network of the zoo."""
    import zoo  # transformers take ten seconds to import

    module, inputs = next(entry for entry in zoo.ZOO if entry.name == name).build()
    folds = bnfold.fold(module, inputs).plan.folds
    modules = dict(module.named_modules())
    found = [
        (fold.nodes[0], fold.targets[0])
        for fold in folds
        if fold.direction == "backward" and len(fold.targets) == 1 and {fold.nodes[0], fold.targets[0]} <= {*modules}
    ]
    return Subject(name, module, inputs, *found[len(found) // 2])


def names_the_layer(report: Report, layer: str) -> bool:
    """Whether the verdict is that this layer is wrong, and no other."""
    failed = [site for site in report.sites if site.verdict is Verdict.FAIL]
    alone = all(layer in site.nodes or any(layer in node for node in site.nodes) for site in failed)
    named = report.verdict is Verdict.FAIL and report.reason.startswith(f"'{layer}")
    return bool(failed) and alone and named and failed[0].ratio is not None and failed[0].ratio > SITE_LIMIT


def worst(report: Report) -> float:
    """The largest ratio of a site."""
    return max((site.ratio for site in report.sites if site.ratio is not None), default=math.nan)


def row(subject: Subject) -> list[str]:
    """One line of the table: the ratios of correct folds by dtype, with the outputs' noise ratio, then the faults'."""
    cells = [subject.name]
    for name, dtype in networks.DTYPES.items():
        if name != "float32" and subject.name in FLOAT32_ONLY:
            cells.append("–")
            continue
        other = subject.in_dtype(dtype)
        report = other.verify(other.folded())
        noise = max((output.noise_ratio or 0 for output in report.outputs), default=math.nan)
        verdict = "" if report.verdict is Verdict.PASS else f" {report.verdict}"
        cells.append(f"{worst(report):.1f} ({noise:.2f}){verdict}")
    for _, wrong in subject.faults():
        report = subject.verify(wrong)
        cells.append(f"{worst(report):.2g}{'' if names_the_layer(report, subject.layer) else ' **not named**'}")
    return cells


def main() -> None:
    header = ["network", *(f"correct, {name}" for name in networks.DTYPES), *networks.FAULTS, *PLANTS]
    lines = [
        "# What the verification of PyTorch modules makes of correct folds and of planted faults",
        "",
        "The largest difference of any site, in units of its rounding bound, on the CPU with PyTorch"
        f" {torch.__version__.partition('+')[0]}.",
        f"A site fails above {SITE_LIMIT:g}. For correct folds the noise ratio of the outputs follows, which may be 4;",
        "the verdict is inconclusive where rounding alone is a tenth of what a deep network gives in that dtype, and –",
        "stands where the code of a network computes in float32 anyway. Every fault is planted in one batch norm or in",
        "its layer, in the middle of the network, and the verdict names that layer and no other, or the cell says so.",
        "Written by `python tests/verification/torch_mutations.py`.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    subjects = [*map(small, networks.NAMES), *map(real, (*ZOO_NAMES, *MORE_ZOO_NAMES))]
    for subject in subjects:
        lines.append(f"| {' | '.join(row(subject))} |")
        print(lines[-1], flush=True)
    Path(__file__).with_name("TORCH_MUTATIONS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
