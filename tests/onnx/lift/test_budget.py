"""Small files that ask for large work: constants within a budget, functions and shapes counted before they unfold."""

import time
import tracemalloc

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from bnfold.errors import UnsupportedModelError
from bnfold.onnx.file.load import from_proto
from bnfold.onnx.fold import inspect_onnx
from bnfold.onnx.lift import constants as constants_module
from bnfold.onnx.lift.budget import Budget
from bnfold.onnx.lift.check import check
from bnfold.onnx.lift.constants import Constants
from bnfold.onnx.proto.unfolding import (
    data_stays_small,
    may_make_long_vectors,
    require_expandable,
    vectors_stay_small,
)


def model(nodes, initializers=(), functions=(), output="y"):
    """A graph that ends in Relu, around some nodes."""
    graph = oh.make_graph(
        [*nodes, oh.make_node("Relu", ["x"], ["y"])],
        "g",
        [oh.make_tensor_value_info("x", 1, [1, 4])],
        [oh.make_tensor_value_info(output, 1, None if output != "y" else [1, 4])],
        list(initializers),
    )
    imports = [oh.make_opsetid("", 17), oh.make_opsetid("d", 1)]
    made = oh.make_model(graph, opset_imports=imports, ir_version=8)
    made.functions.extend(functions)
    return made


def found(proto, name):
    """What constant evaluation makes of a value, and how much it took."""
    return Constants(from_proto(proto), proto.graph, 17, {}).find(name)


def sizes(*values, name):
    return onh.from_array(np.array(values, np.int64), name)


def ones(elements, name="q0"):
    return onh.from_array(np.ones(elements, np.float32), name)


def chain(length):
    return [oh.make_node("Neg", [f"q{step}"], [f"q{step + 1}"]) for step in range(length)]


def diamonds(length):
    nodes = []
    for step in range(length):
        nodes.append(oh.make_node("Neg", [f"q{step}"], [f"n{step}"]))
        nodes.append(oh.make_node("Floor", [f"q{step}"], [f"f{step}"]))
        nodes.append(oh.make_node("Add", [f"n{step}", f"f{step}"], [f"q{step + 1}"]))
    return nodes


def filled(shape_name, output):
    return oh.make_node("ConstantOfShape", [shape_name], [output], value=onh.from_array(np.array([1], np.float32)))


