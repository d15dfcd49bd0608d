"""The zoo: real networks with BatchNorm, made small, with the parameters and statistics of a trained one.

`python tests/zoo.py` prints, for each network and each way to export it, how many BatchNorms the file has and how many
of them `bnfold.fold` leaves, and which exporters fail on which network.
"""

import copy
import fcntl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import architectures
import numpy as np
import onnx
import torch
from architectures import Built
from exporters import DYNAMO, TORCHSCRIPT, Variant, export, export_dynamo, export_variant, quiet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["ZOO", "Variant", "ZooModel", "batch_norms", "export", "export_all", "exported", "reference_outputs"]

SEED = 20240531


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One network.

    Attributes:
        network: Builds it, in `architectures`.
        failures: The variants that the exporter cannot write, with a part of its own message or of the checker's.
        rounded: The variants, beyond `exporters.MERGED`, in which the exporter rounds results of its own to float32
            and stores them, so that the file is not exactly the module.
    """

    network: Callable[[], Built]
    failures: Mapping[Variant, str] = field(default_factory=dict)
    rounded: tuple[Variant, ...] = ()

    @property
    def name(self) -> str:
        return self.network.__name__

    def build(self) -> Built:
        """The module in eval mode, returning a tuple of tensors, and its inputs; the same at every call."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
            torch.manual_seed(SEED)
            network, inputs = self.network()
            module = FloatOutputs(network).eval()
            randomise(module)
            settle_statistics(module, inputs)
        return module, inputs


ZOO = (
    ZooModel(architectures.resnet),
    ZooModel(architectures.regnet),
    ZooModel(architectures.mobilenet_v1),
    ZooModel(architectures.mobilenet_v2),
    ZooModel(architectures.efficientnet),
    ZooModel(architectures.levit),
    ZooModel(architectures.mobilevit),
    ZooModel(architectures.mobilevitv2, failures=dict.fromkeys(TORCHSCRIPT, "Occurred when translating col2im")),
    ZooModel(architectures.segformer),
    ZooModel(architectures.swiftformer),
    ZooModel(architectures.rt_detr_resnet),
    ZooModel(architectures.hgnet_v2),
    # It multiplies gamma by 1/sqrt(var + eps) while folding constants.
    ZooModel(architectures.detr_backbone, rounded=(Variant.TORCHSCRIPT_FOLDED,)),
    ZooModel(architectures.vitpose),
    ZooModel(architectures.data2vec_vision),
    ZooModel(architectures.dpt),
    ZooModel(architectures.vitmatte),
    ZooModel(architectures.upernet),
    ZooModel(architectures.cvt),
    ZooModel(architectures.textnet),
    ZooModel(architectures.efficientloftr),
    ZooModel(architectures.pp_lcnet),
    ZooModel(architectures.pp_lcnet_v3),
    ZooModel(architectures.uvdoc),
    ZooModel(architectures.glpn),
    ZooModel(architectures.bit),
    ZooModel(architectures.convnextv2),
    ZooModel(architectures.emu3_temporal_block),
    # Its fusion picks samples by the value of a flag.
    ZooModel(architectures.clap_audio, failures=dict.fromkeys(DYNAMO, "GuardOnDataDependentSymNode")),
    ZooModel(architectures.wav2vec2_conformer),
    ZooModel(architectures.hubert),
    ZooModel(architectures.speecht5_postnet),
    ZooModel(architectures.fastspeech2_convolution),
    ZooModel(architectures.granite_speech),
    # Tracing turns the sinusoids' arguments into a stored constant.
    ZooModel(architectures.parakeet, rounded=(Variant.TORCHSCRIPT_RAW, Variant.TORCHSCRIPT_FOLDED)),
    # Both models' unfold loses a transpose: the file adds (2, 7, 3, 32) to (7, 32).
    ZooModel(architectures.patchtst, failures=dict.fromkeys(TORCHSCRIPT, "Incompatible dimensions")),
    ZooModel(architectures.patchtsmixer, failures=dict.fromkeys(TORCHSCRIPT, "Incompatible dimensions")),
    ZooModel(architectures.superglue_keypoints),
    ZooModel(architectures.sam3_lite_text),
)


