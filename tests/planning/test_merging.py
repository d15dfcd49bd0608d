"""Kernels added up and put in a row against their definition in one dimension, and sums rewired against arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import Affine
from bnfold.algebra.joining import chain, total
from bnfold.algebra.kernels import Kernel, as_map, of_affine, of_map, of_pool
from bnfold.algebra.linear_map import Folding, LinearMap, Window
from bnfold.algebra.tensor import ArrayTensor
from bnfold.graph import Graph, MapNode, Node, Op, OpNode, Signs, Value
from bnfold.planning.merging.sums import Sum
from bnfold.planning.planner import plan
from bnfold.planning.tensors import Tensors
from bnfold.reasons import Stop, StopCode

CHANNELS = 4


def conv(draw_seed: int, taps: int, *, stride=1, dilation=1, before=0, after=0, groups=1, bias=True, out=CHANNELS):
    rng = np.random.default_rng(draw_seed)
    return LinearMap(
        weight=ArrayTensor(rng.normal(size=(out, CHANNELS // groups, taps))),
        bias=ArrayTensor(rng.normal(size=out)) if bias else None,
        groups=groups,
        output_axis=-2,
        input_axis=-2,
        window=Window((stride,), (dilation,), (before,), (after,)),
        partial_kernel="pads" if before or after else "",
    )


def run(linear: LinearMap, x: np.ndarray) -> np.ndarray:
    """A convolution of (channels, length), by its definition in the ONNX operator specification."""
    window = linear.window
    assert window is not None
    stride, dilation, before, after = (
        sizes[0] for sizes in (window.strides, window.dilations, window.before, window.after)
    )
    weight = linear.weight.read()
    padded = np.pad(x, ((0, 0), (before, after)))
    reach = dilation * (weight.shape[2] - 1) + 1
    length = (padded.shape[1] - reach) // stride + 1
    y = np.zeros((weight.shape[0], max(0, length)))
    for o in range(weight.shape[0]):
        group = o // (weight.shape[0] // linear.groups)
        for at in range(length):
            for i in range(weight.shape[1]):
                for k in range(weight.shape[2]):
                    y[o, at] += weight[o, i, k] * padded[group * weight.shape[1] + i, at * stride + k * dilation]
    return y if linear.bias is None else y + linear.bias.read()[:, None]


def kernel(linear: LinearMap) -> Kernel:
    found = of_map(Folding(linear))
    assert found is not None
    return found


convs = st.builds(
    conv,
    st.integers(0, 99),
    st.integers(1, 4),
    stride=st.sampled_from([1, 1, 2]),
    dilation=st.integers(1, 3),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)


@given(st.lists(convs, min_size=2, max_size=4), st.data())
@settings(deadline=None)
def test_a_sum_of_kernels_is_the_sum_of_their_maps(parts, data):
    signs = data.draw(st.lists(st.sampled_from([1, -1]), min_size=len(parts), max_size=len(parts)))
    x = np.random.default_rng(7).normal(size=(CHANNELS, 11))
    outputs = [run(part, x) for part in parts]
    sizes = [11] if data.draw(st.booleans()) else [None]
    merged = total([kernel(part) for part in parts], signs, sizes)
    if isinstance(merged, Stop):
        same_size = len({y.shape for y in outputs}) == 1 and len({part.window.strides for part in parts}) == 1
        assert not same_size or sizes == [None]
        return
    linear = as_map(merged, replace(parts[0], weight=ArrayTensor(np.zeros((4, 4, 1)))), -1)
    expected = -sum(sign * y for sign, y in zip(signs, outputs, strict=True))
    np.testing.assert_allclose(run(linear, x), expected, rtol=0, atol=1e-12)
    assert linear.weight.shape == linear.weight.read().shape
    assert merged.multiply_adds == np.prod(linear.weight.shape)
    assert bool(linear.partial_kernel) == any(linear.window.before + linear.window.after)


@given(convs, convs)
@settings(deadline=None, max_examples=300)
def test_a_chain_of_kernels_is_one_map_behind_the_other(first, second):
    x = np.random.default_rng(7).normal(size=(CHANNELS, 11))
    merged = chain(kernel(first), kernel(second))
    if isinstance(merged, Stop):
        pointwise = [part.weight.shape[2] == part.window.strides[0] == 1 for part in (first, second)]
        assert merged.code in (StopCode.NO_RULE, StopCode.PADDED_SHIFT)
        assert (
            not any(pointwise) if merged.code is StopCode.NO_RULE else any(second.window.before + second.window.after)
        )
        return
    linear = as_map(merged, first, 1)
    np.testing.assert_allclose(run(linear, x), run(second, run(first, x)), rtol=0, atol=1e-12)


def test_pools_affines_and_the_identity_are_kernels():
    x = np.random.default_rng(7).normal(size=(CHANNELS, 11))
    base = conv(0, 3, before=1, after=1)
    scale, shift = np.arange(1.0, 5.0), np.arange(4.0)
    affine = of_affine(Affine(scale.reshape(1, -1, 1), shift.reshape(1, -1, 1)), kernel(base))
    identity, pool = of_affine(None, kernel(base)), of_pool((3,), base.window, CHANNELS)
    assert affine is not None
    assert identity is not None
    assert (affine.cost, identity.cost, pool.cost) == (CHANNELS, 0, 3 * CHANNELS)
    merged = total([kernel(base), affine, identity, pool], [1, -1, 1, 1], [None])
    assert isinstance(merged, Kernel)
    padded = np.pad(x, ((0, 0), (1, 1)))
    mean = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    expected = run(base, x) - (scale[:, None] * x + shift[:, None]) + x + mean
    np.testing.assert_allclose(run(as_map(merged, base, 1), x), expected, rtol=0, atol=1e-12)


def test_an_affine_that_is_no_kernel():
    like = kernel(conv(0, 3, before=1, after=1))
    along_the_image = Affine(np.ones((1, 1, 11)) * np.arange(11), np.zeros((1, 1, 1)))
    assert of_affine(along_the_image, like) is None
    assert of_affine(None, kernel(conv(0, 3, out=2))) is None


def test_weights_of_two_types_stay_apart():
    one, other = conv(0, 3), conv(1, 1)
    narrow = replace(other, weight=ArrayTensor(other.weight.read().astype(np.float32)))
    for made in (total([kernel(one), kernel(narrow)], [1, 1], [None]), chain(kernel(narrow), kernel(one))):
        assert isinstance(made, Stop)
        assert made.code is StopCode.WEIGHT_DTYPE


def test_deep_sums_are_computed_on_the_way():
    """Each merge of a thousand could stand on the one before; Python's stack is not that deep."""
    graph = Graph()
    x = Value("x", (1, CHANNELS, 11), "float64")
    y = _conv_node(graph, x, "first", conv(0, 1))
    for index in range(1500):
        z = Value(f"identity{index}", x.shape, "float64")
        graph.add(OpNode(name=f"identity{index}", op_type="Identity", inputs=(y,), outputs=(z,), op=Op.IDENTITY))
        y = _add(graph, f"add{index}", (z, _conv_node(graph, x, f"conv{index}", conv(index, 1))), (1, 1))
    made = plan(graph, merge=True)
    assert len(made.merges) == 1500
    (folding,) = made.foldings.values()
    expected = sum(node.linear.weight.read() for node in graph.nodes if isinstance(node, MapNode))
    np.testing.assert_allclose(folding.weight(), expected, rtol=1e-12)


