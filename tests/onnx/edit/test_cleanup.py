"""Constants that a fold has released go, and nothing else."""

import numpy as np
from onnx_fold import batch_norm, fold, parse, random

from bnfold.onnx.edit.cleanup import remove_unused


def test_an_expression_goes_with_all_it_was_made_of() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      k1 = Reshape (k, s)
      k2 = Mul (k1, two)
      w = Identity (k2)
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    constants = {"k": random(12), "s": np.array([4, 3, 1, 1]), "two": np.array(2.0)}
    folded = fold(parse(text, **constants, **batch_norm(4)))
    assert len(folded.model.graph.node) == 1
    assert len(folded.model.graph.initializer) == 2


def test_what_is_left_of_an_expression_stays_whole() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[4,3,1,1] u)
    {
      k1 = Reshape (k, s)
      w = Mul (k1, two)
      u = Neg (k1)
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    constants = {"k": random(12), "s": np.array([4, 3, 1, 1]), "two": np.array(2.0)}
    folded = fold(parse(text, **constants, **batch_norm(4)))
    assert [node.op_type for node in folded.model.graph.node] == ["Reshape", "Neg", "Conv"]
    assert {"k", "s"} <= {tensor.name for tensor in folded.model.graph.initializer}
    assert "two" not in {tensor.name for tensor in folded.model.graph.initializer}


def test_an_activation_that_lost_its_shape_reader_is_no_business_of_a_fold() -> None:
    """The bias is expanded to the channels of an activation that nothing else reads."""
    text = """
    agraph (double[2,3,4,4] x, double[2,4,4,4] z) => (double[2,4,4,4] y)
    {
      sum = Add (z, z)
      s = Shape <start=1, end=2> (sum)
      bias = Expand (zero, s)
      c = Conv (x, w, bias)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(text, opset=18, w=random(4, 3, 1, 1), zero=np.zeros(1), **batch_norm(4)))
    assert folded.codes == []
    assert "Shape" not in {node.op_type for node in folded.model.graph.node}


def test_dead_nodes_of_the_original_stay() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      dead = Constant <value = double[2] {1.0, 2.0}> ()
      dead_too = Identity (dead)
      c = Conv (x, w)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert [node.op_type for node in folded.model.graph.node] == ["Constant", "Identity", "Conv"]


def test_nothing_released_nothing_removed() -> None:
    model = parse("agraph (double[N] x) => (double[N] y) { y = Neg (x) }", unread=random(3))
    before = model.SerializeToString()
    remove_unused(model, model.graph, [])
    assert model.SerializeToString() == before


def test_a_released_name_that_is_read_stays() -> None:
    model = parse("agraph (double[N] x) => (double[3] y) { y = Neg (read) }", read=random(3), unread=random(3))
    remove_unused(model, model.graph, [(model.graph, name) for name in ("read", "unread", "", "no such name")])
    assert [tensor.name for tensor in model.graph.initializer] == ["read"]