BOMBS = {
    "constant of 2^28": ([filled("s", "c")], [sizes(2**28, name="s")]),
    "constant of 2^62": ([filled("s", "c")], [sizes(2**62, name="s")]),
    "expanded": ([oh.make_node("Expand", ["q0", "s"], ["c"])], [ones(1), sizes(2**28, name="s")]),
    "concatenated": ([oh.make_node("Concat", ["q0"] * 1000, ["c"], axis=0)], [ones(70_000)]),
    "doubled": (
        [oh.make_node("Concat", [f"q{step}"] * 2, [f"q{step + 1}"], axis=0) for step in range(40)]
        + [oh.make_node("Identity", ["q40"], ["c"])],
        [ones(2)],
    ),
    "outer product": ([oh.make_node("Add", ["q0", "r"], ["c"])], [ones((1, 20_000)), ones((20_000, 1), "r")]),
    "gathered": (
        [oh.make_node("Gather", ["q0", "i"], ["c"])],
        [ones((1, 1000)), onh.from_array(np.zeros(100_000, np.int64), "i")],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_constant_far_larger_than_the_model_is_not_evaluated(name):
    proto = model(*BOMBS[name])
    tracemalloc.start()
    try:
        assert found(proto, "c") is None
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("elements", [7, 70_000])
def test_diamonds_take_no_time_that_grows_with_their_number(elements, monkeypatch):
    runs = []
    real = constants_module.evaluate
    monkeypatch.setattr(constants_module, "evaluate", lambda *given: runs.append(1) or real(*given))
    value = found(model(diamonds(16), [ones(elements)]), "q16")
    if value is not None:
        value.read()
    assert len(runs) < 16 * 3 * 8


def test_a_long_chain_of_large_constants_takes_no_time_that_grows_with_its_square(monkeypatch):
    runs = []
    real = constants_module.evaluate
    monkeypatch.setattr(constants_module, "evaluate", lambda *given: runs.append(1) or real(*given))
    value = found(model(chain(100), [ones(70_000)]), "q100")
    assert value is not None
    assert np.array_equal(value.read(), np.ones(70_000))
    assert len(runs) < 1000


def test_a_weight_of_an_honest_model_is_evaluated_whatever_its_size():
    nodes = [
        oh.make_node("Cast", ["q0"], ["wide"], to=onnx.TensorProto.FLOAT),
        oh.make_node("Transpose", ["wide"], ["c"], perm=[1, 0]),
    ]
    weight = onh.from_array(np.ones((3000, 5000), np.float16), "q0")
    value = found(model(nodes, [weight]), "c")
    assert value is not None
    assert value.shape == (5000, 3000)


def test_a_budget_grows_with_the_model():
    assert Budget(10**9).most_nbytes > 2 * 10**9
    budget = Budget(0)
    assert budget.keep(budget.most_nbytes)
    assert not budget.keep(1)
    assert budget.spend(budget.most_nbytes)
    assert not budget.spend(10**12)


def function(name, nodes, inputs=("a",)):
    return oh.make_function("d", name, inputs, ["o"], nodes, [oh.make_opsetid("", 17), oh.make_opsetid("d", 1)])


def calls(depth, last):
    """Functions that each call the next one twice."""
    made = [
        function(
            f"F{level}",
            [
                oh.make_node(f"F{level + 1}", ["a"], ["t"], domain="d"),
                oh.make_node(f"F{level + 1}", ["t"], ["o"], domain="d"),
            ],
        )
        for level in range(depth)
    ]
    return [*made, function(f"F{depth}", [last])]


def called(functions):
    return model([oh.make_node("F0", ["x"], ["z"], domain="d")], functions=functions)


def test_functions_that_would_unfold_into_a_billion_nodes_are_refused():
    proto = called(calls(30, oh.make_node("Relu", ["a"], ["o"])))
    started = time.process_time()
    with pytest.raises(UnsupportedModelError, match=r"3\.22e\+09 nodes would come of 63"):
        inspect_onnx(from_proto(proto))
    assert time.process_time() - started < 2


def test_functions_that_unfold_into_some_thousands_are_not():
    require_expandable(called(calls(10, oh.make_node("Relu", ["a"], ["o"]))), "The model")


@pytest.mark.parametrize("depth", [101, 5000])
def test_functions_that_call_each_other_too_deep_are_refused(depth):
    functions = [function(f"F{at}", [oh.make_node(f"F{at + 1}", ["a"], ["o"], domain="d")]) for at in range(depth)]
    functions.append(function(f"F{depth}", [oh.make_node("Relu", ["a"], ["o"])]))
    with pytest.raises(UnsupportedModelError, match="more than 100 levels deep"):
        check(from_proto(called(functions)))
    check(from_proto(called(functions[-50:-1] + functions[-1:])))


@pytest.mark.parametrize("loop", [["F0"], ["F1", "F0"], ["F1", "F2", "F0"]])
def test_functions_that_call_themselves_are_refused(loop):
    functions = [function(f"F{at}", [oh.make_node(to, ["a"], ["o"], domain="d")]) for at, to in enumerate(loop)]
    with pytest.raises(UnsupportedModelError, match="calls itself"):
        check(from_proto(called(functions)))


def test_shapes_that_double_are_not_followed_by_shape_inference():
    nodes = [oh.make_node("Concat", [f"s{step}"] * 2, [f"s{step + 1}"], axis=0) for step in range(40)]
    assert not data_stays_small(model(nodes, [sizes(1, name="s0")]))
    inspect_onnx(from_proto(model(nodes, [sizes(1, name="s0")])))


def test_vectors_that_are_longer_than_the_file_are_not_followed_element_by_element():
    def concatenated(length, times):
        nodes = [
            oh.make_node("ConstantOfShape", ["s"], ["q"]),
            oh.make_node("Concat", ["q"] * times, ["c"], axis=0),
            oh.make_node("ReduceSum", ["c"], ["r"]),
        ]
        return model(nodes, [sizes(length, name="s")])

    for length, times, small in ((1 << 20, 100, False), (1 << 30, 1, False), (1000, 10, True)):
        proto = concatenated(length, times)
        assert may_make_long_vectors(proto)
        assert vectors_stay_small(onnx.shape_inference.infer_shapes(proto).graph) is small
        started = time.process_time()
        inspect_onnx(from_proto(proto))
        assert time.process_time() - started < 2


@pytest.mark.parametrize(("steps", "long"), [(60, True), (2, False)])
def test_many_steps_along_a_long_vector_are_not_followed_element_by_element(steps, long):
    proto = model(diamonds(steps), [ones(70_000)])
    assert may_make_long_vectors(proto) is long
    assert vectors_stay_small(onnx.shape_inference.infer_shapes(proto).graph) is not long


def test_shapes_that_double_in_functions_are_not_followed_either():
    doubling = calls(6, oh.make_node("Concat", ["a", "a"], ["o"], axis=0))
    assert not data_stays_small(called(doubling))
    assert data_stays_small(called(calls(6, oh.make_node("Identity", ["a"], ["o"]))))


def test_honest_shapes_are_followed():
    nodes = [
        oh.make_node("Shape", ["x"], ["s"]),
        *(oh.make_node("Concat", ["s", "s"], [f"c{at}"], axis=0) for at in range(1000)),
    ]
    assert data_stays_small(model(nodes))


WIDE = {
    "a row and a column in a row": "p = MatMul (u, w) a = Add (p, row) b = Mul (a, column) y = Add (b, p)",
    "a row and a column that meet": ("a = Mul (x, row) b = Mul (z, column) c = Mul (a, b) y = MatMul (c, square)"),
    "added": "a = Add (x, row) b = Add (z, column) c = Add (a, b) y = MatMul (c, square)",
}


@pytest.mark.parametrize("name", WIDE)
def test_affines_along_several_axes_are_not_written_out(name):
    size = 1 << 14
    text = f"""<ir_version: 8, opset_import: ["": 17]>
      g (float[{size},{size}] x, float[{size},{size}] z, float[{size},8] u) => (float[{size},C] y) {{ {WIDE[name]} }}"""
    proto = onnx.parser.parse_model(text)
    constants = {"row": (1, size), "column": (size, 1), "w": (8, size), "square": (size, 8)}
    proto.graph.initializer.extend(ones(shape, name) for name, shape in constants.items())
    tracemalloc.start()
    try:
        inspect_onnx(from_proto(proto))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
