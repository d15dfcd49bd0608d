"""What a small file can unfold into: functions that call each other, and shapes that are put together from shapes.

Thirty functions that each call the next one twice are a billion nodes, and thirty Concat(q, q) a billion elements.
onnx's checker, shape inference and inliner, and the runtimes, expand all of it. So it is counted first, which takes one
pass: a function counts as what it calls, a vector as what it is made of.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import onnx

from bnfold.errors import UnsupportedModelError
from bnfold.onnx.proto.names import GraphLike, all_graphs, nested

_MOST_NODES = 1_000_000
_MOST_ELEMENTS = 1 << 22
_LONG_ENOUGH = 1 << 40  # to tell that it is too long
_DEEPEST = 100  # as far as onnx follows calls
_MOST_UNKNOWN = 1 << 20  # more than a hundred bytes each
_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Reshape", "Flatten", "Pad", "Resize", "OneHot"})
_FOLLOWED = frozenset({"Add", "Cast", "Concat", "Gather", "Mul", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze"})
_RANK = 64  # of what Shape gives

_Name = tuple[str, str]
_Functions = Mapping[_Name, onnx.FunctionProto]


def require_expandable(model: onnx.ModelProto, where: str) -> None:
    """Require that a model, with every call replaced by the body of its function, is of a size that can be looked at.

    Args:
        model: The model.
        where: What the sentence of an error starts with.

    Raises:
        UnsupportedModelError: A function calls itself, or there are too many calls, or too many levels of them.
    """
    functions = _functions(model)
    sizes: dict[_Name, int] = {}
    depths: dict[_Name, int] = {}
    for name in _callees_first(functions, where):
        depths[name] = 1 + max((depths[called] for called in _calls(functions[name], functions)), default=0)
        if depths[name] > _DEEPEST:
            raise UnsupportedModelError(f"{where}: its functions call each other more than {_DEEPEST} levels deep.")
        sizes[name] = _expanded(functions[name], sizes)
    found = sum(len(graph.node) for scope in (model.graph, *model.functions) for graph in nested(scope))
    unfolded = _expanded(model.graph, sizes)
    if max((unfolded, *sizes.values())) > max(_MOST_NODES, 4 * found):
        raise UnsupportedModelError(
            f"{where}: its functions call each other so often that {unfolded:.3g} nodes would come of {found}."
        )


def data_stays_small(model: onnx.ModelProto) -> bool:
    """Whether shape inference can follow the elements of all shapes without making vectors of absurd length."""
    functions = _functions(model)
    growths: dict[_Name, int] = {}
    lengths: list[int] = []
    for name in _callees_first(functions, "The model"):
        growths[name] = _longest(functions[name], growths, {}, lengths)
    _longest(model.graph, growths, {}, lengths)
    return sum(lengths) <= _MOST_ELEMENTS + 64 * len(lengths)


def may_make_long_vectors(model: onnx.ModelProto) -> bool:
    """Whether shape inference may come to long vectors: by an operator, or by many that follow those in the file."""
    scopes = [*all_graphs(model)]
    if any(node.op_type in _GROWING for scope in scopes for node in scope.node):
        return True
    longest = max((size for scope in scopes for size in _vector_lengths(scope)), default=0)
    return longest * sum(node.op_type in _FOLLOWED for scope in scopes for node in scope.node) > _MOST_UNKNOWN


def _vector_lengths(scope: GraphLike) -> Iterator[int]:
    """The lengths of the vectors that a graph or function holds, is given, or declares."""
    graph = scope if isinstance(scope, onnx.GraphProto) else onnx.GraphProto()
    held = (given.t for node in scope.node for given in node.attribute if given.HasField("t"))
    yield from (tensor.dims[0] for tensor in chain(graph.initializer, held) if len(tensor.dims) == 1)
    for value in chain(graph.input, scope.value_info):
        dims = value.type.tensor_type.shape.dim
        yield from (dim.dim_value for dim in dims[:1] if len(dims) == 1)


def vectors_stay_small(inferred: onnx.GraphProto) -> bool:
    """Whether shape inference can follow elements: it writes those that it does not know out, each as a size.

    Args:
        inferred: A graph without calls, with the shapes that are inferred without following elements.
    """
    lengths: dict[str, int] = {}
    total = 0
    for scope in nested(inferred):
        for value in (*scope.input, *scope.value_info, *scope.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and len(dims) < 2:
                lengths[value.name] = max((dim.dim_value for dim in dims), default=1)
        lengths |= {tensor.name: _elements(tensor) for tensor in scope.initializer if len(tensor.dims) < 2}
        for node in scope.node:
            if node.op_type in _FOLLOWED and all(name in lengths for name in node.input):
                total += sum(lengths.get(name, 0) for name in (*node.input, *node.output))
    return total <= _MOST_UNKNOWN


def _functions(model: onnx.ModelProto) -> dict[_Name, onnx.FunctionProto]:
    return {(function.domain, function.name): function for function in model.functions}


def _calls(scope: GraphLike, functions: Mapping[_Name, object]) -> Iterator[_Name]:
    for graph in nested(scope):
        for node in graph.node:
            if (node.domain, node.op_type) in functions:
                yield node.domain, node.op_type


def _callees_first(functions: _Functions, where: str) -> Iterator[_Name]:
    """The functions, each after those that it calls."""
    done: set[_Name] = set()
    for first in functions:
        path: dict[_Name, list[_Name]] = {first: [*_calls(functions[first], functions)]}
        while path:
            name, waiting = next(reversed(path.items()))
            called = waiting.pop() if waiting else None
            if called is None:
                if name not in done:
                    done.add(name)
                    yield name
                del path[name]
            elif called in path:
                raise UnsupportedModelError(f"{where}: the function {called[1]!r} calls itself.")
            elif called not in done:
                path[called] = [*_calls(functions[called], functions)]


def _expanded(scope: GraphLike, sizes: Mapping[_Name, int]) -> int:
    """How many nodes a graph or function has with every call expanded."""
    return sum(sizes.get((node.domain, node.op_type), 0) + 1 for graph in nested(scope) for node in graph.node)


def _longest(scope: GraphLike, growths: Mapping[_Name, int], outer: Mapping[str, int], lengths: list[int]) -> int:
    """The longest vector that a graph or function gives for inputs of at most one element, as far as data is followed.

    Args:
        scope: The graph.
        growths: The same of the functions that it calls: what they give is at most so much longer than their inputs.
        outer: The lengths of the values around it.
        lengths: Gets the length of every value.
    """
    known = dict(outer)
    if isinstance(scope, onnx.GraphProto):
        known |= {tensor.name: _elements(tensor) for tensor in scope.initializer}
    for node in scope.node:
        given = [known.get(name, 1) for name in node.input]
        inner = [_longest(graph, growths, known, lengths) for graph in _bodies(node)]
        length = max((1, *given, *inner))
        if node.op_type == "Concat":
            length = sum(given)
        elif node.op_type in ("Shape", "NonZero"):
            length = _RANK
        elif node.op_type == "Constant":
            length = max((_elements(attribute.t) for attribute in node.attribute), default=1)
        length = min(length * growths.get((node.domain, node.op_type), 1), _LONG_ENOUGH)
        known |= dict.fromkeys(node.output, length)
        lengths.append(length)
    outputs: Sequence[str] = [value if isinstance(value, str) else value.name for value in scope.output]
    return max((known.get(name, 1) for name in outputs), default=1)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _elements(tensor: onnx.TensorProto) -> int:
    """The elements of a tensor that shape inference would follow: it follows vectors and scalars of integers."""
    if len(tensor.dims) > 1 or tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return 1
    return max(1, *tensor.dims) if tensor.dims else 1