def _conv_node(graph: Graph, x: Value, name: str, linear: LinearMap) -> Value:
    y = Value(f"{name}.out", x.shape, "float64")
    graph.add(MapNode(name=name, op_type="Conv", inputs=(x,), outputs=(y,), linear=linear))
    return y


def _add(graph: Graph, name: str, inputs: tuple[Value, ...], signs: tuple[int, ...]) -> Value:
    y = Value(f"{name}.out", inputs[0].shape, "float64")
    graph.add(OpNode(name=name, op_type="Add", inputs=inputs, outputs=(y,), op=Op.ADD, parameters=Signs(signs)))
    return y


def _mean(graph: Graph, name: str, inputs: tuple[Value, ...]) -> Value:
    y = Value(f"{name}.out", inputs[0].shape, "float64")
    graph.add(OpNode(name=name, op_type="Mean", inputs=inputs, outputs=(y,), op=Op.MEAN))
    return y


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_sum_without_some_of_its_leaves(data):
    """The heir takes the value of all that go, and every result that is not said to change keeps its own."""
    graph, tensors = Graph(), Tensors()
    open_values = [Value(f"leaf{index}") for index in range(data.draw(st.integers(2, 7)))]
    numbers = {value: 10.0**index for index, value in enumerate(open_values)}
    inputs = dict(numbers)
    while len(open_values) > 1:
        count = min(len(open_values), data.draw(st.sampled_from([2, 2, 2, 3])))
        order = data.draw(st.permutations(open_values))
        name, operands = f"sum{len(graph.nodes)}", tuple(order[:count])
        if count == 2 and data.draw(st.booleans()):
            result = _mean(graph, name, operands)
        else:
            signs = tuple(data.draw(st.sampled_from([1, 1, -1])) for _ in range(count))
            result = _add(graph, name, operands, signs)
        open_values = [*order[count:], result]
    tree = Sum.at(graph.nodes[-1], tensors)
    assert tree is not None
    assert len(tree.leaves) == len(inputs)
    assert all(Sum.at(node, tensors) is None for node in graph.nodes[:-1])
    before = _evaluate(graph.nodes, inputs)
    whole = sum(leaf.factor * inputs[leaf.value] for leaf in tree.leaves)
    assert before[graph.nodes[-1].outputs[0]] == whole
    heir, *others = data.draw(st.permutations(tree.leaves))
    gone = others[: data.draw(st.integers(1, len(others)))]
    rewired = tree.without(gone, heir)
    if isinstance(rewired, Stop):
        assert rewired.code is StopCode.NO_RULE
        return
    after = dict(inputs)
    after[heir.value] = sum(leaf.factor * inputs[leaf.value] for leaf in (heir, *gone)) / rewired.factor
    left = dict(rewired.collapsed) | dict(rewired.bypassed)
    for node in graph.nodes:
        if node in rewired.gone:
            continue
        if node in left:
            after[node.outputs[0]] = after[node.inputs[left[node]]]
        else:
            after |= _evaluate([node], after)
        if node.outputs[0] not in rewired.changed:
            assert after[node.outputs[0]] == before[node.outputs[0]]
    assert after[graph.nodes[-1].outputs[0]] == whole


def _evaluate(nodes: list[Node], values: dict[Value, float]) -> dict[Value, float]:
    values = dict(values)
    for node in nodes:
        factors = (0.5, 0.5) if node.op is Op.MEAN else node.parameters.signs
        values[node.outputs[0]] = sum(by * values[value] for by, value in zip(factors, node.inputs, strict=True))
    return values


@pytest.mark.parametrize("merge", [True, False])
def test_planning_leaves_the_graph_alone(merge):
    graph = Graph()
    x = Value("x", (1, CHANNELS, 11), "float64")
    y = _conv_node(graph, x, "conv", conv(0, 3, before=1, after=1))
    z = _add(graph, "add", (y, x), (1, 1))
    made = plan(graph, merge=merge)
    assert [*x.uses] == [*graph.nodes]
    assert z.producer is graph.nodes[-1]
    assert len(made.junctions) == len(made.merges) == int(merge)
    assert graph.nodes[0].linear.window == Window((1,), (1,), (1,), (1,))
