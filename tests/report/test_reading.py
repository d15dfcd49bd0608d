"""A report that was written is the same report when it is read; anything else is refused."""

import json

import pytest
import reports

from bnfold.report.reading import report_of


@pytest.mark.parametrize("name", [name for name in reports.ALL if name != "failed"])
def test_what_was_written_is_read(name):
    report = reports.ALL[name]
    assert report_of(json.loads(report.to_json())) == report


def test_a_number_that_was_not_finite_is_none():
    read = report_of(json.loads(reports.FAILED.to_json()))
    assert [site.ratio for site in read.sites] == [None, 5.98e4, 0.0, None]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "bnfold.report/2"},
        {"verdict": "splendid"},
        {"verdict": None},
        {"folds": 3},
        {"folds": [{}]},
        {"sites": "none"},
        {"reason": 1},
        {"timings": [1.0]},
        {"input": []},
    ],
)
def test_what_is_no_report_is_refused(change):
    document = {**json.loads(reports.FOLDED.to_json()), **change}
    with pytest.raises(ValueError, match=r"."):
        report_of(document)
    del document["verdict"]
    with pytest.raises(ValueError, match=r"."):
        report_of(document)
    with pytest.raises(ValueError, match="no document"):
        report_of([])
