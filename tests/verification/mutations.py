"""Faults planted in folded files of real networks, and what the verification makes of them.

`python tests/verification/mutations.py` writes MUTATIONS.md beside this file (a few minutes on two cores).

Most faults are planted by folding an original in which one BatchNorm has wrong parameters: the file that comes out is
what a folding tool with that fault would write, and is compared with the true original.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    import conftest  # noqa: F401 - it finds tests/support

import light_models

import bnfold
from bnfold.onnx.file.load import from_proto
from bnfold.report import Verdict
from bnfold.verification.judging.sites import SITE_LIMIT, SitesOutcome
from bnfold.verification.onnx.sites.measure import measure_sites
from bnfold.verification.runtime.devices import cpu_device

Feeds = Mapping[str, np.ndarray]

ZOO_NAMES = (
    *("resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet", "mobilevit", "hgnet_v2", "rt_detr_resnet"),
    *("data2vec_vision", "levit", "uvdoc", "parakeet"),
)
LIGHT_NAMES = ("resnet50", "densenet121", "shufflenet", "inception_v2")
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Network:
    """An original, with inputs for it."""

    name: str
    model: onnx.ModelProto
    feeds: Feeds


@dataclass(frozen=True)
class Planted:
    """A folded file with a fault.

    Attributes:
        model: The folded model.
        nodes: The nodes that hold the fault; a site that leads through one of them must fail, and no other.
    """

    model: onnx.ModelProto
    nodes: frozenset[str]


@dataclass(frozen=True)
class Folded:
    """A correct fold of a network, and one BatchNorm in the middle of it.

    Attributes:
        network: The original.
        result: Its fold.
        batch_norm: Name of a BatchNormalization that was folded.
        targets: The nodes that took it.
    """

    network: Network
    result: bnfold.FoldResult[onnx.ModelProto]
    batch_norm: str
    targets: frozenset[str]


def networks() -> Iterator[Network]:
    """The originals: of the zoo, of the onnx package, and one with a grouped transposed convolution."""
    yield grouped_decoder()
    for name in ZOO_NAMES:
        yield zoo_network(name)
    for name in LIGHT_NAMES:
        yield light_network(name)


def zoo_network(name: str) -> Network:
    """A network of the zoo as the TorchScript exporter writes it, with its BatchNorms."""
    import zoo  # transformers take ten seconds to import
    from exporters import Variant

    entry = next(entry for entry in zoo.ZOO if entry.name == name)
    built = entry.build()
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(zoo.exported(entry, built, Path(folder), Variant.TORCHSCRIPT_RAW))
    arrays = {f"input_{index}": value.numpy() for index, value in enumerate(built[1])}
    return Network(name, model, {value.name: arrays[value.name] for value in model.graph.input})


def light_network(name: str) -> Network:
    """A classification network of the onnx package, with random weights."""
    model = light_models.random_weights(light_models.load(name), seed=0)
    return Network(f"light_{name}", model, light_models.random_image(model, 1))


def grouped_decoder() -> Network:
    """ConvTranspose with two groups, BatchNormalization, Relu, twice."""
    rng = np.random.default_rng(5)
    tensors, nodes, value = [], [], "x"
    for index in range(2):
        arrays = {
            "weight": rng.standard_normal((16, 8, 4, 4)) * 0.12,
            "gamma": rng.uniform(0.5, 1.5, 16) * rng.choice([-1, 1], 16),
            "beta": rng.standard_normal(16) * 0.3,
            "mean": rng.standard_normal(16) * 0.3,
            "var": rng.uniform(0.3, 2, 16),
        }
        names = {key: f"{key}{index}" for key in arrays}
        tensors += [numpy_helper.from_array(array.astype(np.float32), names[key]) for key, array in arrays.items()]
        up, normed, out = f"up{index}", f"bn{index}", f"relu{index}"
        strides = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}
        nodes += [
            helper.make_node("ConvTranspose", [value, names["weight"]], [up], up, **strides),
            helper.make_node(
                "BatchNormalization", [up, *(names[key] for key in arrays if key != "weight")], [normed], normed
            ),
            helper.make_node("Relu", [normed], [out], out),
        ]
        value = out
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 16, 32, 32])
    model = helper.make_model(
        helper.make_graph(nodes, "decoder", [x], [y], tensors),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    return Network("grouped_decoder", model, {"x": rng.standard_normal((1, 16, 8, 8)).astype(np.float32)})


def fold(network: Network) -> Folded:
    """The correct fold, and the BatchNorm in the middle of those that went into one node."""
    result = bnfold.fold(network.model)
    nodes = {node.name: node for node in network.model.graph.node}
    with_bias = {node.name for node in result.model.graph.node if len(node.input) == 3}
    candidates = [
        entry
        for entry in result.plan.folds
        if len(entry.nodes) == 1
        and entry.direction == "backward"
        and with_bias.issuperset(entry.targets)
        and entry.nodes[0] in nodes
        and nodes[entry.nodes[0]].op_type == "BatchNormalization"
        and len(parameters(network.model, nodes[entry.nodes[0]])["gamma"]) > 2
    ]
    entry = candidates[len(candidates) // 2]
    return Folded(network, result, entry.nodes[0], frozenset(entry.targets))


def judge(network: Network, folded: onnx.ModelProto) -> SitesOutcome:
    """What the sites gate says on the CPU."""
    return measure_sites(from_proto(network.model), from_proto(folded), cpu_device(), network.feeds)


# --- faults in the parameters of one BatchNorm ---

Parameters = dict[str, np.ndarray]
_SLOTS = ("gamma", "beta", "mean", "var")


def parameters(model: onnx.ModelProto, node: onnx.NodeProto) -> Parameters:
    """The four vectors of a BatchNormalization in float64, and its epsilon."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    origin = {other.output[0]: other.input[0] for other in model.graph.node if other.op_type == "Identity"}
    found = {}
    for slot, name in zip(_SLOTS, node.input[1:], strict=True):
        source = name
        while source not in stored:
            source = origin[source]
        found[slot] = numpy_helper.to_array(stored[source]).astype(np.float64)
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    return {**found, "epsilon": np.array(epsilon)}


