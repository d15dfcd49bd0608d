"""Residual streams of any length as neutral graphs, to see how the work of the planner grows."""

from collections.abc import Callable

import numpy as np
from graphs import Builder, is_output

from bnfold.algebra.affine import Affine
from bnfold.graph import Graph, Op, OpNode, Signs, Value

NODES_A_BLOCK = 4


def add(builder: Builder, name: str, *inputs: Value) -> Value:
    """A sum."""
    y = Value(f"{name}.out", inputs[0].shape, "float64")
    builder.graph.add(
        OpNode(name=name, op_type="Add", inputs=inputs, outputs=(y,), op=Op.ADD, parameters=Signs((1,) * len(inputs)))
    )
    return y


def _relu(builder: Builder, x: Value, name: str) -> Value:
    y = Value(f"{name}.out", x.shape, "float64")
    builder.graph.add(OpNode(name=name, op_type="Relu", inputs=(x,), outputs=(y,), op=Op.RELU))
    return y


def pre_activation(nodes: int) -> Graph:
    """Each branch reads a value that goes on: nothing folds, and every reason has to be found."""
    builder = Builder()
    x = builder.conv(builder.input(), "stem")
    for index in range(nodes // NODES_A_BLOCK):
        y = _relu(builder, builder.batch_norm(x, f"bn{index}"), f"relu{index}")
        x = add(builder, f"add{index}", x, builder.conv(y, f"conv{index}"))
    is_output(x)
    return builder.graph


def post_activation(nodes: int) -> Graph:
    """Everything folds into the conv before it."""
    builder = Builder()
    x = builder.conv(builder.input(), "stem")
    for index in range(nodes // NODES_A_BLOCK):
        y = builder.batch_norm(builder.conv(x, f"conv{index}"), f"bn{index}")
        x = _relu(builder, add(builder, f"add{index}", x, y), f"relu{index}")
    is_output(x)
    return builder.graph


def shift_goes_down(nodes: int) -> Graph:
    """Gates keep every shift from going back; forward, each may go down the stream, whose end an output stops."""
    builder = Builder()
    x = builder.conv(builder.input(), "stem")
    for index in range(nodes // NODES_A_BLOCK):
        y = builder.opaque("Sigmoid", f"gate{index}", x)
        y = builder.batch_norm(y, f"bn{index}", affine=Affine(np.ones((1, 1, 1, 1)), builder.affine().shift))
        x = add(builder, f"add{index}", x, y)
        x = builder.identity(x, f"identity{index}")
    is_output(x)
    return builder.graph


def shift_arrives(nodes: int) -> Graph:
    """The same, but at the end a conv takes them all."""
    builder = Builder()
    x = builder.conv(builder.input(), "stem")
    for index in range(nodes // NODES_A_BLOCK):
        y = builder.opaque("Sigmoid", f"gate{index}", builder.input(f"x{index}"))
        y = builder.batch_norm(y, f"bn{index}", affine=Affine(np.ones((1, 1, 1, 1)), builder.affine().shift))
        x = add(builder, f"add{index}", x, y)
        x = builder.identity(x, f"identity{index}")
    is_output(builder.conv(x, "last"))
    return builder.graph


def backward_chain(nodes: int) -> Graph:
    """A tree of Adds: the scale of the last BN goes to every conv, over all that lies between."""
    builder = Builder()
    source = builder.input()
    x = builder.conv(source, "stem")
    for index in range(nodes // NODES_A_BLOCK):
        y = builder.batch_norm(builder.conv(source, f"conv{index}"), f"bn{index}")
        x = builder.identity(add(builder, f"add{index}", x, y), f"identity{index}")
    is_output(_relu(builder, builder.batch_norm(x, "last"), "relu"))
    return builder.graph


STREAMS: dict[str, Callable[[int], Graph]] = {
    "pre-activation": pre_activation,
    "post-activation": post_activation,
    "shift down the stream, in vain": shift_goes_down,
    "shift down the stream, into a conv": shift_arrives,
    "scale back to every branch": backward_chain,
}
