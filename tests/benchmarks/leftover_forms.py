"""Latency of the three forms of a BatchNorm that cannot be folded, on whatever device onnxruntime has here.

    python tests/benchmarks/leftover_forms.py [--device cpu|cuda] [--rounds 30]

Each case is a chain Relu -> form -> Relu -> 3x3 max pooling, where nothing can be folded: once with
BatchNormalization as it was, once as a 1x1 depthwise Conv, once as Mul and Add. bnfold writes the files; onnxruntime
runs them with all optimisations, as deployed. The forms take turns, and medians are compared; below 1 is faster than
BatchNormalization.
"""

import argparse
import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import bnfold

SHAPES = [(1, 64, 112, 112), (1, 256, 56, 56), (1, 512, 14, 14), (8, 64, 112, 112), (8, 512, 14, 14)]
FORMS = ("keep", "conv", "mul-add")
LAYERS = 6


def chain(shape: tuple[int, ...]) -> onnx.ModelProto:
    """A model in which every BN is read through a Relu and fed by one."""
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    for layer in range(LAYERS):
        names = [f"{part}{layer}" for part in ("gamma", "beta", "mean", "var")]
        tensors += [numpy_helper.from_array(rng.uniform(0.5, 1.5, shape[1]).astype(np.float32), name) for name in names]
        nodes.append(helper.make_node("Relu", [value], [f"a{layer}"]))
        nodes.append(helper.make_node("BatchNormalization", [f"a{layer}", *names], [f"b{layer}"], name=f"bn{layer}"))
        nodes.append(helper.make_node("Relu", [f"b{layer}"], [f"c{layer}"]))
        nodes.append(helper.make_node("MaxPool", [f"c{layer}"], [f"d{layer}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        value = f"d{layer}"
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    target = helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "chain", [source], [target], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def session(model: onnx.ModelProto, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Sessions that take turns would otherwise spin against each other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    if opened.get_providers()[0] != provider:
        raise SystemExit(f"{provider} cannot be used here")
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[arguments.device]
    if arguments.device == "cuda":
        onnxruntime.preload_dlls()
    print(f"{provider}, onnxruntime {onnxruntime.__version__}, median of {arguments.rounds}, {LAYERS} layers")
    print("| shape | BatchNormalization | conv / BN | mul-add / BN |")
    print("|---|---|---|---|")
    for shape in SHAPES:
        model = chain(shape)
        sessions = {form: session(bnfold.fold(model, leftover=form).model, provider) for form in FORMS}
        feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        durations_s: dict[str, list[float]] = {form: [] for form in FORMS}
        for round_number in range(arguments.rounds + 3):
            for form, opened in sessions.items():
                start = time.perf_counter()
                opened.run(None, feed)
                if round_number >= 3:
                    durations_s[form].append(time.perf_counter() - start)
        median_s = {form: statistics.median(values) for form, values in durations_s.items()}
        ratios = " | ".join(f"{median_s[form] / median_s['keep']:.2f}" for form in FORMS[1:])
        print(f"| {'x'.join(map(str, shape))} | {median_s['keep'] * 1e3:.2f} ms | {ratios} |")


if __name__ == "__main__":
    main()
