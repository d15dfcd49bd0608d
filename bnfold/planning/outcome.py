"""What a search has decided, and the plan that says so: where each affine went, or why it stays."""

from collections.abc import Container

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import Folding
from bnfold.graph import AffineNode, ConstantNorm, Graph, Kind, MapNode, Node
from bnfold.planning.destinations import varies_widely, where_affines_end
from bnfold.planning.never_empty import never_empty
from bnfold.planning.plan import Apart, Direction, Fold, Junction, Left, Merge, Plan, Step
from bnfold.planning.recognised import normalisation_before
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode

_SAYS_LITTLE = frozenset({StopCode.MODEL_INPUT, StopCode.MODEL_OUTPUT, StopCode.NO_RULE, StopCode.NONLINEAR})
_SKIPPED = Stop(StopCode.SKIPPED, "it was asked to stay (skip/only)")


class Outcome:
    """What has been decided so far; the search writes it.

    Args:
        graph: The graph.
        skipped: The affines that were asked to stay.

    Attributes:
        tensors: Which values are one tensor by now.
        affines: The affines that are still there and may move, as they are by now.
        foldings: What the maps have absorbed.
        steps: The affines that went away, in order.
        stops: What stopped each of the others, each way.
        junctions: What became one map, in order.
        merges: The same, as it is told.
        apart: The sums of branches that stay.
    """

    def __init__(self, graph: Graph, skipped: Container[AffineNode | ConstantNorm]) -> None:
        self._graph = graph
        self._skipped = skipped
        self._nodes = graph.affines
        self.tensors = Tensors()
        self.affines = {
            node: node.affine
            for node in self._nodes
            if node.affine is not None and node.stop is None and node not in skipped
        }
        self.foldings: dict[MapNode, Folding] = {}
        self.steps: dict[AffineNode, Step] = {}
        self.stops: dict[tuple[AffineNode, Direction], Stop] = {}
        self.junctions: list[Junction] = []
        self.merges: list[Merge] = []
        self.apart: list[Apart] = []

    def plan(self) -> Plan:
        """The plan for what has been decided."""
        folds, left_with = self._where_affines_are()
        constant_norms = [norm for norm in self._graph.constant_norms if norm not in self._skipped]
        constant_folds = [
            Fold((norm.name,), Kind.BATCH_NORM, Direction.BACKWARD, (), (norm.result,)) for norm in constant_norms
        ]
        left = [
            Left((norm.name,), Kind.BATCH_NORM, _SKIPPED.code, _SKIPPED.reason, 1)
            for norm in self._graph.constant_norms
            if norm in self._skipped
        ]
        for node, composed in left_with.items():
            if node.kind is Kind.BATCH_NORM or self._is_worth_a_word(node):
                stop = self._why(node)
                names = tuple(part.name for part in composed)
                batch_norms = len([part for part in composed if part.kind is Kind.BATCH_NORM])
                left.append(Left(names, node.kind, stop.code, stop.reason, batch_norms))
        full = never_empty(self._graph)
        return Plan(
            (*constant_folds, *folds),
            tuple(left),
            tuple(self.steps.values()),
            self.foldings,
            self.affines,
            tuple(self.merges),
            tuple(self.apart),
            tuple(self.junctions),
            constant_norms=tuple(constant_norms),
            never_empty=frozenset(node for node in self.affines if node.inputs[0] in full),
        )

    def _where_affines_are(self) -> tuple[list[Fold], dict[AffineNode, list[AffineNode]]]:
        """The affines that went, and those that stay, each with itself and all that are part of it by now."""
        ends = where_affines_end(self._nodes, self.steps, self.junctions)
        merged = {node for junction in self.junctions for node in junction.gone}
        nodes = [node for node in self._nodes if node not in merged]
        left_with: dict[AffineNode, list[AffineNode]] = {node: [] for node in nodes if node not in self.steps}
        folds = []
        for node in nodes:
            stays_in = next((end for end in ends[node] if end in left_with and _is_composed(node, end)), None)
            if isinstance(stays_in, AffineNode):
                left_with[stays_in].append(node)
                continue
            step = self.steps[node]
            path = tuple(passed.name for passed in step.passed)
            targets = tuple(end.name for end in ends[node])
            folds.append(Fold((node.name,), node.kind, step.direction, path, targets))
        return folds, left_with

    def _is_worth_a_word(self, node: AffineNode) -> bool:
        """Whether a spelled-out affine that stays is listed.

        A number, or one a channel, next to a map, but no sign; elsewhere what does what a batch norm does.
        """
        affine = self.affines.get(node)
        if affine is None or affine.varying_axes > 1 or _is_sign(affine):
            return False
        readers = self.tensors.uses(self.tensors.root(node.outputs[0]))
        producer = self.tensors.root(node.inputs[0]).producer
        if isinstance(producer, MapNode) or any(isinstance(reader, MapNode) for reader in readers):
            return True
        spells_out = affine.scale.size > 1 and affine.shift.size > 1
        return spells_out and normalisation_before(self.tensors, node) is None

    def _why(self, node: AffineNode) -> Stop:
        """The reason that an affine stays."""
        if node.stop is not None:
            return node.stop
        if node in self._skipped:
            return _SKIPPED
        backward, forward = (self.stops.get((node, way)) for way in (Direction.BACKWARD, Direction.FORWARD))
        if backward is None or forward is None:
            message = f"'{node.name}' can still move after the search has ended"
            raise AssertionError(message)
        vague = backward.code in _SAYS_LITTLE and forward.code not in _SAYS_LITTLE
        code = forward.code if vague else backward.code
        return Stop(code, f"backward: {backward.reason}; forward: {forward.reason}")


def _is_composed(node: AffineNode, end: Node) -> bool:
    """Whether an affine is part of another that stays; a constant that took its shift is not one."""
    return node is end or not (isinstance(end, AffineNode) and varies_widely(end))


def _is_sign(affine: Affine) -> bool:
    return bool((np.abs(affine.scale) == 1).all() and not affine.shift.any())
