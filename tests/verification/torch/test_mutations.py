"""Correct folds of PyTorch networks pass in every dtype; planted faults are caught, and the layer is named."""

from functools import cache

import pytest
import torch
import torch_mutations as mutations
import torch_networks as networks

import bnfold
from bnfold.report import Verdict
from bnfold.verification.judging.sites import SITE_LIMIT


@cache
def original(name, dtype="float32"):
    return networks.network(name, networks.DTYPES[dtype])


def verify(given, folded, **options):
    return bnfold.verify(given.module, folded, example_inputs=given.inputs, device="cpu", **options)


@pytest.mark.parametrize("dtype", networks.DTYPES)
@pytest.mark.parametrize("name", networks.NAMES)
def test_correct_folds_pass(name, dtype):
    given = original(name, dtype)
    report = verify(given, networks.folded(given), samples=2)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert {site.verdict for site in report.sites} == {Verdict.PASS}
    assert len(report.sites) >= len(given.pairs)
    assert report.sites_note == ""
    assert max(site.ratio for site in report.sites) < SITE_LIMIT / 2
    assert report.config.oracle == "float64"
    for output in report.outputs:
        assert 0.05 < output.noise_ratio < 2, "0 would mean that one model ran twice"
        assert 0.02 < output.float64_ratio < 1.5


@pytest.mark.parametrize("fault", networks.FAULTS)
@pytest.mark.parametrize("name", networks.NAMES)
def test_faults_in_a_batch_norm_are_caught_and_the_layer_is_named(name, fault):
    given = original(name)
    at = len(given.pairs) // 2
    report = verify(given, networks.folded(given, networks.FAULTS[fault], at), samples=1)
    assert_named(report, given.pairs[at][0])


@pytest.mark.parametrize("plant", [networks.plant_in_bias, networks.plant_in_weight])
@pytest.mark.parametrize("name", networks.NAMES)
def test_faults_in_a_layer_are_caught_and_the_layer_is_named(name, plant):
    given = original(name)
    layer = given.pairs[-1][0]
    wrong = networks.folded(given)
    plant(wrong, layer)
    assert_named(verify(given, wrong, samples=1), layer)


def assert_named(report, layer):
    assert mutations.names_the_layer(report, layer), report.summary_line()


def test_a_small_fault_is_seen_by_the_sites_alone():
    """0.1 % in one bias of a deep network: what the outputs cannot see is why there are two gates."""
    given = original("residual")
    wrong = networks.folded(given)
    with torch.no_grad():
        wrong.blocks[0].conv1.bias[3] *= 1.001
    report = verify(given, wrong, samples=1)
    assert report.verdict is Verdict.FAIL
    assert "blocks.0.conv1" in report.reason
    assert next(site for site in report.sites if site.verdict is Verdict.FAIL).channel == 3


@pytest.mark.parametrize("name", networks.NAMES)
def test_exported_programs_are_compared_whatever_their_values_are_called(name):
    """Here a convolution keeps its name when the batch norm behind it goes, as with other tools."""
    given = original(name)
    program = torch.export.export(given.module, given.inputs)
    right = torch.export.export(networks.folded(given), given.inputs)
    report = bnfold.verify(program, right, device="cpu", samples=1)
    assert report.verdict is Verdict.PASS, report.summary_line()
    assert len(report.sites) >= len(given.pairs)
    assert {site.verdict for site in report.sites} == {Verdict.PASS}
    wrong = torch.export.export(networks.folded(given, networks.gammas_swapped), given.inputs)
    assert_named(bnfold.verify(program, wrong, device="cpu", samples=1), given.pairs[0][0])


def test_a_batch_norm_that_went_without_a_trace_is_caught():
    given = original("residual")
    wrong = networks.folded(given)
    layer = given.module.get_submodule("blocks.1.conv2")
    wrong.blocks[1].conv2.weight = layer.weight
    wrong.blocks[1].conv2.bias = layer.bias
    report = verify(given, wrong, samples=1)
    assert report.verdict is Verdict.FAIL
    assert "blocks.1.conv2" in report.reason


def test_other_layers_that_differ_leave_the_outputs_to_decide():
    given = original("residual")
    wrong = networks.folded(given)
    with torch.no_grad():
        wrong.head.weight[0] *= 2
    report = verify(given, wrong, samples=1)
    assert report.sites == ()
    assert "the outputs decide: the parameters of 'linear' differ" in report.sites_note
    assert report.verdict is Verdict.FAIL
    assert report.reason.startswith("output 'logits' differs by")


# --- real networks ---


@pytest.mark.slow
@pytest.mark.parametrize("dtype", networks.DTYPES)
@pytest.mark.parametrize("name", mutations.ZOO_NAMES)
def test_correct_folds_of_real_networks_pass(name, dtype):
    if name in mutations.FLOAT32_ONLY and dtype != "float32":
        pytest.skip("this network computes in float32 whatever its weights are")
    subject = mutations.real(name).in_dtype(networks.DTYPES[dtype])
    result = bnfold.fold(subject.module, subject.inputs)
    report = subject.verify(result.model)
    assert {site.verdict for site in report.sites} == {Verdict.PASS}, report.summary_line()
    assert len(report.sites) >= result.plan.batch_norms_folded // 2
    # With eight bits of mantissa, rounding alone may be a tenth of what a deep network gives.
    expected = {Verdict.PASS, Verdict.INCONCLUSIVE} if dtype == "bfloat16" else {Verdict.PASS}
    assert report.verdict in expected, report.summary_line()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "levit"])
def test_faults_in_real_networks_are_caught_and_the_layer_is_named(name):
    subject = mutations.real(name)
    for fault, wrong in subject.faults():
        report = subject.verify(wrong)
        assert mutations.names_the_layer(report, subject.layer), (fault, report.summary_line())