def epsilon_times_ten(given: Parameters) -> Parameters:
    return {**given, "epsilon": given["epsilon"] * 10}


def beta_dropped(given: Parameters) -> Parameters:
    beta = given["beta"].copy()
    beta[np.argmax(np.abs(beta))] = 0
    return {**given, "beta": beta}


def gammas_swapped(given: Parameters) -> Parameters:
    """The first two that differ."""
    gamma = given["gamma"].copy()
    other = int(np.argmax(gamma != gamma[0]))
    gamma[[0, other]] = gamma[[other, 0]]
    return {**given, "gamma": gamma}


def gamma_in_float16(given: Parameters) -> Parameters:
    return {**given, "gamma": given["gamma"].astype(np.float16).astype(np.float64)}


def folded_twice(given: Parameters) -> Parameters:
    """scale · (scale · x + shift) + shift."""
    scale = given["gamma"] / np.sqrt(given["var"] + given["epsilon"])
    shift = given["beta"] - scale * given["mean"]
    gamma = given["gamma"] * scale
    beta = scale * shift + shift + scale * scale * given["mean"]
    return {**given, "gamma": gamma, "beta": beta}


def groups_in_wrong_order(given: Parameters) -> Parameters:
    """The scales of the output channels as if the groups were the inner dimension."""
    return {**given, "gamma": given["gamma"].reshape(2, -1).T.reshape(-1)}


PARAMETER_FAULTS: Mapping[str, Callable[[Parameters], Parameters]] = {
    "eps × 10": epsilon_times_ten,
    "one beta dropped": beta_dropped,
    "two gammas swapped": gammas_swapped,
    "gamma in fp16": gamma_in_float16,
    "folded twice": folded_twice,
}


