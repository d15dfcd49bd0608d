"""Real networks: correct folds pass the sites gate in every storage type, planted faults fail it and name the layer."""

from functools import cache

import mutations
import numpy as np
import pytest
from mutations import LIGHT_NAMES, ZOO_NAMES

import bnfold
from bnfold.report import Verdict
from bnfold.verification import verify
from bnfold.verification.judging.sites import SITE_LIMIT

NAMES = ("grouped_decoder", *ZOO_NAMES, *(f"light_{name}" for name in LIGHT_NAMES))
CASES = [pytest.param(name, marks=() if name == "grouped_decoder" else pytest.mark.slow) for name in NAMES]


@cache
def network(name):
    if name == "grouped_decoder":
        return mutations.grouped_decoder()
    if name.startswith("light_"):
        return mutations.light_network(name.removeprefix("light_"))
    return mutations.zoo_network(name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_correct_folds_pass(name, dtype):
    given = network(name) if dtype == "float32" else mutations.stored_as(network(name), mutations.DTYPES[dtype])
    outcome = mutations.judge(given, bnfold.fold(given.model).model)
    assert {site.verdict for site in outcome.sites} == {Verdict.PASS}, mutations.worst(outcome)
    assert mutations.worst(outcome) < SITE_LIMIT / 2
    assert outcome.note == ""


@pytest.mark.parametrize("name", CASES)
def test_planted_faults_are_caught_and_the_layer_is_named(name):
    folded = mutations.fold(network(name))
    seen = []
    for fault, planted in mutations.plants(folded):
        outcome = mutations.judge(folded.network, planted.model)
        assert mutations.named(outcome, planted), (fault, outcome.sites[:3])
        assert mutations.worst(outcome) > 2 * SITE_LIMIT, fault
        seen.append(fault)
    assert len(seen) >= 6


def test_the_faults_are_what_they_are_called():
    given = {"gamma": [1.0, 2.1, 3.0, 4.0], "beta": [1.0, -2.0, 0.5, 0.0], "mean": [1.0] * 4, "var": [1.0] * 4}
    given = {name: np.array(values) for name, values in given.items()} | {"epsilon": np.array(0.0)}
    assert mutations.gammas_swapped(given)["gamma"].tolist() == [2.1, 1.0, 3.0, 4.0]
    assert mutations.beta_dropped(given)["beta"].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert mutations.gamma_in_float16(given)["gamma"][1] == np.float16(2.1)
    assert mutations.groups_in_wrong_order(given)["gamma"].tolist() == [1.0, 3.0, 2.1, 4.0]
    twice = mutations.folded_twice(given)
    x, scale = 0.7, given["gamma"]
    shift = given["beta"] - scale * given["mean"]
    applied = twice["gamma"] * (x - twice["mean"]) + twice["beta"]
    assert applied == pytest.approx(scale * (scale * x + shift) + shift)


@pytest.mark.slow
def test_a_wrong_layer_is_the_reason_of_the_verdict():
    folded = mutations.fold(network("resnet"))
    planted = mutations.plant_in_bias(folded)
    report = verify(folded.network.model, planted.model, device="cpu", inputs=folded.network.feeds)
    assert report.verdict is Verdict.FAIL
    (target,) = folded.targets
    assert report.reason.startswith(repr(target))
