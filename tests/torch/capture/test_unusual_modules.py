"""What torch.export does not take as it is: results of unknown classes, TorchScript, stubs for quantisation."""

import contextlib
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, get_default_qconfig, prepare
from torch_modules import EXACT, distance, fold, folded_names, images, run, trained

import bnfold
from bnfold.errors import UnsupportedModelError
from bnfold.torch.fx.function_transforms import all_ended, is_wrapped


def pair(inside: int = 3, outside: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside))


@dataclass
class Output:
    logits: Tensor
    hidden: tuple["Output", ...] = ()
    loss: Tensor | None = None
    later: Tensor = field(init=False)


class ReturnsDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = pair(), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Output:
        y = self.body(x).relu()
        return Output(self.last(y), (Output(y),))


def test_a_dataclass_that_torch_does_not_know() -> None:
    module = trained(ReturnsDataclass())
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["body.1"]
    assert not module._forward_hooks
    ours, theirs = (model(*images()) for model in (result.model, module))
    assert isinstance(ours, Output)
    assert torch.allclose(ours.logits, theirs.logits, rtol=EXACT)


def test_a_value_in_a_dataclass_is_an_output() -> None:
    class Seen(ReturnsDataclass):
        def forward(self, x: Tensor) -> Output:
            return Output(self.body[1](self.body[0](x)), (Output(self.body[0](x)),))

    assert not folded_names(bnfold.fold(trained(Seen()), images()))


class Detections:
    """An object of a class that torch does not know, which also holds what is no tensor, and itself."""

    def __init__(self, **found: object) -> None:
        self.found, self.kind, self.itself = found, Detections, self


class Slots:
    """The same without a `__dict__`."""

    __slots__ = ("found", "itself", "missing")

    def __init__(self, **found: object) -> None:
        self.found, self.itself = found, self


class ReturnsObject(ReturnsDataclass):
    def __init__(self, kind: type[Detections | Slots]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Detections | Slots:
        before = self.body[0](x)
        y = self.body[1](before) if len(x) > 1 or not self.skips else before
        return self.kind(boxes=[self.last(y)], inner=self.kind(features=y), count=3)

    skips = False


@pytest.mark.parametrize("kind", [Detections, Slots])
def test_an_object_that_torch_does_not_know(kind: type[Detections | Slots]) -> None:
    module = trained(ReturnsObject(kind))
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["body.1"]
    assert result.verify(device="cpu").verdict == "pass"
    ours, theirs = (model(*images()) for model in (result.model, module))
    assert isinstance(ours, kind)
    assert torch.allclose(ours.found["boxes"][0], theirs.found["boxes"][0], rtol=EXACT)


@pytest.mark.parametrize("kind", [Detections, Slots])
def test_what_is_in_an_object_is_looked_at_with_other_sizes_too(kind: type[Detections | Slots]) -> None:
    module = trained(ReturnsObject(kind))
    module.skips = True
    result = bnfold.fold(module, images())
    assert not folded_names(result)
    assert "inputs of" in result.plan.left[0].reason


class WithScripts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.last = pair(), torch.jit.script(nn.SiLU()), pair()
        self.part = torch.jit.script(trained(pair(), seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.act(self.body(x))))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_torchscript_inside_a_model() -> None:
    module = WithScripts().double().eval()
    trained(module.body)
    trained(module.last)
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["body.1", "last.1"]
    (left,) = result.plan.left
    assert "TorchScript ('part')" in left.reason
    assert distance(run(result.model, images()), run(module, images())) < EXACT
    assert isinstance(result.model.part, torch.jit.ScriptModule)
    assert all(parameter.requires_grad for parameter in result.model.part.parameters())


class Quantisable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.body, self.add, self.dequant = QuantStub(), pair(), FloatFunctional(), DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(self.add.add(x, self.body(x)))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*reduce_range.*:UserWarning")
def test_a_quantisable_model_is_a_float_model_until_it_is_prepared() -> None:
    module = trained(Quantisable())
    assert folded_names(fold(module, images())) == ["body.1"]
    module.qconfig = get_default_qconfig("x86")
    with pytest.raises(UnsupportedModelError, match="made by quantisation"):
        bnfold.fold(prepare(module), images())


class Gradients(nn.Module):
    """Returns the gradient of what its body computes, by a transform of torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = pair(), pair()

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda images: self.body(images).tanh().sum())(self.stem(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_values_of_a_transform_are_no_constants() -> None:
    """torch.export takes them for some; such a program does not even run."""
    module = trained(Gradients())
    with torch.no_grad():
        program = torch.export.export(module, images(), strict=False)
    assert any(is_wrapped(constant) for constant in program.constants.values())
    result = bnfold.fold(module, images())
    assert folded_names(result) == ["stem.1"]
    assert "torch.func" in result.plan.left[0].reason
    assert distance(run(result.model, images()), run(module, images())) < EXACT
    with pytest.raises(UnsupportedModelError):
        bnfold.fold(program)


def test_a_graph_that_fails_inside_of_a_transform_ends_it() -> None:
    with contextlib.suppress(ZeroDivisionError), all_ended():
        torch._C._functorch._vmap_increment_nesting(3, "error")
        raise ZeroDivisionError
    assert torch.rand(2).shape == (2,)  # inside of a transform that may not draw numbers