def plant_in_parameters(folded: Folded, fault: Callable[[Parameters], Parameters]) -> Planted:
    """The fold of an original with one wrong BatchNorm."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(folded.network.model)
    node = next(node for node in wrong.graph.node if node.name == folded.batch_norm)
    faulty = fault(parameters(wrong, node))
    for index, slot in enumerate(_SLOTS, start=1):
        name = f"{folded.batch_norm}/{slot}/faulty"
        wrong.graph.initializer.append(numpy_helper.from_array(faulty[slot].astype(np.float32), name))
        if wrong.ir_version < 4:
            wrong.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, faulty[slot].shape))
        node.input[index] = name
    epsilons = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
    for attribute in epsilons:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("epsilon", float(faulty["epsilon"])))
    result = bnfold.fold(wrong)
    return Planted(result.model, folded.targets)


# --- faults in the folded file ---


def plant_in_bias(folded: Folded) -> Planted:
    """The largest bias of the node that took the BatchNorm, off by 0.1 %."""
    model, node = _copy_and_target(folded)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[np.argmax(np.abs(values))] *= 1.001
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return Planted(model, folded.targets)


def plant_at_border(folded: Folded) -> Planted | None:
    """A shift of 0.1 before a convolution, worked into its bias although the convolution pads with zeros.

    Conv(x + 0.1) = Conv(x) + 0.1 · ΣW, except at the border. None where no folded convolution pads.
    """
    model = onnx.ModelProto()
    model.CopyFrom(folded.result.model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    ours = {target for entry in folded.result.plan.folds for target in entry.targets}
    padded = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name in ours and len(node.input) == 3 and any(_pads(node))
    ]
    if not padded:
        return None
    node = padded[len(padded) // 2]
    weight, bias = (numpy_helper.to_array(stored[name]).astype(np.float64) for name in node.input[1:3])
    sums = weight.reshape(weight.shape[0], -1).sum(axis=1)
    stored[node.input[2]].CopyFrom(numpy_helper.from_array((bias - 0.1 * sums).astype(np.float32), node.input[2]))
    name = f"{node.name}/shifted"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), f"{name}/by"))
    position = [other.name for other in model.graph.node].index(node.name)
    model.graph.node.insert(position, helper.make_node("Add", [node.input[0], f"{name}/by"], [name], name))
    model.graph.node[position + 1].input[0] = name
    return Planted(model, frozenset({node.name}))


def _pads(node: onnx.NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "pads"), [])


def _copy_and_target(folded: Folded) -> tuple[onnx.ModelProto, onnx.NodeProto]:
    model = onnx.ModelProto()
    model.CopyFrom(folded.result.model)
    return model, next(node for node in model.graph.node if node.name in folded.targets)


def plants(folded: Folded) -> Iterator[tuple[str, Planted]]:
    """Every fault that this network can have."""
    for name, fault in PARAMETER_FAULTS.items():
        yield name, plant_in_parameters(folded, fault)
    yield "bias off by 0.1 %", plant_in_bias(folded)
    if folded.network.name == "grouped_decoder":
        yield "groups in wrong order", plant_in_parameters(folded, groups_in_wrong_order)
    border = plant_at_border(folded)
    if border is not None:
        yield "shift lost at a padded border", border


def named(outcome: SitesOutcome, planted: Planted) -> bool:
    """Whether the sites that fail are those of the planted fault, and no others."""
    failed = [site for site in outcome.sites if site.verdict is Verdict.FAIL]
    return bool(failed) and all(planted.nodes & set(site.nodes) for site in failed)


# --- other storage types ---


def stored_as(network: Network, data_type: int) -> Network:
    """The network with all float32 tensors, inputs and outputs in another type."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    tensors = list(model.graph.initializer)
    tensors += [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = data_type
    del model.graph.value_info[:]
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = data_type
    feeds = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in network.feeds.items()}
    return Network(network.name, model, feeds)


def worst(outcome: SitesOutcome) -> float:
    """The largest ratio of a site."""
    return max((site.ratio for site in outcome.sites if site.ratio is not None), default=float("nan"))


# --- the table ---

COLUMNS = (*PARAMETER_FAULTS, "bias off by 0.1 %", "groups in wrong order", "shift lost at a padded border")


def row(network: Network) -> list[str]:
    """One line of the table: the ratios of correct folds by type, then those of the faults."""
    cells = [network.name]
    for data_type in DTYPES.values():
        other = network if data_type == TensorProto.FLOAT else stored_as(network, data_type)
        try:
            outcome = judge(other, bnfold.fold(other.model).model)
        except bnfold.ModelLoadError:  # the opset does not know the type
            outcome = SitesOutcome()
        good = outcome.sites and not any(site.verdict is Verdict.FAIL for site in outcome.sites)
        cells.append(f"{worst(outcome):.1f}{'' if good else ' **fails**'}" if outcome.sites else "–")
    folded = fold(network)
    found = {}
    for name, planted in plants(folded):
        outcome = judge(network, planted.model)
        found[name] = f"{worst(outcome):.2g}{'' if named(outcome, planted) else ' **not named**'}"
    return [*cells, *(found.get(name, "–") for name in COLUMNS)]


def main() -> None:
    header = ["network", *(f"correct, {name}" for name in DTYPES), *COLUMNS]
    lines = [
        "# What the sites gate makes of correct folds and of planted faults",
        "",
        "The largest difference of any site, in units of its rounding bound, on onnxruntime's CPU provider (version in",
        f"`tests/constraints.txt`). A site fails above {SITE_LIMIT:g}. Correct folds are listed for each storage type;",
        "– where the runtime has no kernels for the type, or the network has nowhere to plant the fault. Every fault",
        "is planted in one BatchNorm in the middle of the network, and the sites that fail are those of its layer and",
        "no others, or the cell says so. Written by `python tests/verification/mutations.py`.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
    ]
    for network in networks():
        lines.append(f"| {' | '.join(row(network))} |")
        print(lines[-1], flush=True)
    (Path(__file__).parent / "MUTATIONS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
