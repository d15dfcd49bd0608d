"""Folding small ONNX models in tests, with every promise about the result checked each time.

Models are written as text (`parse`), in float64 where values are compared: bnfold keeps the storage type of weights, so
original and folded model must then agree to 1e-10, and a wrong transform cannot hide in rounding.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper
from oracle import DoubleEvaluator, relative_error, without_functions

import bnfold
from bnfold.planning.plan import Plan

TOLERANCE = 1e-10
NOISE = 1e-15  # of the largest value of a model: what a difference of equal float64 values amounts to
SYMBOLIC_SIZE = 3
"""What a symbolic dimension of an input is when a model is run."""

NOT_EXACT = "the sums were not exact"
"""What the exact gate says of a region that it cannot decide."""

Graph = onnx.GraphProto | onnx.FunctionProto
Recorded = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Folded:
    """What came of a fold that kept all promises.

    Attributes:
        model: The folded model.
        plan: The plan that was carried out.
        original: The model that was folded.
    """

    model: onnx.ModelProto
    plan: Plan
    original: onnx.ModelProto

    @property
    def codes(self) -> list[str]:
        """Why each BN that is left stays, in order."""
        return [str(left.code) for left in self.plan.left]

    def count(self, op_type: str) -> int:
        """How many nodes of an operator there are, nested graphs and functions included."""
        return sum(node.op_type == op_type for graph in graphs(self.model) for node in graph.node)

    def node(self, name: str) -> onnx.NodeProto:
        """The node of that name."""
        return next(node for graph in graphs(self.model) for node in graph.node if node.name == name)

    def constant(self, node_name: str, position: int) -> np.ndarray:
        """The constant that a node reads at a position, an initializer or a Constant node of any graph."""
        return constant(self.model, self.node(node_name).input[position])


def parse(body: str, *, opset: int = 17, ir_version: int = 10, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from its text.

    Args:
        body: A graph in onnx's textual form, or a whole model with a header of its own.
        opset: The version of the default domain.
        ir_version: The version of the format.
        constants: Initializers of the main graph, by name.
    """
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    model = onnx.parser.parse_model(body if body.lstrip().startswith("<") else header + body)
    add_initializers(model.graph, constants)
    return model


def add_initializers(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> None:
    """Adds initializers to a graph."""
    graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())


def random(*shape: int, seed: int = 0, dtype: object = np.float64) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def batch_norm(
    channels: int, prefix: str = "bn", *, seed: int = 1, dtype: object = np.float64
) -> dict[str, np.ndarray]:
    """The parameters PREFIX_g, _b, _m, _v of a BN layer, none near its neutral value, some gammas negative."""
    draw = np.random.default_rng([seed, channels, *prefix.encode()])
    return {
        f"{prefix}_g": (draw.uniform(0.5, 2, channels) * draw.choice([-1, 1], channels)).astype(dtype),
        f"{prefix}_b": draw.uniform(0.1, 1, channels).astype(dtype),
        f"{prefix}_m": draw.uniform(-1, -0.1, channels).astype(dtype),
        f"{prefix}_v": draw.uniform(0.25, 4, channels).astype(dtype),
    }


def pure_scale(channels: int, prefix: str = "bn", *, seed: int = 1) -> dict[str, np.ndarray]:
    """BN parameters whose shift is exactly zero."""
    zeros = {f"{prefix}_b": np.zeros(channels), f"{prefix}_m": np.zeros(channels)}
    return {**batch_norm(channels, prefix, seed=seed), **zeros}


