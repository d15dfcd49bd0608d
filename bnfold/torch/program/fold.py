"""The road for ExportedProgram: lift, plan, apply."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram

from bnfold.planning import planner
from bnfold.planning.leftover import form_of
from bnfold.planning.plan import Leftover, Plan
from bnfold.torch.fx.graph_copy import attribute
from bnfold.torch.fx.higher_order import nested_graphs, operands
from bnfold.torch.fx.nodes import is_batch_norm, is_tuple_item
from bnfold.torch.fx.tensors import count_parameters
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.linear_maps import map_type
from bnfold.torch.lift.memory.memory_order import keep_memory_order
from bnfold.torch.lift.moves.rows import type_name
from bnfold.torch.program.apply import apply_program, program_handle
from bnfold.torch.program.leftover import written_as
from bnfold.torch.program.windows import can_have_window


@dataclass(frozen=True, slots=True, eq=False)
class FoldedProgram:
    """A fold of an exported program.

    Attributes:
        program: The folded program; the very one that was given if nothing changed.
        plan: What was done.
        changed: Whether anything was.
        ops_before: How many calls of each operator the original has, those in nested graphs among them.
        ops_after: How many the folded program has.
        parameters: How many floating-point numbers the original and the folded model store.
    """

    program: ExportedProgram
    plan: Plan
    changed: bool
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    parameters: tuple[int, int]


def inspect_program(program: ExportedProgram) -> Plan:
    """Says what a fold would do to a program.

    Args:
        program: The program; it is not changed.

    Raises:
        UnsupportedModelError: It contradicts itself.
    """
    return _planned(program, merge=True)


def fold_program(
    program: ExportedProgram,
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    leftover: Leftover = Leftover.CONV,
    merge: bool = True,
) -> FoldedProgram:
    """Folds a copy of a program, which shares with it every tensor that does not change.

    Args:
        program: The program, before or after decomposition; it is not changed.
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        leftover: What becomes of the affines that stay for another reason.
        merge: Whether parallel branches that add up to one map become one.

    Raises:
        UnsupportedModelError: The program contradicts itself.
        UsageError: A pattern matches no BN.
    """
    plan = _planned(program, skip, only, compose=leftover is not Leftover.KEEP, merge=merge)
    folded = apply_program(program, plan, leftover)
    before, stored = count_ops(program), _stored(program)
    if folded is None:
        return FoldedProgram(program, plan, False, before, before, (stored, stored))
    plan = plan.with_leftovers_as(
        lambda node, affine: written_as(form_of(leftover, node, plan), node, affine, program_handle(node))
    )
    return FoldedProgram(folded, plan, True, before, count_ops(folded), (stored, _stored(folded)))


def _stored(program: ExportedProgram) -> int:
    return count_parameters([*program.state_dict.values(), *program.constants.values()])


def _planned(
    program: ExportedProgram,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    *,
    compose: bool = True,
    merge: bool,
) -> Plan:
    """A plan that can be carried out: torch has no convolution with any number of zeros on each side."""
    graph = lift(program)
    keep_memory_order(graph)
    plan = planner.plan(graph, skip=skip, only=only, compose=compose, merge=merge)
    if all(can_have_window(node, folding.linear) for node, folding in plan.foldings.items()):
        return plan
    return planner.plan(graph, skip=skip, only=only, compose=compose)


def count_ops(program: ExportedProgram) -> dict[str, int]:
    """How many calls of each operator a program has, nested graphs included, sorted by name.

    Those that compute weights from parameters alone are not counted: they are no part of the network.
    """
    specs = program.graph_signature.input_specs
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    pairs = zip(placeholders, specs, strict=True)
    inputs = {node for node, spec in pairs if spec.target is None}
    counts: Counter[str] = Counter()
    _count(program.graph_module, inputs, counts)
    return dict(sorted(counts.items()))


def _count(module: fx.GraphModule, variable: set[fx.Node], counts: Counter[str]) -> None:
    """Counts the calls in a graph that depend on `variable`, or on nothing, and those in the graphs that it runs."""
    for node in module.graph.nodes:
        reads = node.all_input_nodes
        if node.op != "call_function" or (reads and variable.isdisjoint(reads)):
            continue
        variable.add(node)
        if not is_tuple_item(node):
            counts[_op_type(node)] += 1
        for target in nested_graphs(node):
            nested = attribute(module, target)
            assert isinstance(nested, fx.GraphModule)  # what these operators run
            inner = (other for other in nested.graph.nodes if other.op == "placeholder")
            given = zip(inner, operands(node), strict=True)
            _count(nested, {placeholder for placeholder, operand in given if operand in variable}, counts)


def _op_type(node: fx.Node) -> str:
    return "BatchNorm" if is_batch_norm(node) else map_type(node) or type_name(node)