class FloatOutputs(nn.Module):
    """Flattens whatever a network returns into a tuple of its distinct floating-point tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for tensor in _tensors(self.network(*inputs)):
            if tensor.is_floating_point() and not any(tensor is other for other in (*outputs, *inputs)):
                outputs.append(tensor)
        return tuple(outputs)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def randomise(module: nn.Module) -> None:
    """Gives every parameter a value that a trained network could have.

    Weights keep the variance of their input; gammas have both signs, and about one in ten is exactly zero; other
    norms' weights are near one. `eps` becomes the float32 number that an ONNX attribute stores, so that a float64
    run of the module and of its file compute the same thing.
    """
    for child in module.modules():
        if isinstance(getattr(child, "eps", None), float):
            child.eps = float(np.float32(child.eps))
        for name, parameter in child.named_parameters(recurse=False):
            if is_batch_norm(child) and name == "weight":
                parameter.copy_(_gammas(parameter.shape))
            elif parameter.ndim >= 2:
                parameter.normal_(0.0, (parameter.numel() / parameter.shape[0]) ** -0.5)
            elif "bias" in name:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        if is_frozen_batch_norm(child):
            child.weight.copy_(_gammas(child.weight.shape))
            child.bias.normal_(0.0, 0.2)


def _gammas(shape: torch.Size) -> Tensor:
    gammas = (0.5 + torch.rand(shape)) * torch.where(torch.rand(shape) < 0.3, -1.0, 1.0)
    return torch.where(torch.rand(shape) < 0.1, torch.zeros(()), gammas)


def is_batch_norm(module: nn.Module) -> bool:
    """A BatchNorm that PyTorch trains."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """A BatchNorm whose parameters are buffers; every library has its own class for it."""
    return "FrozenBatchNorm" in type(module).__name__


def settle_statistics(module: nn.Module, inputs: tuple[Tensor, ...], passes: int = 3) -> None:
    """Sets all running statistics from a few forward passes over random inputs like `inputs`."""
    hooks = []
    for child in module.modules():
        if is_batch_norm(child):
            child.momentum = None  # a plain average over the passes
            child.train()
        elif is_frozen_batch_norm(child):
            hooks.append(child.register_forward_pre_hook(_freeze_batch_statistics))
    for _ in range(passes):
        # Away from zero mean, as images are.
        module(*(torch.randn_like(x) + 0.5 if x.is_floating_point() else x for x in inputs))
    for hook in hooks:
        hook.remove()
    for child in module.modules():
        if is_batch_norm(child):
            child.momentum = 0.1
    module.eval()


def _freeze_batch_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    (x,) = inputs
    module.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    module.running_var.copy_(x.var(dim=(0, 2, 3)))


class _AsInTheFile(TorchFunctionMode):
    """Makes a float64 run of a module mean what its file means in float64 (`oracle.to_double`).

    The 1/6 of hard sigmoid and hard swish is the float32 that ONNX stores (HardSigmoid's attribute `alpha`), and a
    module's own casts to float32 are casts to float64.
    """

    def __torch_function__(
        self, function: Callable[..., Tensor], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Tensor:
        name, sixth = getattr(function, "__name__", ""), float(np.float32(1 / 6))
        if name == "hardswish":
            return args[0] * (sixth * args[0] + 0.5).clamp(0, 1)
        if name == "hardsigmoid":
            return (sixth * args[0] + 0.5).clamp(0, 1)
        if name == "float":
            return args[0].double()
        if (kwargs or {}).get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return function(*args, **(kwargs or {}))


def reference_outputs(built: Built) -> list[np.ndarray]:
    """What PyTorch computes in float64."""
    module, inputs = built
    double = copy.deepcopy(module).double()
    with torch.no_grad(), _AsInTheFile(), quiet():
        outputs = double(*(x.double() if x.is_floating_point() else x for x in inputs))
    return [y.numpy() for y in outputs]


def export_all(model: ZooModel, built: Built, folder: Path) -> dict[Variant, Path]:
    """Writes every variant that is not known to fail; see `exported`."""
    return {variant: exported(model, built, folder, variant) for variant in Variant if variant not in model.failures}


def exported(model: ZooModel, built: Built, folder: Path, variant: Variant) -> Path:
    """Writes one variant, unless the folder has it already; of several processes one does."""
    paths = {variant: folder / f"{model.name}-{variant.name.lower()}.onnx" for variant in Variant}
    with (folder / f"{model.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not paths[variant].exists()
        if missing and variant in DYNAMO:
            export_dynamo(built, paths[Variant.DYNAMO_RAW], paths[Variant.DYNAMO_OPTIMIZED])
        elif missing:
            export_variant(built, paths[variant], variant)
    return paths[variant]


def batch_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The BatchNormalization nodes of a model, its subgraphs and its functions."""
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    return [node for body in bodies for node in walk(body) if node.op_type == "BatchNormalization"]


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from walk(graph.node)


def main() -> None:
    import bnfold

    codes: Counter[str] = Counter()
    print(f"| network | {' | '.join(Variant)} |\n|---|{'---|' * len(Variant)}")
    for model in ZOO:
        cells = dict.fromkeys(Variant, "–")
        with tempfile.TemporaryDirectory() as folder:
            for variant, path in export_all(model, model.build(), Path(folder)).items():
                plan = bnfold.inspect(path)
                cells[variant] = f"{plan.batch_norms} → {plan.batch_norms_left}"
                codes.update(left.code for left in plan.left)
        print(f"| {model.name} | {' | '.join(cells.values())} |", flush=True)
    print("\nNot exported (–):\n")
    for model in ZOO:
        for variant, reason in model.failures.items():
            print(f"- {model.name}, {variant}: {reason}")
    print("\nLeft, by reason:", ", ".join(f"{code} {count}" for code, count in codes.most_common()))


if __name__ == "__main__":
    main()
