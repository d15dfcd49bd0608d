"""Neutral graphs written by hand: a builder, what such a graph computes, and a plan carried out on it.

Every value has shape (2, 3, 3, 3): batch, channels, height and width. The three sizes are equal on purpose, so that
an axis that was guessed from its size can be the wrong one. All numbers are float64.

`evaluate` knows definitions only. `carry_out` rewires as the words of `bnfold.planning.plan` say: what is gone becomes
an identity, foldings replace weights, leftovers replace their affines. Neither shares code with the planner.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.tensor import ArrayTensor
from bnfold.graph import AffineNode, Graph, Kind, MapNode, Node, Op, OpNode, Value
from bnfold.planning.plan import Plan
from bnfold.reasons import Stop, StopCode

BATCH, SIZE = 2, 3
SHAPE = (BATCH, SIZE, SIZE, SIZE)
Function = Callable[..., np.ndarray]


@dataclass(slots=True)
class Builder:
    """Adds nodes to a graph, one line each; every method returns the value computed.

    Attributes:
        graph: What has been built.
        rng: Where weights come from.
        dtype: What values are called and weights stored in.
    """

    graph: Graph = field(default_factory=Graph)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    dtype: str = "float64"

    def input(self, name: str = "x") -> Value:
        """A value that nothing computes."""
        return Value(name, SHAPE, self.dtype)

    def conv(self, x: Value, name: str, *, kernel: int = 1, pads: int = 0, bias: bool = True, groups: int = 1) -> Value:
        """A convolution whose output has the size of its input: pads are zeros, or else the image is a torus."""
        weight = self.rng.normal(size=(SIZE, SIZE // groups, kernel, kernel)) / kernel
        linear = LinearMap(
            weight=ArrayTensor(weight.astype(self.dtype)),
            bias=ArrayTensor(self.rng.normal(size=SIZE).astype(self.dtype)) if bias else None,
            groups=groups,
            output_axis=-3,
            input_axis=-3,
            partial_kernel="pads with zeros" if pads else "",
        )
        room = (kernel // 2, (kernel - 1) // 2)

        def run(values: np.ndarray, map_: LinearMap) -> np.ndarray:
            padded = np.pad(values, ((0, 0), (0, 0), room, room), "constant" if pads else "wrap")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
            by_group = windows.reshape(BATCH, groups, SIZE // groups, SIZE, SIZE, kernel, kernel)
            weights = wide(map_.weight).reshape(groups, -1, SIZE // groups, kernel, kernel)
            y = np.einsum("ngihwkl,goikl->ngohw", by_group, weights).reshape(SHAPE)
            return y if map_.bias is None else y + wide(map_.bias).reshape(-1, 1, 1)

        return self.map(x, name, "Conv", linear, run)

    def matmul(self, x: Value, name: str, *, from_left: bool = False, bias: bool = False) -> Value:
        """x @ W, or W @ x: on the last axis, or the one before it."""
        weight = self.rng.normal(size=(SIZE, SIZE))
        axis = -2 if from_left else -1
        shape = (SIZE, 1) if from_left else (SIZE,)
        linear = LinearMap(
            weight=ArrayTensor(weight.astype(self.dtype)),
            bias=ArrayTensor(self.rng.normal(size=shape).astype(self.dtype)) if bias else None,
            out_first=from_left,
            output_axis=axis,
            input_axis=axis,
        )

        def run(values: np.ndarray, map_: LinearMap) -> np.ndarray:
            weights = wide(map_.weight)
            product = weights @ values if from_left else values @ weights
            return product if map_.bias is None else product + wide(map_.bias)

        return self.map(x, name, "MatMul", linear, run)

    def map(self, x: Value, name: str, op_type: str, linear: LinearMap, run: Function | None = None) -> Value:
        """Any linear map."""
        y = Value(f"{name}.out", SHAPE, self.dtype)
        self.graph.add(MapNode(name=name, op_type=op_type, inputs=(x,), outputs=(y,), linear=linear, handle=run))
        return y

    def batch_norm(
        self, x: Value, name: str, *, axis: int = 1, affine: Affine | None = None, stop: Stop | None = None
    ) -> Value:
        """A BN layer; with a stop it is lifted as one that defines no affine."""
        y = Value(f"{name}.out", SHAPE, self.dtype)
        drawn = affine or self.affine(axis)
        node = AffineNode(
            name=name,
            op_type="BatchNormalization",
            inputs=(x,),
            outputs=(y,),
            kind=Kind.BATCH_NORM,
            affine=None if stop else drawn,
            stop=stop,
            handle=drawn,
        )
        self.graph.add(node)
        return y

    def affine(self, axis: int = 1, *, shift: bool = True) -> Affine:
        """A scale and a shift along one axis."""
        shape = [1, 1, 1, 1]
        shape[axis] = SIZE
        scale = self.rng.uniform(0.3, 2, shape) * self.rng.choice([-1, 1], shape)
        return Affine(scale, self.rng.normal(size=shape) if shift else np.zeros(shape))

    def identity(self, x: Value, name: str) -> Value:
        """An operator that an affine moves past."""
        y = Value(f"{name}.out", SHAPE, self.dtype)
        node = OpNode(name=name, op_type="Identity", inputs=(x,), outputs=(y,), op=Op.IDENTITY, handle=lambda a: a)
        self.graph.add(node)
        return y

    def opaque(self, op_type: str, name: str, *inputs: Value, stop: Stop | None = None) -> Value:
        """A nonlinear function of its inputs, not symmetric in them, whatever it is called."""

        def run(*arrays: np.ndarray) -> np.ndarray:
            return np.tanh(sum((1 + position) * array for position, array in enumerate(arrays)))

        y = Value(f"{name}.out", SHAPE, self.dtype)
        self.graph.add(OpNode(name=name, op_type=op_type, inputs=inputs, outputs=(y,), stop=stop, handle=run))
        return y

    def relu(self, x: Value, name: str) -> Value:
        """An activation."""
        return self.opaque("Relu", name, x)


def is_output(*values: Value) -> None:
    """Makes values outputs of the model."""
    for value in values:
        value.observer = Stop(StopCode.MODEL_OUTPUT, "is an output of the model")


def is_captured(value: Value) -> None:
    """Lets a nested graph read a value."""
    value.observer = Stop(StopCode.CAPTURED, "is read inside a nested graph")


def wide(tensor: object) -> np.ndarray:
    """The values of a constant, in float64."""
    return tensor.read().astype(np.float64)  # type: ignore[attr-defined, no-any-return]


def evaluate(graph: Graph, inputs: Iterable[tuple[Value, np.ndarray]]) -> dict[Value, np.ndarray]:
    """What every value of a graph is, given its inputs."""
    values = dict(inputs)
    for node in graph.nodes:
        arrays = [values[value] for value in node.inputs]
        values[node.outputs[0]] = _compute(node, arrays)
    return values


def _compute(node: Node, arrays: list[np.ndarray]) -> np.ndarray:
    match node:
        case MapNode():
            return node.handle(arrays[0], node.linear)  # type: ignore[operator, no-any-return]
        case AffineNode():
            affine = node.affine or node.handle
            return affine.scale * arrays[0] + affine.shift  # type: ignore[attr-defined, no-any-return]
    return node.handle(*arrays)  # type: ignore[operator, no-any-return]


def carry_out(graph: Graph, plan: Plan) -> tuple[Graph, dict[Value, Value]]:
    """The graph that a plan makes, and for each old value the new one that stands where it stood.

    A value whose affine went forward does not keep its meaning: what stands there is what the affine read.
    """
    gone = {step.source for step in plan.steps}
    stands_for: dict[Value, Value] = {}
    new = Graph()

    def renewed(value: Value) -> Value:
        if value not in stands_for:
            stands_for[value] = replace(value, producer=None, uses=[])
        return stands_for[value]

    for node in graph.nodes:
        if node in gone:
            old, kept = node.outputs[0], renewed(node.inputs[0])
            stands_for[old] = kept
            kept.observer = kept.observer or old.observer
            continue
        inputs = tuple(renewed(value) for value in node.inputs)
        outputs = tuple(renewed(value) for value in node.outputs)
        changed = replace(node, inputs=inputs, outputs=outputs)
        if isinstance(changed, MapNode) and node in plan.foldings:
            folding = plan.foldings[node]  # type: ignore[index]
            bias = folding.bias()
            changed.linear = replace(
                changed.linear,
                weight=ArrayTensor(folding.weight()),
                bias=None if bias is None else ArrayTensor(bias),
                beta=1.0,
            )
        if isinstance(changed, AffineNode) and node in plan.leftovers:
            changed.affine = plan.leftovers[node]  # type: ignore[index]
        new.add(changed)
    return new, stands_for
