"""Blocks of published networks whose BNs have to travel, by both exporters, with a fixed and with an open batch."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from exporters import Exporter, export
from moving_networks import NETWORKS, MovingNetwork

import bnfold

EXACT = 1e-10
TO_NOTHING = ("mixnet", "nextvit", "visformer", "gate", "shufflenet", "efficientvit")


def exported(network: MovingNetwork, exporter: Exporter, folder: Path, *, dynamic_batch: bool) -> onnx.ModelProto:
    path = folder / "model.onnx"
    export(network.build(), path, exporter=exporter, constant_folding=False, dynamic_batch=dynamic_batch)
    model = onnx.load(path)
    assert bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param) == dynamic_batch
    return model


# Exporting with dynamo takes a second or three.
CASES = [
    pytest.param(network, exporter, dynamic_batch, id=f"{network.name}-{exporter}-{batch}", marks=marks)
    for network in NETWORKS
    for exporter in Exporter
    for dynamic_batch, batch in ((False, "static"), (True, "dynamic"))
    for marks in [() if exporter is Exporter.TORCHSCRIPT or network.name == "gate" else (pytest.mark.slow,)]
]


@pytest.mark.parametrize(("network", "exporter", "dynamic_batch"), CASES)
def test_folds_exactly_and_leaves_what_it_must(
    network: MovingNetwork, exporter: Exporter, dynamic_batch: bool, tmp_path: Path
) -> None:
    model = oracle.to_double(exported(network, exporter, tmp_path, dynamic_batch=dynamic_batch))
    result = bnfold.fold(model)
    assert Counter(left.code for left in result.plan.left) == Counter(network.left)
    onnx.checker.check_model(result.model, full_check=True)
    for batch in (1, 5) if dynamic_batch else network.inputs[:1]:
        feeds = {"input_0": np.random.default_rng(batch).standard_normal((batch, *network.inputs[1:]))}
        expected, actual = oracle.evaluate(model, feeds), oracle.evaluate(result.model, feeds)
        for name in expected:
            assert oracle.relative_error(actual[name], expected[name]) < EXACT


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_second_fold_changes_nothing(network: MovingNetwork, tmp_path: Path) -> None:
    once = bnfold.fold(exported(network, Exporter.TORCHSCRIPT, tmp_path, dynamic_batch=False)).model
    again = bnfold.fold(once)
    assert not again.plan.folds
    assert again.model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_spelled_out_affines_go_into_the_weights(tmp_path: Path) -> None:
    """None of Mul, Add, Sub and Div with a constant is left of a frozen BN, an unfused one, or a LayerScale."""
    for network in NETWORKS:
        if network.name in ("frozen", "unfused"):
            folded = bnfold.fold(exported(network, Exporter.TORCHSCRIPT, tmp_path, dynamic_batch=False)).model
            left = Counter(node.op_type for node in folded.graph.node)
            assert not left & Counter({"Mul": 1, "Add": 1, "Sub": 1, "Div": 1}), (network.name, left)


def test_the_networks_that_others_leave_are_among_them() -> None:
    by_name = {network.name: network for network in NETWORKS}
    assert all(not by_name[name].left for name in TO_NOTHING)
