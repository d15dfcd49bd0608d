"""New names never collide with names that are there, wherever they are."""

import numpy as np
import onnx
import pytest
from onnx_fold import batch_norm, fold, graphs, parse, random

from bnfold.onnx.proto.names import FreshNames


def all_names(model: onnx.ModelProto) -> list[str]:
    return [name for graph in graphs(model) for node in graph.node for name in (node.name, *node.output) if name]


@pytest.mark.parametrize("taken", ["x_folded", "x_folded_2"])
def test_colliding_weights(taken: str) -> None:
    """Weights called like the names that a fold would invent."""
    text = f"""
    agraph (double[N,3,4,4] i) => (double[N,4,4,4] y, double[N,4,4,4] z)
    {{
      [x] c = Conv (i, x)
      y = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      [x_bias] d = Conv (i, {taken})
      z = BatchNormalization (d, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    model = parse(text, x=random(4, 3, 1, 1), **{taken: random(4, 3, 1, 1, seed=5)}, **batch_norm(4))
    folded = fold(model)
    assert folded.codes == []
    names = [tensor.name for tensor in folded.model.graph.initializer]
    assert len(set(names)) == len(names) == 4


def test_a_number_that_makes_another_name() -> None:
    """`node_add_1` with a 0 behind it is `node_add_10`."""
    names = "node_add_1 node_add_10 node_add_1_folded node_add_1_folded_2 node_add_1_folded_3".split()
    chain = "\n".join(f"[{name}] {name} = Neg (x)" for name in names)
    outputs = ", ".join(f"double[N,3,4,4] {name}" for name in names)
    text = f"""
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, {outputs})
    {{
      {chain}
      c = Conv (x, w)
      node_add_1_a = Identity (c)
      y = BatchNormalization (node_add_1_a, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    values = [name for graph in graphs(folded.model) for node in graph.node for name in node.output]
    assert len(set(values)) == len(values)


def test_fresh_names_know_every_corner_of_a_model() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "f" : 1]>
    agraph (double[2] main_in, bool p) => (double[2] main_out) <double[2] init = {1.0, 2.0}, double[2] declared>
    {
      [main_node] value = f.block (main_in)
      main_out = If (p) <
        then_branch = t () => (double[2] inner_out) <double[2] inner_init = {1.0, 2.0}>
          { [inner_node] inner_value = Neg (value) inner_out = Add (inner_value, inner_init) },
        else_branch = e () => (double[2] other_out) { other_out = Neg (value) }>
    }
    <domain: "f", opset_import: ["" : 17]>
    block (function_in) => (function_out) { [function_node] function_out = Neg (function_in) }
    """
    names = FreshNames(parse(text))
    taken = "main_in main_out init declared main_node value inner_out inner_init inner_node inner_value other_out"
    for name in f"{taken} function_in function_out function_node".split():
        assert names.fresh(name) == f"{name}_2"
        assert names.fresh(name) == f"{name}_3"
    assert names.fresh("free") == "free"
    assert names.fresh("free") == "free_2"


def test_names_of_sparse_initializers_are_taken() -> None:
    model = parse("agraph (double[2] x) => (double[2] y) { y = Neg (x) }")
    values = onnx.numpy_helper.from_array(np.ones(1), "sparse")
    indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2]))
    assert FreshNames(model).fresh("sparse") == "sparse_2"


def test_nodes_without_names() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      c = Conv (x, w)
      b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      r = Relu (b)
      d = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
      y = Relu (d)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert folded.plan.folds[0].nodes == ("BatchNormalization(b)",)
    assert folded.plan.left[0].nodes == ("BatchNormalization(d)",)
    assert folded.plan.folds[0].targets == ("Conv(c)",)


def test_nodes_of_one_name_are_told_apart() -> None:
    text = """
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y)
    {
      [n] c = Conv (x, w)
      [n] b = BatchNormalization (c, bn_g, bn_b, bn_m, bn_v)
      [n] r = Relu (b)
      [n] d = BatchNormalization (r, bn_g, bn_b, bn_m, bn_v)
      [n] y = Relu (d)
    }
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    names = [*folded.plan.folds[0].nodes, *folded.plan.left[0].nodes, *folded.plan.folds[0].targets]
    assert len(set(names)) == 3
    assert [node.name for node in folded.model.graph.node if node.op_type == "Relu"] == ["n", "n"]


@pytest.mark.parametrize("before", ["d", "d_folded"])
def test_values_between_get_names_that_nothing_has(before: str) -> None:
    text = f"""
    agraph (double[N,3,4,4] x) => (double[N,4,4,4] y, double[N,3,4,4] c_folded)
    {{
      c_folded = Neg (x)
      c = Conv (x, w)
      {before} = Identity (c)
      y = BatchNormalization ({before}, bn_g, bn_b, bn_m, bn_v)
    }}
    """
    folded = fold(parse(text, w=random(4, 3, 1, 1), **batch_norm(4)))
    assert folded.codes == []
    assert len(set(all_names(folded.model))) == len(all_names(folded.model))