def scale_and_shift(
    parameters: Mapping[str, np.ndarray], prefix: str = "bn", *, epsilon: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """What a BN layer is at inference, by its definition, in float64; the format stores `epsilon` as a float32."""
    g, b, m, v = (parameters[f"{prefix}_{letter}"].astype(np.float64) for letter in "gbmv")
    scale = g / np.sqrt(v + float(np.float32(epsilon)))
    return scale, b - scale * m


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The value of an initializer or a Constant node of any graph."""
    for graph in graphs(model):
        for tensor in graph.initializer if isinstance(graph, onnx.GraphProto) else ():
            if tensor.name == name:
                return numpy_helper.to_array(tensor)
        for node in graph.node:
            if name in node.output and node.op_type == "Constant":
                return np.asarray(numpy_helper.to_array(node.attribute[0].t))
    raise AssertionError(f"'{name}' is no constant")


def graphs(model: onnx.ModelProto) -> Iterator[Graph]:
    """The main graph, the functions, and all graphs inside them."""
    for root in (model.graph, *model.functions):
        yield from nested(root)


def nested(graph: Graph) -> Iterator[Graph]:
    """A graph and those inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from nested(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def fold(
    model: onnx.ModelProto,
    *,
    compare: bool = True,
    seed: int = 0,
    feeds: Mapping[str, np.ndarray] | None = None,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    leftover: str = "conv",
    merge: bool = False,
    exactly: bool = False,
) -> Folded:
    """Folds a model and checks everything that holds for every fold.

    Args:
        model: A valid model.
        compare: Whether to run both models; off for those that onnx's reference evaluator cannot run.
        seed: Of the inputs that they are run on.
        feeds: The inputs, where they must not be random.
        skip: As for `bnfold.fold`.
        only: As for `bnfold.fold`.
        leftover: As for `bnfold.fold`.
        merge: As for `bnfold.fold`; off, so that what moves is not merged away.
        exactly: Whether the exact gate has to find every region equal, but for those whose sums it cannot make exact.
    """
    onnx.checker.check_model(model, full_check=True)
    before = as_bytes(model)
    result = bnfold.fold(model, skip=skip, only=only, leftover=leftover, merge=merge)
    assert as_bytes(model) == before, "the caller's model was changed"
    folded = result.model
    check_contract(model, folded, may_go=_MAY_GO | _MAY_MERGE if result.plan.merges else _MAY_GO)
    if compare:
        check_values(model, folded, feeds if feeds is not None else random_feeds(model, seed))
    if exactly:
        found = result.check()
        assert found.verdict == "pass" or found.unproved, found.reason
        others = [region for region in found.unproved if NOT_EXACT not in region.reason]
        assert not others or not _runtime_takes(model), found.reason
    if not (skip or only):
        again = bnfold.fold(folded, leftover=leftover, merge=merge)
        assert as_bytes(again.model) == as_bytes(folded), "a second fold changes the result"
        assert not again.plan.folds, "a second fold finds something to fold"
        assert not again.plan.merges, "a second fold finds something to merge"
    return Folded(folded, result.plan, model)


def to_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float32, in which a BN that stays may become a convolution."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for tensor in single.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return single


def as_bytes(model: onnx.ModelProto) -> bytes:
    """The model as it would be written."""
    return model.SerializeToString(deterministic=True)


_MAY_GO = frozenset(
    "BatchNormalization Constant Identity Cast CastLike Expand Reshape Transpose ConstantOfShape Shape Squeeze"
    " Unsqueeze Flatten Concat Slice Gather Add Sub Mul Div Neg Sqrt Pow Reciprocal ReduceSum ReduceL2 Where"
    " Equal Tile QuantizeLinear DequantizeLinear Scaler".split()
)
"""BN, other affines, and what constants are made of."""

_MAY_MERGE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Sum", "Mean", "AveragePool", "Dropout"})
"""What branches are made of; the one that stands for all may get other attributes."""


def check_contract(original: onnx.ModelProto, folded: onnx.ModelProto, *, may_go: frozenset[str] = _MAY_GO) -> None:
    """Asserts what holds for the result of every fold without running it."""
    onnx.checker.check_model(folded, full_check=True)
    _check_interface(original, folded)
    _check_declarations(original, folded)
    _check_nodes(original, folded, may_go)
    for graph in (folded.graph, *folded.functions):
        _check_names_resolve(graph, frozenset())
    _check_value_info(original, folded)
    _check_constants(original, folded)


def _check_interface(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    def inputs(model: onnx.ModelProto) -> list[bytes]:
        # Before IR version 4 every initializer is listed as an input.
        listed = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else ()
        return [value.SerializeToString() for value in model.graph.input if value.name not in listed]

    assert inputs(original) == inputs(folded), "the inputs changed"
    outputs = [[value.SerializeToString() for value in model.graph.output] for model in (original, folded)]
    assert outputs[0] == outputs[1], "the outputs changed"
    if folded.ir_version < 4:
        listed = [value.name for value in folded.graph.input]
        assert {tensor.name for tensor in folded.graph.initializer} <= set(listed)
        assert len(set(listed)) == len(listed)


def _check_declarations(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(original, field) == getattr(folded, field), f"{field} changed"
    assert list(original.opset_import) == list(folded.opset_import)
    assert list(original.metadata_props) == list(folded.metadata_props)
    assert original.graph.name == folded.graph.name
    assert original.graph.doc_string == folded.graph.doc_string
    assert list(original.graph.metadata_props) == list(folded.graph.metadata_props)
    assert list(original.graph.sparse_initializer) == list(folded.graph.sparse_initializer)


def _check_nodes(original: onnx.ModelProto, folded: onnx.ModelProto, may_go: frozenset[str]) -> None:
    """Nodes that a fold does not touch keep name, operator, attributes and doc string; names stay unique."""
    kept = {_key(function): function for function in folded.functions}
    roots = [(original.graph, folded.graph)]
    roots += [(function, kept[_key(function)]) for function in original.functions if _key(function) in kept]
    for old_root, new_root in roots:
        old = Counter(_description(node) for graph in nested(old_root) for node in graph.node)
        new = Counter(_description(node) for graph in nested(new_root) for node in graph.node)
        known = {_description(node) for node in _made_of_constants(old_root)}
        for description in old - new:
            allowed = description[0] in may_go or description in known or _is_call(original, description)
            assert allowed, f"{description} is gone"
    names = Counter(node.name for graph in graphs(folded) for node in graph.node if node.name)
    twice = {name for name, count in names.items() if count > 1}
    names = Counter(node.name for graph in graphs(original) for node in graph.node if node.name)
    assert all(names[name] > 1 for name in twice), f"node names used twice: {twice}"


def _made_of_constants(graph: Graph) -> Iterator[onnx.NodeProto]:
    """The nodes that read constants alone."""
    known = {tensor.name for tensor in graph.initializer} if isinstance(graph, onnx.GraphProto) else set()
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and known.issuperset(node.input)):
            known.update(node.output)
            yield node


def _key(function: onnx.FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload


def _is_call(model: onnx.ModelProto, description: tuple[str, str, str, bytes]) -> bool:
    return any((function.name, function.domain) == description[:2] for function in model.functions)


def _description(node: onnx.NodeProto) -> tuple[str, str, str, bytes]:
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    del bare.input[:], bare.output[:]
    for index in reversed(range(len(bare.attribute))):
        attribute = bare.attribute[index]
        # A fold sets beta to one; nested graphs are compared on their own.
        if (node.op_type == "Gemm" and attribute.name == "beta") or attribute.HasField("g") or attribute.graphs:
            del bare.attribute[index]
    return node.op_type, node.domain, node.name, bare.SerializeToString(deterministic=True)


def _check_names_resolve(graph: Graph, outer: frozenset[str]) -> None:
    """Every name that is read is known where it is read, and no name is computed twice."""
    known = set(_input_names(graph))
    if isinstance(graph, onnx.GraphProto):
        known.update(tensor.name for tensor in graph.initializer)
        known.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        for name in filter(None, node.input):
            assert name in known or name in outer, f"'{name}', read by {node.op_type} '{node.name}', dangles"
        for inner in subgraphs(node):
            _check_names_resolve(inner, outer | known)
        for name in filter(None, node.output):
            assert name not in known, f"'{name}' is computed twice"
            known.add(name)
    for name in _output_names(graph):
        assert name in known or name in outer, f"the output '{name}' dangles"


def _check_value_info(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Declarations are about values that exist, one each, and not about inputs and outputs that declare themselves."""
    before = {value.name for graph in graphs(original) for value in graph.value_info}
    for graph in graphs(folded):
        names = [value.name for value in graph.value_info]
        assert len(set(names)) == len(names), f"declared twice: {names}"
        computed = {name for node in graph.node for name in node.output}
        if isinstance(graph, onnx.GraphProto):
            computed |= {tensor.name for tensor in graph.initializer}
            annotated = {item.tensor_name for item in graph.quantization_annotation}
            assert annotated <= computed | set(_input_names(graph)), f"annotations of {annotated - computed}"
        ends = {*_input_names(graph), *_output_names(graph)}
        for name in names:
            assert name in computed or name in ends or name in before - _all_values(original), f"'{name}' is declared"
            assert name not in ends or name in before, f"'{name}' is declared twice"


def _all_values(model: onnx.ModelProto) -> set[str]:
    names = {name for graph in graphs(model) for node in graph.node for name in node.output}
    for graph in graphs(model):
        names.update(_input_names(graph))
        if isinstance(graph, onnx.GraphProto):
            names.update(tensor.name for tensor in graph.initializer)
    return names


def _check_constants(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Initializers and Constant nodes without a reader are those that had none before, and those are all there."""
    old, new = _unread(original), _unread(folded)
    assert set(new) <= set(old), f"left without a reader: {set(new) - set(old)}"
    for name in old:
        assert name in new, f"'{name}', which nothing read before, is gone"


def _unread(model: onnx.ModelProto) -> list[str]:
    found = []
    for place, root in enumerate((model.graph, *model.functions)):
        for path, graph in enumerate(nested(root)):
            read = {name for inner in nested(graph) for node in inner.node for name in node.input}
            read.update(name for inner in nested(graph) for name in _output_names(inner))
            made = [name for node in graph.node if node.op_type == "Constant" for name in node.output]
            if isinstance(graph, onnx.GraphProto):
                inputs = set(_input_names(graph))
                # From IR version 4 an initializer that is an input belongs to the interface.
                interface = inputs if model.ir_version >= 4 else set()
                made += [tensor.name for tensor in graph.initializer if tensor.name not in interface]
            found += [f"{place}/{path}/{name}" for name in made if name not in read]
    return found


def _input_names(graph: Graph) -> list[str]:
    return list(graph.input) if isinstance(graph, onnx.FunctionProto) else [value.name for value in graph.input]


def _output_names(graph: Graph) -> list[str]:
    return list(graph.output) if isinstance(graph, onnx.FunctionProto) else [value.name for value in graph.output]


class _Recorder(DoubleEvaluator):
    """Keeps every value that is computed, those of nested graphs in each of their runs."""

    recorded: Recorded

    def run(self, output_names: object, feed_inputs: object, **options: object) -> object:
        options.pop("intermediate", None)
        results = super().run(None, feed_inputs, **options, intermediate=True)
        own = {name for node in self.nodes_ for name in node.output}
        for name in own - {""}:
            if isinstance(results.get(name), np.ndarray | np.generic):
                type(self).recorded[name].append(np.asarray(results[name]))
        return [results[name] for name in output_names or self.output_names]


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Recorded]:
    """The outputs of a model, and every value computed on the way, in the order of the runs."""
    recorder = type("Recorder", (_Recorder,), {"recorded": defaultdict(list)})
    # The evaluator knows neither defaults of a function's attributes nor functions in any order.
    evaluator = recorder(without_functions(model, convert_version=True) if model.functions else model)
    outputs = evaluator.run(None, dict(feeds))
    return dict(zip(evaluator.output_names, outputs, strict=True)), recorder.recorded


def run_unoptimised(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of a model as onnxruntime computes it without optimisations of its own."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def _runtime_takes(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime runs a model: a rare random one has what the standard allows and it has no kernel for."""
    try:
        run_unoptimised(model, random_feeds(model))
    except Exception as error:  # noqa: BLE001 - a runtime raises what it likes
        return not any(text in str(error) for text in ("KernelInfoType", "NOT_IMPLEMENTED", "ScalesValidation"))
    return True


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: normal numbers, true, and small integers."""
    draw = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in defaults:
            continue
        tensor_type = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else SYMBOLIC_SIZE for dim in tensor_type.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        if dtype == np.bool_:
            feeds[value.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            feeds[value.name] = draw.integers(1, 4, shape).astype(dtype)
        else:
            feeds[value.name] = draw.standard_normal(shape).astype(dtype)
    return feeds


def check_values(
    original: onnx.ModelProto, folded: onnx.ModelProto, feeds: Mapping[str, np.ndarray], tolerance: float = TOLERANCE
) -> None:
    """Asserts that the outputs agree, and that every name that both models compute still means the same value.

    What cancels out exactly is rounding noise in both: it is compared in units of the values that it came from.
    """
    expected, all_expected = run(original, feeds)
    actual, all_actual = run(folded, feeds)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        error = relative_error(np.asarray(actual[name]), np.asarray(value))
        assert error < tolerance, f"output '{name}' is off by {error:.3g}"
    floats = [one[np.isfinite(one)] for runs in all_expected.values() for one in runs if _is_float(one)]
    largest = max((float(np.abs(one).max(initial=0)) for one in floats), default=0)
    for name in all_expected.keys() & all_actual.keys():
        # A function that was inlined runs under other names; what remains is compared run by run.
        if len(all_expected[name]) == len(all_actual[name]):
            for one, other in zip(all_actual[name], all_expected[name], strict=True):
                error = relative_error(one, other)
                noise = _is_float(other) and one.shape == other.shape and np.allclose(one, other, 0, NOISE * largest)
                assert error < tolerance or noise, f"'{name}' is no longer what it was, off by {error:.3g}"


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind == "f" and value.size > 0
