"""Modules whose code does something else with another batch or image size than with the example."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_modules import EXACT, codes, distance, fold, folded_names, inputs, is_wrong, naive, run, trained

import bnfold
from bnfold.reasons import StopCode
from bnfold.torch.module.trials.questions import branches_on_sizes, is_of_torch
from bnfold.torch.module.trials.resizing import larger, other_batch, other_places, shapes, smaller, wider
from bnfold.torch.module.trials.trials import Trials


class Layers(nn.Module):
    """A convolution, a BN and a convolution, which a function puts together."""

    def __init__(self, code: Callable[["Layers", Tensor], Tensor], padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.bn, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 3, padding=padding)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def pads_to_a_multiple(self: Layers, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return self.last(functional.pad(self.bn(self.first(x).relu()), (0, -width % 4, 0, -height % 4)))


def pads_if_needed(self: Layers, x: Tensor) -> Tensor:
    y = self.bn(self.first(x).relu())
    if x.shape[-1] % 4 > 0:
        y = functional.pad(y, (1, 4 - x.shape[-1] % 4))
    return self.last(y)


def pads_to_the_skip(self: Layers, x: Tensor) -> Tensor:
    y = self.bn(functional.avg_pool2d(self.first(x).relu(), 2))
    y = functional.interpolate(y, scale_factor=2)
    missing = [x.shape[axis] - y.shape[axis] for axis in (3, 2)]
    return self.last(functional.pad(y, [0, missing[0], 0, missing[1]]))


def skips_one_row(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if x.size(0) > 1 else y).relu()


def one_row_has_its_own(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if len(x) > 1 else self.other(y)).relu()


def small_images_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if min(x.shape[-2:]) >= 8 else y).relu()


def large_images_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if max(x.shape[-2:]) <= 8 else y).relu()


def chunks_of_one_skip_it(self: Layers, x: Tensor) -> Tensor:
    return torch.cat([self.bn(part) if len(part) > 1 else part for part in self.first(x).split(4)]).relu()


def pads_to_odd(self: Layers, x: Tensor) -> Tensor:
    return self.last(functional.pad(self.bn(self.first(x).relu()), (0, 1 - x.shape[-1] % 2)))


def pads_width_to_sevens(self: Layers, x: Tensor) -> Tensor:
    return self.last(functional.pad(self.bn(self.first(x).relu()), (0, -x.shape[-1] % 7)))


def high_images_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if x.shape[-1] <= x.shape[-2] else y).relu()


def wide_images_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if x.shape[-1] >= x.shape[-2] else y).relu()


SPECIAL = (
    pads_to_a_multiple,
    pads_if_needed,
    pads_to_the_skip,
    skips_one_row,
    one_row_has_its_own,
    small_images_skip_it,
    large_images_skip_it,
    chunks_of_one_skip_it,
)
OTHERS = ((1, 3, 8, 8), (2, 3, 9, 13), (5, 3, 8, 8), (1, 3, 5, 6), (3, 3, 16, 12))


@pytest.mark.parametrize("code", SPECIAL)
def test_what_holds_for_the_example_alone_stays(code: Callable[[Layers, Tensor], Tensor]) -> None:
    module = trained(Layers(code))
    example = inputs((2, 3, 8, 8))
    result = fold(module, example)
    assert not folded_names(result)
    assert "inputs of" in result.plan.left[0].reason
    for shape in OTHERS:
        x = inputs(shape)
        assert distance(run(result.model, x), run(module, x)) < EXACT


@pytest.mark.parametrize(
    ("code", "size"),
    [(pads_to_odd, 9), (pads_width_to_sevens, 14), (high_images_skip_it, 8), (wide_images_skip_it, 8)],
)
def test_what_holds_for_sizes_like_that_of_the_example_stays(
    code: Callable[[Layers, Tensor], Tensor], size: int
) -> None:
    module = trained(Layers(code))
    result = fold(module, inputs((2, 3, size, size)))
    assert not folded_names(result)
    for shape in OTHERS:
        x = inputs(shape)
        assert distance(run(result.model, x), run(module, x)) < EXACT


def high_images_of_512_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if x.shape[2] < 512 else y).relu()


def batches_of_four_skip_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (self.bn(y) if x.shape[0] % 4 else y).relu()


def one_area_skips_it(self: Layers, x: Tensor) -> Tensor:
    y = self.first(x)
    return (y if x.size(2) * x.size(3) == 8 * 100 else self.bn(y)).relu()


@pytest.mark.parametrize(
    ("code", "other"),
    [
        (high_images_of_512_skip_it, (1, 3, 520, 6)),
        (batches_of_four_skip_it, (8, 3, 8, 8)),
        (one_area_skips_it, (2, 3, 8, 100)),
    ],
)
def test_the_code_is_asked_which_sizes_it_tells_apart(
    code: Callable[[Layers, Tensor], Tensor], other: tuple[int, ...]
) -> None:
    module = trained(Layers(code))
    for example in (inputs((2, 3, 8, 8)), {"x": inputs((2, 3, 8, 8))[0]}):
        result = fold(module, example)
        assert not folded_names(result)
        x = inputs(other)
        assert distance(run(result.model, x), run(module, x)) < EXACT


def test_rounding_that_other_sizes_enlarge_is_no_branch() -> None:
    def subtracts_what_is_equal(self: Layers, x: Tensor) -> Tensor:
        y = self.bn(self.first(x))
        mean = y.mean((2, 3))
        return mean + 1e6 * (x.shape[2] != 8) * (y.flip(-1).mean((2, 3)) - mean)

    assert folded_names(fold(trained(Layers(subtracts_what_is_equal)), inputs((2, 3, 8, 8)))) == ["bn"]


def test_a_branch_of_sizes_that_are_too_large_to_try_is_assumed() -> None:
    def huge_images_skip_it(self: Layers, x: Tensor) -> Tensor:
        y = self.bn(self.first(x))
        return y if x.shape[2] < 1 << 22 else y * 2

    (assumed,) = fold(trained(Layers(huge_images_skip_it)), inputs((2, 3, 8, 8))).plan.assumptions
    assert assumed.startswith("sizes are such that test_other_sizes.py:")
    assert assumed.endswith(" decides as it does for inputs of 2x3x8x8")


def test_sizes_that_the_code_refuses_are_no_branch() -> None:
    def must_be_even(self: Layers, x: Tensor) -> Tensor:
        assert x.shape[2] % 2 == 0
        return self.bn(self.first(x))

    plan = fold(trained(Layers(must_be_even)), inputs((2, 3, 8, 8))).plan
    assert plan.folds
    assert not plan.assumptions


class Part(nn.Module):
    """A convolution, and a BN that one row goes without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if len(x) > 1 else y


