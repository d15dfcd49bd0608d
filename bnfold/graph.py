"""The neutral view of a network that plans are made on.

A front-end lifts its model into a `Graph`: values, and nodes of three kinds. It only classifies; what may move where
is decided by `bnfold.planning` with the table in `bnfold.rules`. Nothing here knows torch or onnx: each node carries a
`handle` that means something to its own front-end alone.

Constants are not values: they are inside the nodes (weights in a `LinearMap`, parameters in an `Affine`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import LinearMap, Window
from bnfold.reasons import Stop, StopCode


class Kind(StrEnum):
    """What an affine was in the model."""

    BATCH_NORM = "batch_norm"
    AFFINE = "affine"


class Op(StrEnum):
    """The operators that `bnfold.rules` has a row for; everything else is `OPAQUE`."""

    IDENTITY = "identity"
    TRANSPOSE = "transpose"
    RESHAPE = "reshape"
    CONCAT = "concat"
    PICK = "pick"
    GATHER = "gather"
    EXPAND = "expand"
    ADD = "add"
    MEAN = "mean"
    MUL = "mul"
    DIV = "div"
    AVERAGE = "average"
    SUM = "sum"
    MAXIMUM = "maximum"
    RELU = "relu"
    RESAMPLE = "resample"
    ZERO_PAD = "zero_pad"
    DEPTH_TO_SPACE = "depth_to_space"
    SPACE_TO_DEPTH = "space_to_depth"
    SCATTER = "scatter"
    CHOICE = "choice"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True)
class Permutation:
    """Transpose: output axis i is input axis `axes[i]`."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Concat along `axis`, counted from the left."""

    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Slice and Split: which elements of the input each output takes.

    Attributes:
        outputs: For each output, the axes that are cut, counted from the left, with the positions taken along each;
            None where they are not known.
    """

    outputs: tuple[Mapping[int, NDArray[np.int64] | None], ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Gather: `axis`, counted from the left, is replaced by the `rank` axes of the indices; `indices` if known."""

    axis: int
    rank: int
    indices: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Signs:
    """Add, Sub and Sum: what each input is multiplied by, 1 or -1."""

    signs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Along:
    """Pooling, reductions, resizing and padding: the axes, counted from the left, whose elements are mixed.

    Attributes:
        axes: The axes of the input.
        keep: Whether they are still there, perhaps with another size, in the output.
        counts: Why an average is not one of elements alone, such as "counts the zeros of its padding"; empty if it is.
        kernel: The size of the window of an average; empty if not every output is the same sum over such a window.
        window: How it slides; None likewise.
    """

    axes: frozenset[int]
    keep: bool = True
    counts: str = ""
    kernel: tuple[int, ...] = ()
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """DepthToSpace and SpaceToDepth.

    Attributes:
        size: The side of a block.
        depth_last: Whether the channel of the wider image varies fastest in the deeper one (mode DCR).
    """

    size: int
    depth_last: bool


