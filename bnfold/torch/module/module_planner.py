"""What a fold does to a module: planned, rehearsed, tried with other sizes, and planned again where those differ."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold.graph import Graph
from bnfold.planning.plan import Plan
from bnfold.reasons import Stop, StopCode
from bnfold.torch.capture.capture import Capture, capture
from bnfold.torch.capture.copying import shadow
from bnfold.torch.capture.example_inputs import Call, DynamicShapes
from bnfold.torch.capture.export import Arguments
from bnfold.torch.capture.hooks import all_are_watched
from bnfold.torch.capture.kept_state import kept
from bnfold.torch.capture.recorded_calls import watched, worth_recording
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.memory.memory_order import keep_memory_order
from bnfold.torch.module.apply import Edits, apply_module, edits_of
from bnfold.torch.module.assumptions import assumptions
from bnfold.torch.module.constraints import Constraints
from bnfold.torch.module.module_calls import Traces, handle
from bnfold.torch.module.plan_entries import batch_norm_modules, left_to_a_graph, name_like_modules, one_entry_a_module
from bnfold.torch.module.rehearsal.rehearsal import Rehearsal
from bnfold.torch.module.tensor_slots import Place, Slots, readers
from bnfold.torch.module.trials.kept_values import nodes_of
from bnfold.torch.module.trials.resizing import sizes_of
from bnfold.torch.module.trials.trials import Trials
from bnfold.torch.module.unreached import add_unreached, explain_borders
from bnfold.torch.module.weight_homes import takes_trial_bias, trial_bias

_MOST_SIZES = 4
"""With so many other sizes that each take a path of their own, no further ones are captured."""


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What running a module found out, which a module of the same code and sizes need not be run for again.

    Attributes:
        captured: What was captured of it.
        objections: What the rehearsals of one plan after the other wanted to stay.
        kept: For nodes of programs, by the id of the program and their names, why what they give must stay what it is.
        stop: Why every affine stays; None if that is not so.
    """

    captured: Capture
    objections: tuple[Mapping[Place, Stop], ...]
    kept: Mapping[tuple[int, str], Stop]
    stop: Stop | None

    @property
    def whole(self) -> ExportedProgram | None:
        """What torch.export gave of the first example; None where it refuses the whole."""
        return next((piece.program for piece in self.captured.pieces if not piece.path and not piece.inputs), None)


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What is to be done to a module.

    Attributes:
        plan: The plan, with one entry for each BN module.
        edits: What it means for the module.
        folded: A copy of the module with the edits; None if there are none.
        ops_before: How many operators of each kind there are.
        ops_after: How many there will be.
        findings: What running the module found out.
    """

    plan: Plan
    edits: Edits
    folded: nn.Module | None
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    findings: Findings


class ModulePlanner:
    """Plans folds of one module.

    Args:
        module: The module.
        examples: What it is called with; the fold is right for each of them.
        dynamic_shapes: As for torch.export.export.
        skip: Glob patterns of the names of BNs that stay as they are.
        only: Glob patterns; if given, every BN that matches none of them stays as it is.
        known: What is known already, so that nothing has to be run.
    """

    def __init__(
        self,
        module: nn.Module,
        examples: Sequence[Call],
        dynamic_shapes: DynamicShapes | None,
        skip: tuple[str, ...],
        only: tuple[str, ...],
        known: Findings | None = None,
    ) -> None:
        self._module = module
        self._examples = examples
        self._patterns = (skip, only)
        self._traced = shadow(module)
        self._seen = watched(self._traced)
        for layer in [layer for layer in self._traced.modules() if takes_trial_bias(layer)]:
            layer.register_parameter("bias", trial_bias(layer))
        self._paths = {child: path for path, child in self._traced.named_modules()}
        self._trials = Trials(module, examples)
        self._kept: dict[tuple[int, str], Stop] = {}
        self._rehearsals: list[Rehearsal] = []
        self._known = known
        if known is not None:
            self._captured = known.captured
            self._kept.update(known.kept)
            return
        first, *others = examples
        self._captured = self._capture(first, dynamic_shapes)
        self._rehearsals.append(Rehearsal(module, first, self._captured))
        for number, example in enumerate(others, 2):
            self._add(example, dynamic_shapes, f"example {number}")

    def plan(self) -> Planned:
        """A plan that holds for all examples, and for the other sizes that were tried.

        Raises:
            UsageError: A pattern matches no BN, or the module fails with the example.
        """
        if self._known is not None:
            return self._planned(self._known.stop)
        planned = self._planned()
        later = None if planned.folded is None else self._trials.later
        if later is not None:
            reason = f"the model returns {later}, which computes only when it is asked, and cannot be compared"
            return self._planned(Stop(StopCode.NOT_CAPTURED, reason))
        added: list[Arguments] = []
        while planned.folded is not None:
            differing = self._trials.differing(planned.folded, planned.edits)
            if differing is None:
                lost = self._trials.kept_differently(planned.folded)
                if not any(lost):
                    if self._trials.differs_later(planned.folded, planned.edits):
                        reason = "when it is called again the code takes a path that torch.export does not show"
                        return self._planned(Stop(StopCode.NOT_CAPTURED, reason))
                    break
                stop = self._keep(lost)
                if stop is not None:
                    return self._planned(stop)
                planned = self._planned()
                continue
            if len(added) == _MOST_SIZES or any(differing is arguments for arguments in added):
                inputs = self._trials.words(differing)
                reason = f"with inputs of {inputs} the code takes a path that torch.export does not show"
                return self._planned(Stop(StopCode.NOT_CAPTURED, reason))
            added.append(differing)
            self._add(differing, None, f"inputs of {self._trials.words(differing)}")
            planned = self._planned()
        self._trials.require_example()
        assumed = [*assumptions(self._module, self._examples, planned.plan), *self._untried(planned)]
        return replace(planned, plan=replace(planned.plan, assumptions=tuple(dict.fromkeys(assumed))))

    def _keep(self, lost: Sequence[Mapping[str, Tensor]]) -> Stop | None:
        """Lets values stay in every further plan that the code keeps on the module.

        Args:
            lost: For each example the values that would be others, by the paths of the attributes.

        Returns:
            Why nothing may go, if it is not known what computes one of them.
        """
        whole = [piece.program for piece in self._captured.pieces if not piece.path]
        for example, values in zip(self._examples, lost, strict=True):
            found = [(program, nodes_of(program, example, values)) for program in whole] if values else []
            for name in values:
                stop = Stop(StopCode.HOOKS, f"is kept by the code of the model as '{name}'")
                keys = {(id(program), node) for program, nodes in found for node in nodes[name]}
                if keys <= self._kept.keys():
                    reason = f"the code of the model keeps something as '{name}', which would be something else"
                    return Stop(StopCode.HOOKS, reason)
                self._kept.update(dict.fromkeys(keys, stop))
        return None

    def _untried(self, planned: Planned) -> Iterator[str]:
        """That no other sizes could be tried, or none with which the code takes another path."""
        if planned.folded is not None and not self._trials.has_other_sizes:
            sizes = " or ".join(sizes_of(example) for example in self._examples)
            yield f"inputs are of {sizes}, for the module takes no other sizes that were tried"
        for branch in self._trials.untried:
            yield f"sizes are such that {branch.where} decides as it does for inputs of {sizes_of(branch.example)}"

    def _add(self, arguments: Arguments, dynamic_shapes: DynamicShapes | None, inputs: str) -> None:
        captured = self._capture(arguments, dynamic_shapes)
        self._rehearsals.append(Rehearsal(self._module, arguments, captured))
        self._captured = self._captured.joined(captured, inputs)

    def _capture(self, arguments: Arguments, dynamic_shapes: DynamicShapes | None) -> Capture:
        may_record = worth_recording(self._traced)
        with kept(self._module):  # hooks of a copy may know the module itself
            return capture(self._traced, arguments, dynamic_shapes, must_record=self._seen, may_record=may_record)

    def _planned(self, stop: Stop | None = None) -> Planned:
        """A plan for what was captured.

        Args:
            stop: Why every affine stays.
        """
        captured, module, paths = self._captured, self._module, self._paths
        found, known = [], deque(self._known.objections if self._known is not None else ())
        graph = Graph()
        for piece in captured.pieces:
            lift(piece.program, graph, piece.path, piece.inputs)
        keep_memory_order(graph)
        first = {id(piece.program) for piece in captured.pieces if not piece.inputs}
        later = {node for node in graph.nodes if id(handle(node).scope.program) not in first}
        ops = Counter(node.op_type for node in graph.nodes if node not in later)
        explain_borders(graph, captured)
        if all_are_watched():
            stop = stop or Stop(StopCode.HOOKS, "hooks for all modules are registered, which see everything")
        for node in graph.affines:
            node.stop = node.stop or stop
        slots, traces = Slots(self._traced), Traces(self._traced, graph, captured.pieces)
        reads = readers(slots, captured.pieces, module)
        modules = batch_norm_modules(graph, traces, slots, reads)
        name_like_modules(graph, modules, paths)
        constraints = Constraints(graph, traces, captured, slots, reads, self._seen, self._kept)
        add_unreached(graph, {*modules.values()}, self._traced, captured)
        while True:
            plan = constraints.plan(*self._patterns)
            edits = edits_of(plan, constraints, module, paths)
            objections = known.popleft() if known else self._objections(edits)
            if not objections:
                break
            found.append(objections)
            constraints.keep(objections, paths)
        if plan.left:
            plan = left_to_a_graph(plan, constraints.with_merges(*self._patterns))
        removed = Counter(step.source.op_type for step in plan.steps if step.source not in later)
        folded = apply_module(module, edits, inplace=False) if edits.changes else None
        entries = one_entry_a_module(plan, graph.affines, modules, later)
        findings = Findings(captured, tuple(found), self._kept, stop)
        return Planned(entries, edits, folded, dict(ops), dict(ops - removed), findings)

    def _objections(self, edits: Edits) -> dict[Place, Stop]:
        """The places that must stay as they are for one of the examples, each with the reason."""
        found: dict[Place, Stop] = {}
        for rehearsal in self._rehearsals:
            found = {**rehearsal.objections(edits), **found}
        return found
