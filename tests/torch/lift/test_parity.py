"""The same networks by both roads: what is planned for a program is what is planned for its ONNX file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import architectures
import pytest
import torch
import zoo
from torch import nn
from torch_lifting import export, fold_program
from zoo import Variant, ZooModel

from bnfold.graph import Kind
from bnfold.onnx.file.load import load
from bnfold.onnx.lift.lift import lift as lift_onnx
from bnfold.planning.plan import Plan
from bnfold.planning.planner import plan
from bnfold.torch.lift.lift import lift


class Mixed(nn.Module):
    """Parallel depthwise convolutions of parts of the channels, with a squeeze-and-excitation gate, as in MixNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.parts = nn.ModuleList(nn.Conv2d(4, 4, size, padding=size // 2, groups=4) for size in (3, 5, 7))
        self.norm = nn.BatchNorm2d(12)
        self.squeeze = nn.Sequential(nn.Conv2d(12, 3, 1), nn.SiLU(), nn.Conv2d(3, 12, 1))
        self.project = nn.Sequential(nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        y = self.expand(x)
        y = torch.cat([part(given) for part, given in zip(self.parts, torch.split(y, 4, 1), strict=True)], 1)
        y = nn.functional.silu(self.norm(y))
        y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return self.project(y) + x


def mixed() -> architectures.Built:
    return Mixed(), architectures.images(4, 8, 8)


QUICK = (mixed,)
SLOW = (
    architectures.resnet,
    architectures.levit,
    architectures.mobilenet_v2,
    architectures.efficientnet,
    architectures.cvt,
    architectures.dpt,
    architectures.efficientloftr,
    architectures.swiftformer,
    architectures.mobilevitv2,
    architectures.superglue_keypoints,
    architectures.parakeet,
    architectures.patchtst,
)


@pytest.mark.parametrize("network", QUICK, ids=lambda network: network.__name__)
def test_both_roads_plan_the_same(network, exported):
    compare(network, exported)


@pytest.mark.slow
@pytest.mark.parametrize("network", SLOW, ids=lambda network: network.__name__)
def test_both_roads_plan_the_same_for_larger_networks(network, exported):
    compare(network, exported)


def compare(network: Callable[[], architectures.Built], folder: Path) -> None:
    model = ZooModel(network)
    module, inputs = model.build()
    by_file = plan(lift_onnx(load(zoo.exported(model, (module, inputs), folder, Variant.DYNAMO_RAW))))
    module.double()
    inputs = tuple(given.double() if given.is_floating_point() else given for given in inputs)

    by_program = fold_program(export(module, *inputs), *inputs)
    # Only planned: what torch decomposes itself does not always run (patchtst, view after a batch norm).
    decomposed = plan(lift(export(module, *inputs, decomposed=True)))

    # The exporter drops what nothing reads; torch.export keeps it.
    assert codes(by_program) == codes(by_file)
    assert directions(by_file) <= directions(by_program)
    assert decomposed.batch_norms == by_file.batch_norms <= by_program.batch_norms
    assert decomposed.batch_norms_left >= by_program.batch_norms_left


def directions(made: Plan) -> Counter[str]:
    return Counter(fold.direction for fold in made.folds if fold.kind is Kind.BATCH_NORM)


def codes(made: Plan) -> list[str]:
    return sorted(left.code for left in made.left if left.kind is Kind.BATCH_NORM)