@dataclass(frozen=True, slots=True)
class Scattered:
    """Scatter with addition: the inputs are the base and the updates, or the updates alone where the base is zero.

    Attributes:
        axes: The axes of the result along which the indices lead, counted from the left.
        leading: How many axes the updates have in the place of these, which are the first then; None if they have the
            axes of the result.
    """

    axes: frozenset[int]
    leading: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Max, Min and Where: each element of the result is that of one of the inputs.

    Attributes:
        ordered: Whether their order decides which, and not a condition beside them.
    """

    ordered: bool


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """An identity that is one of the casts to a wider element type and back: what comes out is rounded as before."""


Parameters = Permutation | Joined | Picked | Gathered | Signs | Along | Blocks | Scattered | Chosen | RoundTrip


@dataclass(frozen=True, slots=True)
class Reading:
    """A node that reads the shape or the element type of a value, and no element.

    Attributes:
        name: The name of the node.
        serves: The nodes that have constants made of what it reads, if nothing else is made of that; with them it goes.
    """

    name: str
    serves: "frozenset[Node]" = frozenset()


@dataclass(slots=True, eq=False)
class Value:
    """A tensor that flows between nodes.

    Attributes:
        name: Its name in the model.
        shape: None if the rank is unknown; each dimension a size, a symbol, or None.
        dtype: numpy's name of the element type, or "" if unknown.
        producer: The node that computes it, or None for an input.
        source: For a value without a producer: a clause saying what it is.
        uses: The nodes that read its elements, one entry for each use: `x + x` uses x twice. Reading the shape alone
            is no use.
        measured_by: What reads its shape or its element type, and no element.
        observer: Set if its elements are seen from outside the graph, and by what.
    """

    name: str
    shape: tuple[int | str | None, ...] | None = None
    dtype: str = ""
    producer: "Node | None" = None
    source: Stop = Stop(StopCode.MODEL_INPUT, "it is an input of the model")
    uses: list["Node"] = field(default_factory=list)
    measured_by: list[Reading] = field(default_factory=list)
    observer: Stop | None = None

    def size(self, axis: int) -> int | str | None:
        """The size of an axis (negative), as far as it is known."""
        return None if self.shape is None or len(self.shape) < -axis else self.shape[axis]


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """What all kinds of nodes have.

    Attributes:
        name: Unique in the graph; what reports show.
        op_type: The operator's name in the model.
        inputs: The values read, without constants; for a row of the table, those that it moves affines to.
        also_reads: Other values read, such as the shape that a Reshape is given.
        outputs: The values computed.
        handle: What the front-end needs to find the node again.
    """

    name: str
    op_type: str
    inputs: tuple[Value, ...] = ()
    also_reads: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    handle: object = None


@dataclass(slots=True, eq=False, kw_only=True)
class MapNode(Node):
    """A linear map of its one input; it can absorb affines."""

    linear: LinearMap


@dataclass(slots=True, eq=False, kw_only=True)
class AffineNode(Node):
    """A frozen linear transform of its one input, or a BN layer that is none.

    Attributes:
        kind: What it was in the model.
        affine: The transform, or None with the reason in `stop`.
        stop: Why the node must stay as it is, or None.
        operations: How many operations of the model it is: Mul and Add are two.
    """

    kind: Kind
    affine: Affine | None = None
    stop: Stop | None = None
    operations: int = 1

    @property
    def may_end_activation(self) -> bool:
        """Whether it is one factor behind a product, as the half of a Gelu is; what follows is no part of it."""
        product = self.inputs[0].producer
        while product is not None and is_identity(product):
            product = product.inputs[0].producer
        alone = self.affine is not None and self.affine.varying_axes == 0 and not self.affine.shift.any()
        return alone and isinstance(product, OpNode) and product.op is Op.MUL


@dataclass(slots=True, eq=False, kw_only=True)
class OpNode(Node):
    """Any other operator.

    Attributes:
        op: Which row of the table it has.
        parameters: What that row needs to know.
        stop: A more specific reason why nothing passes, or None.
    """

    op: Op = Op.OPAQUE
    parameters: Parameters | None = None
    stop: Stop | None = None


def is_identity(node: Node) -> bool:
    """Whether a node passes its input on as it is."""
    return isinstance(node, OpNode) and node.op is Op.IDENTITY


@dataclass(frozen=True, slots=True, eq=False)
class ConstantNorm:
    """A batch norm that is applied to a constant, as where weights are standardised: what it gives is another constant.

    Attributes:
        name: Its name.
        result: The name of what it gives.
        handle: What the front-end needs to find the node again.
    """

    name: str
    result: str
    handle: object


@dataclass(slots=True, eq=False)
class Graph:
    """A model without its constants.

    Attributes:
        nodes: Its nodes in topological order, those of nested graphs and functions among them.
        constant_norms: The batch norms that are no nodes of it, because constants are all that they read.
    """

    nodes: list[Node] = field(default_factory=list)
    constant_norms: list[ConstantNorm] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Appends a node and links its values to it."""
        self.nodes.append(node)
        for value in (*node.inputs, *node.also_reads):
            value.uses.append(node)
        for value in node.outputs:
            value.producer = node

    @property
    def affines(self) -> list[AffineNode]:
        """The affine nodes, in topological order."""
        return [node for node in self.nodes if isinstance(node, AffineNode)]
