"""Lifting small torch modules in tests: export, lift, plan, carry out, and compare in float64.

Modules are float64, so that a wrong transform cannot hide in rounding: original and folded program agree to 1e-10.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from bnfold.graph import AffineNode, Graph, Kind, MapNode, OpNode
from bnfold.planning.plan import Leftover, Plan
from bnfold.planning.planner import plan
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.provenance import Handle
from bnfold.torch.program.apply import apply_program

TOLERANCE = 1e-10


class Net(nn.Module):
    """A module whose forward method is a function of itself and its inputs."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self._forward(self, *inputs)


def trained(module: nn.Module, *, positive: bool = True) -> nn.Module:
    """The module in eval mode and float64, with parameters and statistics that a wrong fold would not survive.

    Args:
        module: The module; it is changed.
        positive: Whether all gammas are positive; else every second one is negative.
    """
    generator = torch.Generator().manual_seed(20240531)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
                if name == "weight" and parameter.ndim > 1:
                    parameter.sub_(1)
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.copy_(torch.rand(part.running_mean.shape, generator=generator) - 0.5)
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
                if not positive and part.weight is not None:
                    part.weight[::2] *= -1
    return module.eval().double()


def no_shift(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Makes a batch norm a multiplication and nothing else."""
    with torch.no_grad():
        norm.bias.zero_()
        norm.running_mean.zero_()


def double(*shape: int) -> Tensor:
    """An input."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def export(module: nn.Module, *inputs: Tensor, dynamic: object = None, decomposed: bool = False) -> ExportedProgram:
    """The program of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
        return program.run_decompositions() if decomposed else program


def fold(module: nn.Module, *inputs: Tensor, dynamic: object = None, decomposed: bool = False) -> Plan:
    """Lifts and plans, carries the plan out, and requires that nothing that can be seen from outside has changed."""
    program = export(module, *inputs, dynamic=dynamic, decomposed=decomposed)
    return fold_program(program, *inputs)


def fold_program(program: ExportedProgram, *inputs: Tensor) -> Plan:
    """The same for a program."""
    made = plan(lift(program))
    folded = apply_program(program, made, Leftover.CONV)
    if folded is not None:
        for before, after in zip(_observed(program, inputs), _observed(folded, inputs), strict=True):
            _require_equal(before, after)
    return made


def _observed(program: ExportedProgram, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
    """What can be seen from outside when a program runs twice: it may change its inputs, and its buffers.

    The modules of a program and of its folded copy share their buffers, so these are set back.
    """
    module, given = program.module(), copy.deepcopy(inputs)
    torch.manual_seed(1)
    counts = {name: buffer for name, buffer in module.named_buffers() if name.endswith("count")}
    before = {name: buffer.clone() for name, buffer in counts.items()}
    results = [copy.deepcopy(torch.utils._pytree.tree_map(_detached, module(*given))) for _ in range(2)]
    after = {name: buffer.clone() for name, buffer in counts.items()}
    with torch.no_grad():
        for name, buffer in counts.items():
            buffer.copy_(before[name])
    return results, given, [after[name] for name in sorted(after)]


def _detached(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


def _require_equal(expected: object, found: object) -> None:
    expected_leaves, found_leaves = torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(found)
    assert len(expected_leaves) == len(found_leaves)
    for one, other in zip(expected_leaves, found_leaves, strict=True):
        if isinstance(one, Tensor):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            largest = one.detach().double().abs().max() if one.numel() else torch.zeros(())
            error = (one.detach().double() - other.detach().double()).abs().max() if one.numel() else torch.zeros(())
            assert float(error) <= TOLERANCE * max(1.0, float(largest)), f"off by {float(error):.3g}"


def graph_of(module: nn.Module, *inputs: Tensor, dynamic: object = None, decomposed: bool = False) -> Graph:
    """The neutral graph of a module."""
    return lift(export(module, *inputs, dynamic=dynamic, decomposed=decomposed))


def maps(graph: Graph) -> list[MapNode]:
    """The linear maps of a graph."""
    return [node for node in graph.nodes if isinstance(node, MapNode)]


def batch_norms(graph: Graph) -> list[AffineNode]:
    """The batch norms of a graph."""
    return [node for node in graph.affines if node.kind is Kind.BATCH_NORM]


def node(graph: Graph, op_type: str) -> OpNode:
    """The one operator of that type."""
    (found,) = [node for node in graph.nodes if isinstance(node, OpNode) and node.op_type == op_type]
    return found


def handle(found: object) -> Handle:
    """The handle of a node."""
    kept = getattr(found, "handle", None)
    assert isinstance(kept, Handle)
    return kept


def fx_node(program: ExportedProgram, name: str) -> fx.Node:
    """The node of that name in the main graph of a program."""
    (found,) = [node for node in program.graph.nodes if node.name == name]
    return found
