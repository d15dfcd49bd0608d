"""The links that a graph keeps between its nodes and its values."""

import numpy as np
from graphs import Builder

from bnfold.algebra.affine import Affine
from bnfold.graph import AffineNode, Graph, Kind, Node, Value
from bnfold.reasons import StopCode


def test_a_node_is_linked_to_its_values() -> None:
    graph, x, y, z = Graph(), Value("x"), Value("y"), Value("z")
    first = Node(name="first", op_type="Foo", inputs=(x,), outputs=(y,))
    second = Node(name="second", op_type="Foo", inputs=(y, x, y), outputs=(z,))
    graph.add(first)
    graph.add(second)
    assert graph.nodes == [first, second]
    assert (x.producer, y.producer, z.producer) == (None, first, second)
    assert x.uses == [first, second]
    assert y.uses == [second, second], "one entry for each use"
    assert z.uses == []


def test_affines_are_listed_in_order() -> None:
    build = Builder()
    x = build.batch_norm(build.input(), "first")
    x = build.relu(x, "relu")
    build.batch_norm(build.conv(x, "conv"), "second")
    assert [node.name for node in build.graph.affines] == ["first", "second"]


def test_nodes_and_values_are_themselves_only() -> None:
    """They are keys of dictionaries and linked in circles: equality by content would be wrong and endless."""
    affine = Affine(np.ones((1, 3)), np.zeros((1, 3)))
    pairs = [
        (Value("x"), Value("x")),
        (Node(name="n", op_type="Foo"), Node(name="n", op_type="Foo")),
        (
            AffineNode(name="n", op_type="BN", kind=Kind.BATCH_NORM, affine=affine),
            AffineNode(name="n", op_type="BN", kind=Kind.BATCH_NORM, affine=affine),
        ),
    ]
    for one, other in pairs:
        assert one != other
        assert len({one, other}) == 2


def test_a_value_without_a_producer_is_an_input_unless_it_says_otherwise() -> None:
    value = Value("x")
    assert value.source.code is StopCode.MODEL_INPUT
    assert value.observer is None
    assert value.uses == []
    assert value.uses is not Value("y").uses
