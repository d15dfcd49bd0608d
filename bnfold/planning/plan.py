"""What is to be done to a model: the result of the search, carried out by a front-end, shown by reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import Folding
from bnfold.graph import AffineNode, ConstantNorm, Kind, MapNode, Node, Value
from bnfold.reasons import StopCode
from bnfold.text.tables import Block, as_html, as_text, plural

_SHOWN_NAMES = 6


class Leftover(StrEnum):
    """What becomes of the affines that stay."""

    CONV = "conv"
    MUL_ADD = "mul-add"
    KEEP = "keep"


class Direction(StrEnum):
    """Which way an affine went."""

    BACKWARD = "backward"
    FORWARD = "forward"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Fold:
    """An affine that ends up in the weights of its neighbours.

    Attributes:
        nodes: The name of the affine's node.
        kind: What it was in the model.
        direction: Backward, into what computes its input; forward, into what reads its output; both, with the scale
            backward and the shift forward.
        path: The names of the nodes it passes on the way, nearest first; of many shifts that go down one residual
            stream, each to where it meets an earlier one.
        targets: The names of the linear maps, or of larger constants, that hold it in the end.
    """

    nodes: tuple[str, ...]
    kind: Kind
    direction: Direction
    path: tuple[str, ...]
    targets: tuple[str, ...]

    def __str__(self) -> str:
        """Where it went, past what, and on which side: `bn -> relu -> conv (output)`."""
        sides = {Direction.BACKWARD: "output", Direction.FORWARD: "input", Direction.BOTH: "scale back, shift forward"}
        path = self.path if len(self.path) <= _SHOWN_NAMES else (_few(self.path),)
        return " -> ".join([*self.nodes, *path, f"{_few(self.targets)} ({sides[self.direction]})"])


class MergeKind(StrEnum):
    """How the operations stood that became one."""

    BRANCHES = "branches"
    CHAIN = "chain"


@dataclass(frozen=True, slots=True)
class Merge:
    """Branches of one value that became one map, or a map and the map behind it.

    Multiply-adds are counted for one position of the output (of the input, transposed); an affine counts one a
    channel, the identity none, and the additions are not counted.

    Attributes:
        nodes: The names of the maps, affines and pools that went into the target; they are gone.
        kind: Parallel branches, or two maps in a row.
        target: The name of the map or affine that stands for all of them.
        branches: How many branches there were, the target's and that of the identity among them; 1 for a chain.
        kernels: The spatial size of the kernel of each branch, empty for affines and matrix products, or of the two
            maps in a row.
        kernel: That of the target, as it is now.
        multiply_adds_before: Of all operations that became one.
        multiply_adds: Of the one.
        parameters_before: How many numbers they stored, folded affines being in weights and biases already.
        parameters: How many the one stores.
        batch_norms: How many of the nodes are batch norms.
    """

    nodes: tuple[str, ...]
    kind: MergeKind
    target: str
    branches: int
    kernels: tuple[tuple[int, ...], ...]
    kernel: tuple[int, ...]
    multiply_adds_before: int
    multiply_adds: int
    parameters_before: int
    parameters: int
    batch_norms: int

    def __str__(self) -> str:
        """What became what, and the multiply-adds and parameters before and after."""
        joint = " then " if self.kind is MergeKind.CHAIN else " + "
        kernels = joint.join(map(_kernel, self.kernels))
        return (
            f"{_few(self.nodes) or 'the identity'} -> {self.target}  ({kernels} -> {_kernel(self.kernel)};"
            f" {self.multiply_adds_before} -> {self.multiply_adds} multiply-adds,"
            f" {self.parameters_before} -> {self.parameters} parameters)"
        )


@dataclass(frozen=True, slots=True)
class Apart:
    """Branches of one value whose sum stays, and why.

    Attributes:
        nodes: The name of the node that adds them up, or of the two maps in a row.
        code: The reason, stable, for programs.
        reason: The reason, a sentence, for people.
    """

    nodes: tuple[str, ...]
    code: StopCode
    reason: str

    def __str__(self) -> str:
        """Which, and why."""
        return f"{', '.join(self.nodes)}  [{self.code}]  {self.reason}"


@dataclass(frozen=True, slots=True)
class Left:
    """An affine that stays, and why.

    Attributes:
        nodes: The name of its node, after those of the affines that were composed into it.
        kind: What it was in the model.
        code: The reason, stable, for programs.
        reason: The reason, a sentence, for people.
        batch_norms: How many of the nodes are batch norms; spelled-out affines may be composed into one.
        written: What it was written as, such as "a 1x1 depthwise Conv"; "" where it stays as it is.
    """

    nodes: tuple[str, ...]
    kind: Kind
    code: StopCode
    reason: str
    batch_norms: int
    written: str = ""

    def __str__(self) -> str:
        """Which, why, and what it became."""
        written = f"; written as {self.written}" if self.written else ""
        return f"{' + '.join(self.nodes)}  [{self.code}]  {self.reason}{written}"


@dataclass(frozen=True, slots=True)
class Step:
    """One affine that goes away, for the front-end that carries the plan out; steps count in their order.

    Its input and its output become one tensor. Going backward leaves that tensor with the value of the output, going
    forward with that of the input, going both ways with neither.

    Attributes:
        source: The node that goes away.
        direction: Where its affine goes.
        changed: Values, besides the affine's own, that are no longer what they were.
        passed: The nodes that it moves past, as far as `Fold.path` names them.
        targets: The maps or affines that take it.
    """

    source: AffineNode
    direction: Direction
    changed: tuple[Value, ...]
    passed: tuple[Node, ...]
    targets: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Junction:
    """Maps that become one, for the front-end that carries the plan out.

    The one is the target: its node stays and reads what it read, and the plan's `foldings` or `leftovers` have its new
    weights; a convolution may also have another window, kernel and number of groups.

    Attributes:
        target: The node that stays, for all of them.
        collapsed: Nodes that go away, in the order of the graph, each with the position of an input: that input and
            the output become one tensor, with the value of the output.
        bypassed: Nodes that added up more than is left of them: likewise, with the value of the input, which may have a
            smaller shape than the output.
        gone: Nodes that go away together with what they compute.
        changed: Values that are no longer what they were, besides those that the collapsed nodes read.
        reshaped: Those of them that have another shape, too, or may have.
        after: How many of the plan's steps come before.
    """

    target: MapNode | AffineNode
    collapsed: tuple[tuple[Node, int], ...]
    bypassed: tuple[tuple[Node, int], ...]
    gone: tuple[Node, ...]
    changed: tuple[Value, ...]
    reshaped: tuple[Value, ...]
    after: int


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What becomes of every affine of a model.

    Each batch norm is in exactly one entry of `folds`, `merges` or `left`; the target of a merge is in none of its
    nodes.

    Attributes:
        folds: The affines that end up in weights.
        left: The affines that stay, each with its reason; spelled-out ones only next to a linear map.
        steps: What has to be rewired, in order.
        foldings: The maps whose weights change, with what they absorb.
        leftovers: The affines that stay as an operation of their own, with what was composed into them.
        never_empty: Those of them whose input has elements along all axes but the batch, whenever the model runs.
        merges: The maps and affines that became one.
        apart: Those that could have, but for a reason.
        junctions: What has to be rewired for the merges, in order.
        constant_norms: The batch norms whose results become constants.
        assumptions: For a module: what the plan is right for only because the examples are as they are, in sentences.
    """

    folds: tuple[Fold, ...]
    left: tuple[Left, ...]
    steps: tuple[Step, ...] = field(repr=False)
    foldings: Mapping[MapNode, Folding] = field(repr=False)
    leftovers: Mapping[AffineNode, Affine] = field(repr=False)
    merges: tuple[Merge, ...] = ()
    apart: tuple[Apart, ...] = ()
    junctions: tuple[Junction, ...] = field(default=(), repr=False)
    constant_norms: tuple[ConstantNorm, ...] = field(default=(), repr=False)
    assumptions: tuple[str, ...] = ()
    never_empty: frozenset[AffineNode] = field(default=frozenset(), repr=False)

    @property
    def batch_norms(self) -> int:
        """How many batch norms the model had."""
        return self.batch_norms_folded + self.batch_norms_left

    @property
    def batch_norms_folded(self) -> int:
        """How many of them end up in weights: by themselves, or as a branch that was merged."""
        folded = len([fold for fold in self.folds if fold.kind is Kind.BATCH_NORM])
        return folded + sum(merge.batch_norms for merge in self.merges)

    @property
    def batch_norms_left(self) -> int:
        """How many of them stay."""
        return sum(left.batch_norms for left in self.left)

    def with_leftovers_as(self, form: Callable[[AffineNode, Affine], str]) -> "Plan":
        """The plan, with what each affine that stays is written as.

        Args:
            form: Says what a node is written as; "" where it stays as it is.
        """
        forms = {node.name: form(node, affine) for node, affine in self.leftovers.items()}
        left = (replace(entry, written=forms.get(entry.nodes[-1], "")) for entry in self.left)
        return replace(self, left=tuple(left))

    def to_dict(self) -> dict[str, object]:
        """What was folded and what was left, as JSON can hold it."""
        return {
            "folds": [{"nodes": list(fold.nodes), "targets": list(fold.targets)} for fold in self.folds],
            "left": [{"nodes": list(left.nodes), "code": left.code.value, "reason": left.reason} for left in self.left],
        }

    def headline(self) -> str:
        """How many batch norms there are, and what becomes of them."""
        counts = {
            what: sum(entry.kind is Kind.AFFINE for entry in entries)
            for what, entries in (("folded", self.folds), ("left", self.left))
        }
        affines = [f"{plural(count, 'spelled-out affine')} {what}" for what, count in counts.items() if count]
        more = f", and {', '.join(affines)}" if affines else ""
        if self.batch_norms == 0:
            return f"no BatchNorm in this model{more or ', nothing to fold'}"
        total = plural(self.batch_norms, "BatchNorm")
        if self.batch_norms_left == 0:
            return f"{total}: all folded{more}"
        return f"{total}: {self.batch_norms_folded} folded, {self.batch_norms_left} left{more}"

    def merge_headline(self) -> str:
        """How many branches became how many layers, and what that saves."""
        before = sum(merge.multiply_adds_before for merge in self.merges)
        after = sum(merge.multiply_adds for merge in self.merges)
        layers = plural(sum(len(merge.nodes) for merge in self.merges), "layer")
        targets = len({merge.target for merge in self.merges})
        return f"{layers} merged into {targets}, {before - after} of {before} multiply-adds per output position less"

    def summary(self) -> str:
        """Several lines: how many batch norms go, what is merged, and what stays with the reason."""
        return as_text(self.blocks())

    def blocks(self) -> list[Block]:
        """The lines of `summary`, with its tables as tables."""
        blocks: list[Block] = [self.headline()]
        blocks += [self.merge_headline()] if self.merges else []
        if self.left:
            rows = [
                (" + ".join(entry.nodes), entry.code.value, entry.written or "-", entry.reason) for entry in self.left
            ]
            blocks += ["", [("left", "code", "written as", "reason"), *rows]]
        return blocks

    def __repr__(self) -> str:
        return f"<Plan: {self.headline()}>"

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _kernel(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel)) or "1"
