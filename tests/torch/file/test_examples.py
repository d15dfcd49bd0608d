"""Example inputs from shapes and data: which input gets what, and what is said where that does not work out."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnfold.errors import UsageError  # noqa: E402
from bnfold.torch.file.examples import dynamic_shapes, make_example  # noqa: E402
from bnfold.verification import InputSpec  # noqa: E402


class Net(nn.Module):
    def forward(self, image, ids, scale=None, *, mask=None):
        return image, ids, scale, mask


class Any(nn.Module):
    def forward(self, first, *rest, **named):
        return first, rest, named


def shape(*sizes, dtype=None):
    return InputSpec(sizes, dtype)


def test_names_and_order():
    shapes = [(None, shape(1, 3)), ("mask", shape(2, dtype="bool")), (None, shape(4, dtype="int64"))]
    args, kwargs = make_example(Net(), shapes)
    assert [tuple(arg.shape) for arg in args] == [(1, 3), (4,)]
    assert [arg.dtype for arg in args] == [torch.float32, torch.int64]
    assert {name: (tuple(value.shape), value.dtype) for name, value in kwargs.items()} == {"mask": ((2,), torch.bool)}


def test_a_gap_is_passed_by_name():
    args, kwargs = make_example(Net(), [("ids", shape(2)), ("image", shape(1)), ("mask", shape())])
    assert (len(args), list(kwargs)) == (2, ["mask"])
    args, kwargs = make_example(Any(), [("first", shape(1)), ("other", shape(2))])
    assert (len(args), list(kwargs)) == (1, ["other"])


def test_more_inputs_than_names():
    args, kwargs = make_example(Any(), [(None, shape(size)) for size in (1, 2, 3)])
    assert [tuple(arg.shape) for arg in args] == [(1,), (2,), (3,)]
    assert kwargs == {}


def test_data_comes_with_its_bits():
    import ml_dtypes

    data = {"image": np.float64([[1 / 3]]), "ids": np.arange(3), "scale": np.asarray(1.5, ml_dtypes.bfloat16)}
    (image, ids, scale), _ = make_example(Net(), data=data)
    assert image.item() == 1 / 3
    assert ids.tolist() == [0, 1, 2]
    assert (scale.dtype, scale.item(), scale.dim()) == (torch.bfloat16, 1.5, 0)
    (image, ids), _ = make_example(Net(), [(None, shape(7))], {"ids": np.arange(3)})
    assert (tuple(image.shape), ids.tolist()) == ((7,), [0, 1, 2])


def test_values_are_seeded_and_in_range():
    shapes = [("image", shape(50, dtype="float16")), ("ids", shape(500, dtype="uint8"))]
    ranges = {"image": (2, 3), "ids": (250, 255)}
    first, again = (make_example(Net(), shapes, ranges=ranges, seed=4)[0] for _ in range(2))
    other = make_example(Net(), shapes, ranges=ranges, seed=5)[0]
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert not any(torch.equal(left, right) for left, right in zip(first, other, strict=True))
    assert first[0].dtype is torch.float16
    assert 2 <= first[0].min() < first[0].max() <= 3
    assert sorted(set(first[1].tolist())) == [250, 251, 252, 253, 254, 255]


@pytest.mark.parametrize(
    "arguments",
    [
        {"shapes": [(None, shape(1))]},
        {"shapes": [("picture", shape(1))]},
        {"shapes": [(None, shape(1))] * 5},
        {"shapes": [("ids", shape(1)), ("ids", shape(2))]},
        {"shapes": [("ids", shape(1))], "data": {"ids": np.ones(1), "image": np.ones(1)}},
        {"data": {"picture": np.ones(1)}},
        {"shapes": [(None, shape(1))] * 2, "ranges": {"picture": (0, 1)}},
        {"data": {"ids": np.ones(1), "image": np.ones(1)}, "ranges": {"ids": (0, 1)}},
        {"shapes": [(None, shape(1, dtype="int8"))] * 2, "ranges": {"ids": (0, 300)}},
        {"shapes": [(None, shape(1, dtype="int8"))] * 2, "ranges": {"ids": (0, 0.5)}},
        {"shapes": [(None, shape(1, dtype="bool"))] * 2, "ranges": {"ids": (0, 2)}},
        {"shapes": [(None, shape(1))] * 2, "dynamic": {"image": {3: "n"}}},
        {"shapes": [(None, shape(1))] * 2, "dynamic": {"scale": {0: "n"}}},
    ],
)
def test_what_does_not_fit(arguments):
    with pytest.raises(UsageError):
        make_example(Net(), **arguments)


def test_axes_that_vary_are_not_one():
    dynamic = {"image": {0: "n", -1: "w"}, "ids": {0: "n"}}
    call = make_example(Net(), [(None, shape(1, 3, 1)), (None, shape(1, 1))], dynamic=dynamic)
    assert [tuple(arg.shape) for arg in call[0]] == [(2, 3, 2), (2, 1)]
    shapes = dynamic_shapes(Net(), call, dynamic)
    assert {name: axes and {axis: dim.__name__ for axis, dim in axes.items()} for name, axes in shapes.items()} == {
        "image": {0: "n", 2: "w"},
        "ids": {0: "n"},
    }
    assert shapes["image"][0] is shapes["ids"][0]


def test_dynamic_axes_of_nameless_inputs():
    call = make_example(Any(), [(None, shape(2))] * 3, dynamic={"first": {0: "n"}})
    with pytest.raises(UsageError, match="inputs with names"):
        dynamic_shapes(Any(), call, {"first": {0: "n"}})
