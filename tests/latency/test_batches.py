"""Which dimension the batch is, or that nothing says so."""

import numpy as np
import pytest

from bnfold.errors import UsageError
from bnfold.input_spec import InputSpec
from bnfold.latency.batches import with_batch
from bnfold.verification.inputs.sampling import DeclaredInput


def declared(name, *dims):
    return DeclaredInput(name, np.dtype(np.float32), "tensor of float", dims)


def test_the_open_first_dimension_is_fixed_wherever_it_occurs():
    inputs = (declared("image", "n", 3, "h", "w"), declared("mask", 1, "n", "h"), declared("scale"))
    sized, shapes = with_batch(inputs, {"image": InputSpec((1, 3, 32, 32))}, (), 8)
    assert [item.dims for item in sized] == [(8, 3, "h", "w"), (1, 8, "h"), ()]
    assert shapes == {"image": InputSpec((8, 3, 32, 32))}


def test_inputs_of_unknown_rank_stay_as_they_are():
    unknown = DeclaredInput("other", None, "tensor", None)
    sized, shapes = with_batch((declared("x", "n", 3), unknown), {"other": InputSpec((5,))}, (), 2)
    assert sized[1] is unknown
    assert shapes == {"other": InputSpec((5,))}


def test_a_fixed_batch_is_refused():
    with pytest.raises(UsageError, match=r"the batch size is fixed: .*'x' \(1, 3, h\)") as error:
        with_batch((declared("x", 1, 3, "h"),), {}, (), 8)
    assert "dynamic batch" in error.value.hint


def test_two_different_first_dimensions_are_refused():
    with pytest.raises(UsageError, match="'n' of input 'x' and 'boxes' of input 'y' may differ"):
        with_batch((declared("x", "n", 3), declared("y", "boxes", 4)), {}, (), 8)


def test_data_that_has_a_batch_is_refused():
    with pytest.raises(UsageError, match="the data given for input 'x' already has a batch size"):
        with_batch((declared("x", "n", 3), declared("y", "n")), {}, ("x",), 8)


def test_data_without_the_batch_is_fine():
    sized, _ = with_batch((declared("x", "n", 3), declared("anchors", 9, 2)), {}, ("anchors",), 8)
    assert sized[0].dims == (8, 3)


def test_a_shape_of_another_rank_is_left_to_the_check_of_shapes():
    _, shapes = with_batch((declared("x", "n", 3),), {"x": InputSpec((1, 3, 5))}, (), 8)
    assert shapes["x"].shape == (1, 3, 5)
