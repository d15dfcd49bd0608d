"""Every rule of the table and every merge broken on purpose: the exact gate alone catches each, at bit equality."""

from collections import Counter
from functools import cache

import exact_mutations
import numpy as np
import pytest
from exact_mutations import MUTATIONS, Outcome, Subject
from exact_networks import networks

from bnfold.report import Verdict
from bnfold.verification.exact.onnx.gate import check_onnx

# A fault may leave a model that divides by zero, or overflows.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*zip.*:DeprecationWarning"),
]

QUICK = {
    "lift: the border of a padded map forgotten": "padded border",
    "transpose: the inverse backward": "Transpose",
    "merge: off by one tap": "RepVGG",
    "relu, maximum: negative scale passes": "negative behind Relu",
    "average: padding counted as elements": "pool that counts",
    "gather: off by one forward": "Gather forward",
    "chain: a padded bias": "chain with a padded bias",
}
SMALL = dict(networks())


@cache
def small(name: str) -> Subject:
    return exact_mutations.subject(name, SMALL[name])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_fault_can_be_planted(mutation) -> None:
    with exact_mutations.broken(mutation):
        pass


@pytest.mark.parametrize("name", list(SMALL))
def test_right_folds_are_proved(name: str) -> None:
    one = small(name)
    found = check_onnx(one.model, one.right, exact_mutations.FoldOptions())
    assert found.verdict is Verdict.PASS, found.reason


@pytest.mark.parametrize("name", list(QUICK))
def test_faults_are_caught(name: str) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
    assert exact_mutations.outcome_of(mutation, small(QUICK[name])) is Outcome.CAUGHT


@cache
def all_subjects() -> tuple[Subject, ...]:
    return (*map(small, SMALL), *exact_mutations.random_subjects((*range(7), 29)))


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_fault_is_caught(mutation) -> None:
    with np.errstate(all="ignore"):
        counts = Counter(exact_mutations.outcome_of(mutation, one) for one in all_subjects())
    assert counts[Outcome.CAUGHT] + counts[Outcome.CAUGHT_ALONE] > 0
    assert counts[Outcome.MISSED] == 0
    # With a wrong epsilon small numbers lead to another plan in one of the models, which proves nothing.
    assert counts[Outcome.UNPROVED] == ("epsilon" in mutation.name)
