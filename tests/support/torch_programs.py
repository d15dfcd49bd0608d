"""Folding small exported programs in tests, with every promise about the result checked each time.

Modules are exported in float64: bnfold keeps the storage type of weights, so original and folded program must then
agree to 1e-10, and a wrong transform cannot hide in rounding.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase

from bnfold.planning.plan import Leftover, Plan
from bnfold.torch.program.fold import FoldedProgram, fold_program

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Folded:
    """What came of a fold that kept all promises.

    Attributes:
        program: The folded program.
        original: The program that was folded.
        result: All that `fold_program` returned.
        inputs: What both were run with.
    """

    program: ExportedProgram
    original: ExportedProgram
    result: FoldedProgram
    inputs: tuple[Tensor, ...]

    @property
    def plan(self) -> Plan:
        """The plan that was carried out."""
        return self.result.plan

    @property
    def codes(self) -> list[str]:
        """Why each BN that is left stays, in order."""
        return [str(left.code) for left in self.plan.left]

    @property
    def names(self) -> list[str]:
        """The names of the nodes of the main graph that compute something."""
        return [node.name for node in self.program.graph.nodes if node.op == "call_function"]

    def count(self, op_type: str) -> int:
        """How many calls of an operator there are, nested graphs included."""
        return self.result.ops_after.get(op_type, 0)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 and in inference mode, with statistics and weights that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _NormBase) and part.running_mean is not None:
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.3, 2.0, generator=generator)
                if part.affine:
                    part.weight.uniform_(0.5, 1.5, generator=generator)
                    part.bias.normal_(generator=generator)
    return module


def random_inputs(*shapes: Sequence[int], seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def export(
    module: nn.Module, inputs: tuple[Tensor, ...], *, dynamic: bool = False, **options: object
) -> ExportedProgram:
    """The program of a module in inference mode, before decomposition."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if dynamic else None
    return torch.export.export(randomised(module), inputs, dynamic_shapes=shapes, strict=False, **options)


def fold(
    program: ExportedProgram,
    inputs: tuple[Tensor, ...],
    *,
    leftover: str = "conv",
    tolerance: float = TOLERANCE,
    **options: tuple[str, ...],
) -> Folded:
    """Folds a program and checks what holds for every fold.

    The outputs are those of the original, and so is every value of the main graph that kept its name; the original is
    as it was; tensors that are the same are not copied; names are unique; a second fold changes nothing.
    """
    before = str(program), {name: tensor.clone() for name, tensor in program.state_dict.items()}
    result = fold_program(program, leftover=Leftover(leftover), **options)
    assert str(program) == before[0]
    for name, tensor in program.state_dict.items():
        assert torch.equal(tensor, before[1][name])
    assert result.changed == (result.program is not program)
    check_consistent(result.program)
    check_sharing(program, result.program)
    check_outputs(program, result.program, inputs, tolerance)
    check_values(program, result.program, inputs, tolerance)
    names = Counter(name for entry in (*result.plan.folds, *result.plan.left) for name in entry.nodes)
    assert all(count == 1 for count in names.values())
    # What stays for fear of an operator in place may go once that operator is gone.
    if not options and all(left.code != "mutated" for left in result.plan.left):
        again = fold_program(result.program, leftover=Leftover(leftover))
        assert again.program is result.program, again.plan
    return Folded(result.program, program, result, inputs)


def fold_module(module: nn.Module, *shapes: Sequence[int], dynamic: bool = False, leftover: str = "conv") -> Folded:
    """Exports a module, called with random inputs of some shapes, and folds the program."""
    inputs = random_inputs(*shapes)
    return fold(export(module, inputs, dynamic=dynamic), inputs, leftover=leftover)


def check_consistent(program: ExportedProgram) -> None:
    """The program passes torch's own checks, and every tensor that it holds is called something once."""
    program.validate()
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            module.graph.lint()
            names = [node.name for node in module.graph.nodes]
            assert len(names) == len(set(names))
    signature = program.graph_signature
    targets = [spec.target for spec in signature.input_specs if spec.target is not None]
    assert len(targets) == len(set(targets))
    assert not set(program.state_dict) & set(program.constants)


def check_sharing(original: ExportedProgram, folded: ExportedProgram) -> None:
    """A tensor with the values of the original's of that name is that tensor; the others look like theirs."""
    for name, tensor in folded.state_dict.items():
        old = original.state_dict.get(name)
        if old is None or tensor is old:
            continue
        assert not torch.equal(tensor, old), f"{name} was copied"
        assert (tensor.dtype, tensor.device, tensor.shape) == (old.dtype, old.device, old.shape)
        assert (tensor.requires_grad, tensor.stride(), type(tensor)) == (old.requires_grad, old.stride(), type(old))


def check_outputs(
    original: ExportedProgram, folded: ExportedProgram, inputs: tuple[Tensor, ...], tolerance: float = TOLERANCE
) -> None:
    """Both programs give the same outputs."""
    expected, found = (_outputs(program, inputs) for program in (original, folded))
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        check_same("output", one, other, tolerance)


def check_values(
    original: ExportedProgram, folded: ExportedProgram, inputs: tuple[Tensor, ...], tolerance: float
) -> None:
    """Values of the main graph that have one name have the same elements."""
    expected, found = (_Recorder(program).values(inputs) for program in (original, folded))
    for name in expected.keys() & found.keys():
        check_same(name, expected[name], found[name], tolerance)


def check_same(name: str, expected: Tensor, found: Tensor, tolerance: float = TOLERANCE) -> None:
    """Two tensors agree, relative to the largest element of the first."""
    assert (expected.shape, expected.dtype) == (found.shape, found.dtype), name
    size = expected.double().abs().max().item() if expected.numel() else 0.0
    equal = (expected == found) | (expected.isnan() & found.isnan())
    difference = torch.where(equal, 0.0, expected.double() - found.double())
    error = difference.abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * max(size, 1e-300), f"{name} is off by {error / max(size, 1e-300):.1e}"


def saved_and_loaded(program: ExportedProgram) -> ExportedProgram:
    """What torch.export makes of a program on the way through a file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def _outputs(program: ExportedProgram, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a program gives; it may change its inputs and buffers in place, which does not last."""
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    with torch.no_grad():
        outputs = program.module()(*(tensor.clone() for tensor in inputs))
        for name, tensor in before.items():
            program.state_dict[name].copy_(tensor)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


class _Recorder(fx.Interpreter):
    """Runs the main graph of a program and keeps every tensor as it is right after it was computed."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.graph_module)
        self._program = program
        self._seen: dict[str, Tensor] = {}

    def values(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        flat = self._program._graph_module_flat_inputs(inputs, {})
        with torch.no_grad():
            self.run(*(given.clone() if isinstance(given, Tensor) else given for given in flat))
        return self._seen

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        if node.op == "call_function" and isinstance(result, Tensor):
            self._seen[node.name] = result.clone()
        return result
