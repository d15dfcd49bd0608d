"""Exported programs: nested graphs, symbolic sizes, names, operators in place, and what a program is used for then."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch_programs import (
    check_outputs,
    check_same,
    export,
    fold,
    fold_module,
    random_inputs,
    randomised,
    saved_and_loaded,
)

from bnfold.torch.program.fold import fold_program, inspect_program

pytestmark = [
    # Of torch's own making.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]


class Block(nn.Module):
    """Conv, BN, ReLU, and a residual sum."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x)).relu()


class Net(nn.Module):
    """Three blocks, pooling, a Linear with a BN of its own, and one BN that has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head, self.norm = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)
        self.stays = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = self.stays(x).sigmoid() * x
        return self.norm(self.head(x.mean((2, 3))))


class Branches(nn.Module):
    """torch.cond with a conv and a BN in one branch, and the same conv in the other."""

    def __init__(self, *, other_conv: bool = True) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn, self.outer = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.other_conv = other_conv

    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

        def no(x: Tensor) -> Tensor:
            return self.conv(x) if self.other_conv else x.cos()

        x = self.outer(self.first(x))
        return torch.cond(x.sum() > 0, yes, no, (x,)).relu()


@pytest.mark.parametrize("other_conv", [False, True])
def test_branches_of_cond(other_conv: bool) -> None:
    inputs = random_inputs((2, 3, 6, 6))
    folded = fold(export(Branches(other_conv=other_conv), inputs), inputs)
    assert folded.count("BatchNorm") == 0
    flipped = (-5 * inputs[0],)
    check_outputs(folded.original, folded.program, flipped)
    names = {"first.weight", "first.bias", "conv.weight", "conv.bias"}
    assert set(folded.program.state_dict) == (names | {"conv.weight_folded"} if other_conv else names)
    cond = next(node for node in folded.program.graph.nodes if node.name == "cond")
    for branch in ("true_graph_0", "false_graph_0"):
        nested = getattr(folded.program.graph_module, branch).graph
        assert len(nested.find_nodes(op="placeholder")) == len(cond.args[3])
    again = saved_and_loaded(folded.program)
    for given in (inputs, flipped):
        check_outputs(folded.program, again, given)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.stays = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.bn(self.conv(x))
        with torch.no_grad():
            return self.stays(x.float().sigmoid())


def test_autocast_region() -> None:
    module = randomised(Autocast()).float()
    inputs = random_inputs((2, 3, 6, 6), dtype=torch.float32)
    program = torch.export.export(module, inputs, strict=False)
    folded = fold(program, inputs, tolerance=0.02)  # activations in bfloat16
    assert folded.count("wrap_with_autocast") == 1
    assert folded.plan.batch_norms_folded == 1
    assert folded.count("BatchNorm") == 0


def test_no_grad_region() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = x.sin()
            with torch.no_grad():
                y = self.bn(self.conv(y))
            return y.cos()

    folded = fold_module(Region(), (2, 3, 6, 6))
    assert folded.count("BatchNorm") == 0
    assert folded.count("wrap_with_set_grad_enabled") == 1


def test_dynamic_batch() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold(export(Net(), inputs, dynamic=True), inputs)
    assert folded.count("BatchNorm") == 0
    assert folded.program.range_constraints == folded.original.range_constraints
    check_outputs(folded.original, folded.program, random_inputs((5, 3, 8, 8)))
    check_outputs(folded.original, saved_and_loaded(folded.program), random_inputs((7, 3, 8, 8)))
    with pytest.raises((AssertionError, RuntimeError)):
        folded.program.module()(*random_inputs((2, 3, 9, 8)))


def test_loaded_program_keeps_its_guards() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    loaded = saved_and_loaded(export(Net(), inputs, dynamic=True))
    folded = fold(loaded, inputs)
    assert folded.count("BatchNorm") == 0
    check_outputs(folded.original, folded.program, random_inputs((5, 3, 8, 8)))
    assert folded.program._guards_code == loaded._guards_code


@pytest.mark.parametrize("leftover", ["conv", "mul-add", "keep"])
def test_decomposed_program(leftover: str) -> None:
    inputs = random_inputs((2, 3, 8, 8))
    program = export(Net(), inputs).run_decompositions()
    folded = fold(program, inputs, leftover=leftover)
    assert folded.plan.batch_norms_folded == 4
    assert folded.count("BatchNorm") == (1 if leftover == "keep" else 0)
    assert folded.program.dialect == "ATEN"
    check_outputs(program, folded.program.run_decompositions(), inputs)


def test_folding_and_decomposing_commute() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    program = export(Net(), inputs, dynamic=True)
    folded = fold_program(program).program.run_decompositions()
    check_outputs(program, folded, inputs)
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    assert fold_program(folded).program is folded


def test_names_survive_a_file() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold(export(Net(), inputs), inputs)
    loaded = saved_and_loaded(folded.program)
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in folded.program.graph.nodes]
    assert loaded.state_dict.keys() == folded.program.state_dict.keys()
    check_outputs(folded.original, loaded, inputs)
    assert fold_program(loaded).program is loaded


def test_arguments_called_like_builtins() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, input: Tensor, float: Tensor) -> Tensor:  # noqa: A002
            return self.bn(self.conv(input)) + float

    folded = fold_module(Named(), (2, 3, 6, 6), (2, 4, 4, 4))
    assert folded.program.graph_signature.user_inputs == ("input", "float")


def test_values_that_differ_get_new_names() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.cat([self.conv(x), self.conv(-x)], dim=2).flip(1).flip(1)).relu()

    folded = fold_module(Deep(), (2, 3, 6, 6))
    original = {node.name for node in folded.original.graph.nodes}
    moved = [name for name in folded.names if name not in original]
    assert folded.plan.batch_norms_folded == 0 or moved


def test_both_ways_gives_a_new_name() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
            self.other = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.bn(self.first(x) + self.other(x).relu()))

    folded = fold_module(Both(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_activation(inplace: bool) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    folded = fold_module(nn.Sequential(*layers, nn.ReLU6(inplace)), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0


def test_an_input_is_not_changed_in_place() -> None:
    """BN → ReLU(inplace) → Conv: without the BN the ReLU would change what the caller gave."""
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        randomised(module)[0].bias.zero_()
        module[0].running_mean.zero_()
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold_program(torch.export.export(module, inputs, strict=False)).program
    given = inputs[0].clone()
    folded.module()(given)
    assert torch.equal(given, inputs[0])


def test_a_view_behind_a_batch_norm_that_made_its_input_contiguous() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x)[:, :, ::2])
            return y.view(y.shape[0], -1)

    folded = fold_module(Viewed(), (2, 3, 6))
    assert folded.count("BatchNorm") == 0
    assert folded.count("view") == 0
    check_outputs(folded.original, folded.program.run_decompositions(), folded.inputs)


class Strided(nn.Module):
    """Reads the memory behind a BN, which makes a transposed input contiguous and keeps any other as it is."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.linear, self.conv, self.bn = nn.Linear(3, 4), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.transpose(1, 2)).transpose(1, 2) if self.transposed else self.conv(x)
        return torch.as_strided(self.bn(y), (8, 5), (5, 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_memory_order_that_is_read(transposed: bool) -> None:
    folded = fold_module(Strided(transposed=transposed), (2, 3, 5), leftover="keep")
    assert folded.count("BatchNorm") == int(transposed)
    assert folded.codes == ["no_rule"] * transposed


@pytest.mark.parametrize("reads_memory", [False, True])
def test_sizes_that_depend_on_values(reads_memory: bool) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.register_buffer("scale", torch.tensor([2.0, -3.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            y = (x > 0).nonzero().to(x.dtype) * self.scale
            return y.as_strided((2,), (1,)) if reads_memory else self.linear(y)

    folded = fold_module(Positions(), (4, 3))
    assert folded.count("mul") == reads_memory


@pytest.mark.parametrize("form", ["conv", "mul-add", "keep"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_leftover(form: str, rank: int) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank](4)
    folded = fold_module(nn.Sequential(nn.Sigmoid(), norm, nn.Sigmoid()), (3, 4, 2, 3, 2)[:rank], leftover=form)
    assert folded.plan.batch_norms_left == 1
    expected = {"keep": (1, 0, 0, 0), "mul-add": (0, 0, 1, 1), "conv": (0, 1, 0, 0) if rank > 2 else (0, 0, 1, 1)}[form]
    assert tuple(map(folded.count, ("BatchNorm", "Conv", "mul", "add"))) == expected
    assert folded.result.changed == (form != "keep")
    assert ("batch_norm" in folded.names) == (form != "keep" or not folded.result.changed)
    check_outputs(folded.original, saved_and_loaded(folded.program), folded.inputs)
    check_outputs(folded.original, folded.program.run_decompositions(), folded.inputs)


def test_leftover_of_frozen_shift_only() -> None:
    norm = nn.BatchNorm2d(4)
    module = randomised(nn.Sequential(nn.Sigmoid(), norm, nn.Sigmoid()))
    with torch.no_grad():
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.running_mean.zero_()
    inputs = random_inputs((2, 4, 3, 3))
    program = torch.export.export(module, inputs, strict=False)
    folded = fold(program, inputs, leftover="mul-add")
    assert folded.count("add") == 1


def test_skip_and_only() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    program = export(Net(), inputs)
    names = [name for fold_ in inspect_program(program).folds for name in fold_.nodes]
    assert names == ["blocks.0.bn", "blocks.1.bn", "blocks.2.bn", "norm"]
    folded = fold(program, inputs, leftover="keep", skip=("blocks.1.*",))
    assert folded.count("BatchNorm") == 2
    folded = fold(program, inputs, leftover="keep", only=("norm",))
    assert folded.count("BatchNorm") == 4


def test_nothing_to_do_gives_the_program_itself() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    program = export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), inputs)
    result = fold_program(program)
    assert result.program is program
    assert not result.changed
    assert result.ops_before == result.ops_after == {"Conv": 1, "relu": 1}


def test_training_mode_is_left() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    inputs = random_inputs((2, 3, 8, 8))
    program = torch.export.export(module.train(), inputs, strict=False)
    result = fold_program(program)
    assert [left.code for left in result.plan.left] == ["training_mode"]
    assert result.program is program


def test_buffer_that_is_written_stays() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            self.bn.num_batches_tracked.add_(1)
            return self.bn(self.conv(x)) * self.calls

    folded = fold_module(Counting(), (2, 3, 8, 8))
    assert folded.count("BatchNorm") == 0
    assert set(folded.program.state_dict) == {"conv.weight", "conv.bias", "calls", "bn.num_batches_tracked"}


def test_parameters_that_others_read_stay() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
            self.copy = nn.BatchNorm2d(4)
            self.copy.bias = self.bn.bias

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.copy(self.bn(self.conv(x)).sigmoid()).sigmoid(), self.bn.running_var * 2

    folded = fold_module(Reading(), (2, 3, 8, 8), leftover="keep")
    assert folded.count("BatchNorm") == 1
    state = folded.program.state_dict
    assert set(state) >= {"bn.running_var", "copy.bias", "bn.bias"}
    assert not {"bn.weight", "bn.running_mean"} & set(state)


def test_preserved_module_signatures() -> None:
    inputs = random_inputs((2, 3, 8, 8))
    names = ("blocks.0.bn", "blocks.1.conv", "blocks.2")
    program = export(Net(), inputs, preserve_module_call_signature=names)
    folded = fold(program, inputs)
    module = torch.export.unflatten(folded.program)
    check_same("output", program.module()(*inputs).detach(), module(*inputs).detach())
    kept = {entry.fqn for entry in folded.program.module_call_graph if entry.signature is not None}
    assert kept == {"", "blocks.1.conv", "blocks.2"}


def test_unflattened_twice_called_modules() -> None:
    inputs = random_inputs((2, 4, 8, 8))
    block = Block()
    program = export(nn.Sequential(block, nn.Sigmoid(), block), inputs)
    folded = fold(program, inputs)
    assert folded.count("BatchNorm") == 0
    module = torch.export.unflatten(folded.program)
    check_same("output", program.module()(*inputs).detach(), module(*inputs).detach())


def test_exported_to_onnx() -> None:
    module = randomised(Net()).float()
    inputs = random_inputs((2, 3, 8, 8), dtype=torch.float32)
    program = torch.export.export(module, inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    folded = fold(program, inputs, tolerance=1e-5).program
    exported = torch.onnx.export(folded, dynamo=True, verbose=False).model_proto
    assert not any(node.op_type == "BatchNormalization" for node in exported.graph.node)
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    given = random_inputs((3, 3, 8, 8), dtype=torch.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: given[0].numpy()})
    expected = program.module()(*given).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_compiled() -> None:
    """All but the code for a processor, which `test_compiled_ahead_of_time` has made."""
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold(export(Net(), inputs), inputs)
    compiled = torch.compile(folded.program.module(), backend="aot_eager")
    with torch.no_grad():
        check_same("output", folded.original.module()(*inputs), compiled(*inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    inputs = random_inputs((2, 3, 8, 8))
    folded = fold(export(Net(), inputs, dynamic=True), inputs)
    package = torch._inductor.aoti_compile_and_package(folded.program, package_path=str(tmp_path / "net.pt2"))
    given = random_inputs((4, 3, 8, 8))
    with torch.no_grad():
        found = torch._inductor.aoti_load_package(package)(*given)
        check_same("output", folded.original.module()(*given), found)


def test_memory_is_that_of_what_changed() -> None:
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 512))
    inputs = random_inputs((3, 64))
    folded = fold(export(module, inputs), inputs)
    new = {
        tensor.untyped_storage().data_ptr(): tensor.nbytes
        for name, tensor in folded.program.state_dict.items()
        if tensor is not folded.original.state_dict.get(name)
    }
    assert sum(new.values()) == (64 * 64 + 64) * 8
