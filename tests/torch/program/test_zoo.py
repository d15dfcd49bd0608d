"""Exported programs of real architectures: no output changes, and every BN goes that can."""

import inspect

import architectures
import onnxruntime as ort
import pytest
import torch
from architectures import Built
from torch import Tensor, nn
from torch_programs import check_outputs, check_same, export, fold, random_inputs, randomised, saved_and_loaded

from bnfold.torch.program.fold import fold_program

pytestmark = [  # of torch's own making
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning"),
]

LEFT = {
    "emu3_temporal_block": 1,  # BN → SiLU on an input
    "hubert": 1,  # the input is read by the feature extractor as well
    "patchtsmixer": 4,  # the input is read by a residual sum as well
}
"""How many BNs stay; none in all others."""

DECOMPOSED = {"resnet", "levit", "segformer", "hgnet_v2", "hubert", "patchtsmixer"}
"""Those that are folded after a decomposition as well, and decomposed after a fold."""

CANNOT_BE_EXPORTED = {"clap_audio", "images"}
NAMES = [
    name
    for name, build in vars(architectures).items()
    if inspect.isfunction(build) and build.__module__ == "architectures" and name not in CANNOT_BE_EXPORTED
]
SOME = sorted({*NAMES[::4], *LEFT, *DECOMPOSED} - {"levit"})
"""All of them, as modules and through ONNX, are in other tests."""


class MixConv(nn.Module):
    """The block of MixNet: channels split into groups with kernels of different sizes, joined again, one BN for all."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, channels, 1, groups=2, bias=False)
        sizes = (3, 5, 7)
        self.parts = nn.ModuleList(
            nn.Conv2d(channels // 3, channels // 3, size, padding=size // 2, groups=channels // 3, bias=False)
            for size in sizes
        )
        self.project = nn.ModuleList(nn.Conv2d(channels // 2, channels // 2, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.expand(x)).relu_()
        y = torch.cat([conv(part) for conv, part in zip(self.parts, y.chunk(3, 1), strict=True)], 1)
        y = nn.functional.silu(self.norms[1](y))
        y = torch.cat([conv(part) for conv, part in zip(self.project, y.split(y.shape[1] // 2, 1), strict=True)], 1)
        return x + self.norms[2](y)


def test_mixnet() -> None:
    inputs = random_inputs((2, 12, 8, 8))
    folded = fold(export(nn.Sequential(MixConv(), MixConv()), inputs, dynamic=True), inputs)
    assert folded.count("BatchNorm") == folded.plan.batch_norms_left == 0
    assert folded.count("Conv") == 12
    check_outputs(folded.original, saved_and_loaded(folded.program), random_inputs((3, 12, 8, 8)))


def built(name: str) -> Built:
    torch.manual_seed(0)
    module, inputs = getattr(architectures, name)()
    return randomised(module), tuple(given.double() if given.is_floating_point() else given for given in inputs)


@pytest.mark.parametrize("name", ["levit", *(pytest.param(name, marks=pytest.mark.slow) for name in SOME)])
def test_architecture(name: str) -> None:
    module, inputs = built(name)
    program = torch.export.export(module, inputs, strict=False)
    folded = fold(program, inputs)
    assert folded.plan.batch_norms_left == LEFT.get(name, 0), folded.plan.left
    assert folded.count("BatchNorm") == 0
    check_outputs(program, saved_and_loaded(folded.program), inputs)
    if name in DECOMPOSED:
        decomposed = fold_program(program.run_decompositions())
        assert decomposed.plan.batch_norms_left == LEFT.get(name, 0), decomposed.plan.left
        check_outputs(program, decomposed.program, inputs)
        check_outputs(program, folded.program.run_decompositions(), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "levit", "segformer", "hgnet_v2"])
def test_architecture_exported_to_onnx(name: str) -> None:
    module, inputs = built(name)
    inputs = tuple(given.float() for given in inputs)
    program = torch.export.export(module.float(), inputs, strict=False)
    exported = torch.onnx.export(fold_program(program).program, dynamo=True, verbose=False).model_proto
    assert not any(node.op_type == "BatchNormalization" for node in exported.graph.node)
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {given: value.numpy() for given, value in zip(names, inputs, strict=True)})
    outputs = torch.utils._pytree.tree_leaves(program.module()(*inputs))
    for one, other in zip(outputs, found, strict=True):
        check_same("output", one.detach(), torch.from_numpy(other), tolerance=1e-4)
