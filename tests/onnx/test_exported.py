"""Files that the exporters of other frameworks wrote: what stays of their batch norms, and that the rest is exact.

The files and the scripts that wrote them are in tests/onnx/exported.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxscript import optimizer, rewriter
from oracle import evaluate, relative_error, to_double
from unfolded import unfolded

import bnfold

Peer = Callable[[Path, Path], onnx.ModelProto]

FILES = Path(__file__).with_name("exported")

LEFT: dict[str, tuple[int, tuple[str, ...]]] = {
    "jax_before": (1, ("other_consumers",)),
    "jax_dense": (0, ()),
    "jax_plain": (0, ()),
    "keras_dense": (1, ()),
    "keras_densenet": (4, ("other_consumers", "other_consumers")),
    "keras_dilated": (0, ()),
    "keras_efficientnet": (0, ()),
    "keras_mobilenet": (0, ("other_consumers",)),
    "keras_resnet_v2": (4, ("other_consumers", "other_consumers")),
    "keras_signal": (0, ()),
    "keras_time_distributed": (0, ()),
    "keras_unet": (1, ()),
    "keras_volume": (0, ()),
    "paddle_detection": (0, ()),
    "paddle_lcnet": (0, ()),
    "paddle_lcnet_v3": (0, ()),
    "paddle_pyramid": (0, ()),
    "paddle_recognition": (3, ("varies",)),
    "sklearn_pipeline": (0, ()),
}
"""How many nodes stay that are a batch norm in some spelling, and why. Some are none: what a LayerNormalization ends in
(one in keras_dense, two in paddle_recognition), and the slopes of a PReLU (one in keras_unet)."""


def by_onnxruntime(path: Path, folder: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def by_onnxscript(path: Path, _: Path) -> onnx.ModelProto:
    return rewriter.rewrite(optimizer.optimize(onnx.load(path)))


def test_every_file_is_here() -> None:
    assert {path.stem for path in FILES.glob("*.onnx")} == {*LEFT}
    assert {name.split("_")[0] for name in LEFT} == {path.stem.removeprefix("write_") for path in FILES.glob("*.py")}


@pytest.mark.parametrize("name", LEFT)
def test_what_stays_is_explained(name: str) -> None:
    result = bnfold.fold(FILES / f"{name}.onnx")
    assert (unfolded(result.model), tuple(str(entry.code) for entry in result.plan.left)) == LEFT[name]


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("peer", [by_onnxruntime, by_onnxscript])
def test_no_peer_leaves_less(name: str, peer: Peer, tmp_path: Path) -> None:
    """Nor of the folded file: some take the end of a LayerNormalization into an operator of theirs."""
    original, folded = FILES / f"{name}.onnx", tmp_path / "folded.onnx"
    bnfold.fold(original).save(folded)
    left = unfolded(peer(folded, tmp_path))
    assert left <= unfolded(peer(original, tmp_path))
    assert left <= unfolded(onnx.load(folded))


@pytest.mark.parametrize("name", [name for name in LEFT if name != "sklearn_pipeline"])
def test_the_fold_is_exact(name: str) -> None:
    original = to_double(onnx.load(FILES / f"{name}.onnx"))
    folded = bnfold.fold(original).model
    rng = np.random.default_rng(0)
    shapes = {given.name: given.type.tensor_type.shape.dim for given in original.graph.input}
    # Positive: the variance of keras.layers.Normalization is an input.
    feeds = {name: rng.uniform(0.5, 1.5, [dim.dim_value or 2 for dim in dims]) for name, dims in shapes.items()}
    before, after = evaluate(original, feeds), evaluate(folded, feeds)
    assert [*before] == [*after]
    assert max(relative_error(after[output], value) for output, value in before.items()) < 1e-10