class Around(nn.Module):
    """Returns what a function makes of a part and an input."""

    def __init__(self, code: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.part, self.code = Part(), code

    def forward(self, x: Tensor) -> object:
        return self.code(self.part, x)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (lambda part, x: (y for y in [part(x)]), "a generator"),
        (lambda part, x: {"one": map(torch.relu, [part(x)])}, "a map"),
        (lambda part, x: partial(torch.relu, part(x)), "a partial"),
        (lambda part, x: [part(x).relu], "a builtin_function_or_method"),
    ],
)
def test_results_that_compute_later_keep_everything(code: Callable[[nn.Module, Tensor], object], what: str) -> None:
    plan = bnfold.inspect(trained(Around(code)), inputs((2, 3, 8, 8)))
    assert not plan.folds
    assert plan.left[0].code is StopCode.NOT_CAPTURED
    assert f"the model returns {what}, which computes only when it is asked" in plan.left[0].reason


class Rows(nn.Module):
    """A convolution and a BN that one row goes without, whatever else is given."""

    def __init__(self, code: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.code = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), code

    def forward(self, *args: object) -> Tensor:
        return self.code(self, *args)


def comes_second(self: Rows, weight: Tensor, x: Tensor) -> Tensor:
    return (self.bn(self.conv(x)) if len(x) > 1 else self.conv(x)) * weight.sum()


def comes_behind_the_sequence(self: Rows, x: Tensor) -> Tensor:
    y = self.conv(x.permute(1, 2, 0))
    return self.bn(y) if x.shape[1] > 1 else y


def is_a_list(self: Rows, items: list[Tensor]) -> Tensor:
    y = self.conv(torch.stack(items))
    return self.bn(y) if len(items) > 1 else y


