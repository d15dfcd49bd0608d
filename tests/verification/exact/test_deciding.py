"""What the exact gate and the other gates say together, and how the command line uses it."""

import dataclasses
import json

import exact_mutations
from exact_faults import MUTATIONS

from bnfold.report import Exact, OutputMetrics, Report, Site, Verdict, VerifyConfig
from bnfold.verification.exact.deciding import decided, failed, together

PROVED = Exact(Verdict.PASS, regions=3, equal=3, sizes=2, duration_s=0.5)
UNSURE = Exact(Verdict.INCONCLUSIVE, "'a' was not run", regions=3, equal=2)
WRONG = Exact(Verdict.FAIL, "'a' gives 3 instead of 2", regions=3, equal=2)
SITE = Site("v", ("conv",), Verdict.PASS, ratio=3.0)
DROWNED = Report(
    Verdict.INCONCLUSIVE, "noise drowns the output 'y'", sites=(SITE,), config=VerifyConfig(seed=0, samples=1)
)


def test_noise_in_the_outputs_does_not_matter_where_all_else_passes():
    report = decided(DROWNED, PROVED)
    assert report.verdict is Verdict.PASS
    assert "noise drowns" in report.reason
    assert report.timings_s["exact"] == 0.5


def test_it_does_matter_where_a_region_or_a_site_is_not_proved():
    assert decided(DROWNED, UNSURE).verdict is Verdict.INCONCLUSIVE
    lost = dataclasses.replace(SITE, verdict=Verdict.SKIPPED)
    assert decided(dataclasses.replace(DROWNED, sites=(SITE, lost)), PROVED).verdict is Verdict.INCONCLUSIVE
    assert decided(dataclasses.replace(DROWNED, sites=()), PROVED).verdict is Verdict.INCONCLUSIVE
    noted = dataclasses.replace(DROWNED, sites_note="'h' was not measured")
    assert decided(noted, PROVED).verdict is Verdict.INCONCLUSIVE


def test_tolerances_of_the_caller_decide_alone():
    config = VerifyConfig(seed=0, samples=1, rtol=1e-3)
    assert decided(dataclasses.replace(DROWNED, config=config), PROVED).verdict is Verdict.INCONCLUSIVE


def test_a_wrong_region_fails_whatever_the_others_say():
    good = dataclasses.replace(DROWNED, verdict=Verdict.PASS, reason="")
    assert decided(good, WRONG).verdict is Verdict.FAIL
    assert decided(good, WRONG).reason == WRONG.reason
    assert failed(WRONG).summary_line() == f"fail: {WRONG.reason}; 2 of 3 changed regions exactly equal"


def test_a_failure_of_the_others_stays_one():
    """A folded model that does not run has no outputs; a site or tolerances that fail are no rounding."""
    failed_ = dataclasses.replace(DROWNED, verdict=Verdict.FAIL)
    assert decided(failed_, PROVED).verdict is Verdict.FAIL
    far = OutputMetrics("y", "float32", (2,), Verdict.FAIL)
    assert decided(dataclasses.replace(failed_, outputs=(far,)), PROVED).verdict is Verdict.FAIL


def test_outputs_that_rounding_may_explain_do_not_fail_where_all_else_passes():
    far = OutputMetrics("y", "float32", (2,), Verdict.FAIL, may_be_rounding=True)
    off = dataclasses.replace(DROWNED, verdict=Verdict.FAIL, reason="'y' differs", outputs=(far,))
    report = decided(off, PROVED)
    assert (report.verdict, report.outputs[0].verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert "grown from rounding: 'y' differs" in report.reason
    assert decided(off, UNSURE).verdict is Verdict.FAIL
    wrong = dataclasses.replace(SITE, verdict=Verdict.FAIL)
    assert decided(dataclasses.replace(off, sites=(wrong,)), PROVED).verdict is Verdict.FAIL
    other = dataclasses.replace(far, may_be_rounding=False)
    assert decided(dataclasses.replace(off, outputs=(far, other)), PROVED).verdict is Verdict.FAIL


def test_two_folds_of_one_model_count_together():
    both = together(PROVED, UNSURE)
    assert (both.verdict, both.regions, both.equal, both.sizes) == (Verdict.INCONCLUSIVE, 6, 5, 2)
    assert together(PROVED, WRONG).reason == WRONG.reason


def test_a_wrong_fold_is_not_written(tmp_path, monkeypatch, capsys):
    import sys

    from bnfold.cli.main import main

    sample = exact_mutations.Path(__file__).parents[3] / "samples" / "digits_resnet.onnx"
    monkeypatch.setattr(sys, "argv", ["bnfold", "fold", str(sample), "-o", str(tmp_path / "out.onnx"), "--json"])
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "channels reversed at a map")
    code = 0
    with exact_mutations.broken(mutation):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    report = json.loads(capsys.readouterr().out)
    assert code == 1
    assert report["verdict"] == "fail"
    assert report["exact"]["unproved"][0]["wrong"]
    assert report["outputs"] == []
    assert list(tmp_path.iterdir()) == []