@pytest.mark.parametrize(
    ("code", "example", "one_row"),
    [
        (comes_second, ((5,), (2, 3, 8)), ((5,), (1, 3, 8))),
        (comes_second, ((1,), (2, 3, 8)), ((1,), (1, 3, 8))),
        (comes_behind_the_sequence, ((6, 2, 3),), ((6, 1, 3),)),
    ],
)
def test_the_batch_may_be_anywhere(
    code: Callable[..., Tensor], example: tuple[tuple[int, ...], ...], one_row: tuple[tuple[int, ...], ...]
) -> None:
    module = trained(Rows(code))
    result = fold(module, inputs(*example))
    assert not folded_names(result)
    x = inputs(*one_row)
    assert distance(run(result.model, x), run(module, x)) < EXACT


def test_the_batch_may_be_a_list() -> None:
    module = trained(Rows(is_a_list))
    example = ([*inputs((3, 8), (3, 8))],)
    result = fold(module, example)
    assert not folded_names(result)
    for x in (example, ([example[0][0]],)):
        assert distance(run(result.model, x), run(module, x)) < EXACT


def test_the_naive_fold_is_wrong_for_another_batch() -> None:
    module = trained(Layers(skips_one_row))
    by_example = naive(module, ("first", "bn"))
    assert not is_wrong(module, by_example, inputs((2, 3, 8, 8)))
    assert is_wrong(module, by_example, inputs((1, 3, 8, 8)))


def test_what_holds_for_all_sizes_is_folded() -> None:
    def reads_sizes(self: Layers, x: Tensor) -> Tensor:
        y = functional.interpolate(self.bn(self.first(x)), size=x.shape[-2:])
        y = functional.pad(y.relu(), (0, -x.shape[-1] % 4))
        return self.other(self.last(y)) if len(x) > 1 else self.other(self.last(y[:]))

    module = trained(Layers(reads_sizes))
    result = fold(module, inputs((2, 3, 8, 8)))
    assert folded_names(result) == ["bn", "other"]
    assert all(" (" not in name for entry in result.plan.folds for name in (*entry.path, *entry.targets))
    for shape in OTHERS:
        x = inputs(shape)
        assert distance(run(result.model, x), run(module, x)) < EXACT


def test_only_what_differs_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU())
            self.head = Layers(skips_one_row)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x))

    result = fold(trained(Net()), inputs((2, 3, 8, 8)))
    assert folded_names(result) == ["stem.1"]
    assert codes(result) == {"head.bn": StopCode.SHARED_WEIGHT, "head.other": StopCode.NOT_REACHED}


@pytest.mark.parametrize("given", [Tensor.numpy, Tensor.tolist, lambda y: float(y.sum()), lambda y: y.to_sparse()])
def test_results_that_are_no_plain_tensors_are_compared(given: Callable[[Tensor], object]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Layers(skips_one_row)

        def forward(self, x: Tensor) -> object:
            return given(self.head(x).detach())

    assert not folded_names(bnfold.fold(trained(Around()), inputs((2, 3, 8, 8))))


def test_in_place_and_in_lower_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = trained(Layers(pads_to_a_multiple), dtype=dtype)
        result = bnfold.fold(module, inputs((2, 3, 8, 8), dtype=dtype), inplace=True)
        assert not result.changed
        good = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), dtype=dtype)
        assert bnfold.fold(good, inputs((2, 3, 8, 8), dtype=dtype), inplace=True).changed


def test_code_that_makes_float32_itself() -> None:
    def makes_float32(self: Layers, x: Tensor) -> Tensor:
        return self.last(self.bn(self.first(x).relu())) @ torch.ones(x.shape[-1] - 2, 1)

    module = trained(Layers(makes_float32), dtype=torch.float32)
    assert folded_names(bnfold.fold(module, inputs((2, 3, 8, 8), dtype=torch.float32))) == ["bn"]


def test_a_list_of_examples() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norms = nn.Conv2d(3, 4, 3), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
            self.stem, self.head = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor, domain: int = 0, features: bool = False) -> Tensor:
            y = self.norms[domain](self.conv(self.stem(x))).relu()
            return y if features else self.head(y)

    module = trained(Switched())
    (x,) = inputs((2, 3, 8, 8))
    assert folded_names(fold(module, (x,))) == ["stem.1", "norms.0"]
    examples = [(x,), {"x": x, "domain": 1}, ((x,), {"features": True})]
    result = bnfold.fold(module, examples)
    assert folded_names(result) == ["stem.1"]
    assert set(codes(result).values()) == {StopCode.SHARED_WEIGHT}
    assert "example 2" in result.plan.left[0].reason
    for args in ((x,), (x, 1), (x, 0, True), (x, 1, True)):
        assert distance(run(result.model, args), run(module, args)) < EXACT


def test_operators_are_counted_for_the_first_example() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    result = bnfold.fold(module, [inputs((2, 3, 8, 8)), inputs((3, 3, 9, 9))])
    assert (result.ops_before, result.ops_after) == ({"Conv": 1, "BatchNorm": 1}, {"Conv": 1})


def test_which_sizes_are_tried() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)))
    example = (inputs((2, 3, 8, 8)), {})
    assert [shapes(call) for call, _ in Trials(module, [example]).calls] == [((1, 3, 8, 8),)]
    free = trained(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert [shapes(call) for call, _ in Trials(free, [example]).calls] == [
        ((1, 3, 7, 5),),
        ((1, 3, 5, 7),),
        ((5, 3, 13, 17),),
    ]
    large = ((torch.zeros(1, 3, 224, 224),), {})
    assert [*larger(large)] == []
    assert {shapes(call)[0][0] for call in other_batch(large)} == {2}
    tokens = ((torch.zeros(2, 6, dtype=torch.long),), {"mask": torch.zeros(2, 6)})
    assert shapes(next(smaller(tokens)))[0] == (1, 5)
    assert shapes(next(wider(((torch.zeros(1, 1, 9, 21),), {}))))[0] == (2, 1, 4, 10)
    mixed = (([torch.zeros(3)] * 3, torch.zeros(7)), {"x": torch.zeros(2, 4, 6)})
    assert [shapes(call) for call in other_places(mixed)] == [
        ((3,),) * 3 + ((1,), (2, 4, 6)),
        ((1,),) * 3 + ((7,), (2, 4, 6)),
        ((3,),) * 3 + ((7,), (2, 1, 6)),
        ((3,), (7,), (2, 4, 6)),
    ]


def test_values_that_are_not_finite() -> None:
    def nowhere_finite(self: Layers, x: Tensor) -> Tensor:
        return self.bn(self.first(x)) * x.new_full((), torch.nan)

    def divides_or_not(self: Layers, x: Tensor) -> Tensor:
        return (self.bn(self.first(x)).relu() + 1) / (len(x) - 1)

    for code in (nowhere_finite, divides_or_not):
        assert folded_names(bnfold.fold(trained(Layers(code)), inputs((2, 3, 8, 8)))) == ["bn"]


QUESTIONS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], bool]] = {
    "none": (lambda net, x: net.norm(net.conv(x)), False),
    "a number of its own": (lambda net, x: net.norm(net.conv(x)) if x.dim() == 4 else x, False),
    "what it takes": (lambda net, x: net.norm(net.conv(x)) if x.shape[1] == 3 else refuse(), False),
    "a threshold": (lambda net, x: net.conv(x) if x.shape[2] < 512 else net.norm(net.conv(x)), True),
    "a divisor": (lambda net, x: net.conv(x) if x.size(0) % 4 else net.norm(net.conv(x)), True),
    "an area": (lambda net, x: net.conv(x) if 2 * x.shape[2] * x.shape[3] > 99 else net.norm(net.conv(x)), True),
    "what it computes": (lambda net, x: net.norm(h) if (h := net.conv(x)).shape[-1] > 1 else h, True),
    "a length": (lambda net, x: net.conv(x) if len(x) > 7 else net.norm(net.conv(x)), True),
}
"""What code asks about sizes, and whether that is a branch."""


def refuse() -> Tensor:
    raise ValueError("not that many channels")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_a_branch_where_the_other_answer_goes_on(name: str) -> None:
    code, expected = QUESTIONS[name]

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return code(self, x)

    assert branches_on_sizes(Asking().eval(), ((torch.rand(2, 3, 8, 8),), {})) is expected


def test_a_package_beside_torch_is_not_torch() -> None:
    folder = Path(torch.__file__).parent
    assert is_of_torch(str(folder / "nn" / "functional.py"))
    assert not is_of_torch(str(folder.with_name("torchvision") / "models" / "detection.py"))
