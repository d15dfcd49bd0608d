"""What is known about a graph before it runs: initializers, Constant nodes, and expressions made of them.

Exporters write constants in many ways: a missing bias as Expand(CastLike(Constant), Shape(weight)), a shared weight as
Identity(initializer), a transposed one as Transpose(initializer). Such an expression is evaluated node by node, and
only when something asks for it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
from onnx import helper

from bnfold.algebra.rounding import Array, DType
from bnfold.algebra.tensor import ArrayTensor, RowwiseTensor, rows_of
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.budget import Budget
from bnfold.onnx.lift.types import ValueTypes, numpy_dtype, shape_in
from bnfold.onnx.proto.evaluation import evaluate, normalises
from bnfold.onnx.proto.names import (
    DEFAULT_DOMAINS,
    GraphLike,
    find_attribute,
    int_attribute,
    is_standard,
    string_attribute,
)

_PRODUCTS = ("MatMul", "Gemm", "Einsum")
EXPRESSIONS = frozenset(
    "Identity Cast CastLike Expand Reshape Transpose ConstantOfShape Shape Squeeze Unsqueeze Flatten Concat Slice"
    " Gather GatherElements ScatterElements ScatterND Tile Pad Trilu Add Sub Mul Div Neg Abs Sign Sqrt Pow Reciprocal"
    " Exp Log Sigmoid Tanh Softplus Softmax Relu Clip Round Floor Ceil Mod Max Min Sum Mean Where Equal Greater"
    " GreaterOrEqual Less LessOrEqual And Or Not QuantizeLinear DequantizeLinear ReduceSum ReduceMean ReduceL1"
    " ReduceL2 ReduceMax ReduceMin ReduceProd ReduceSumSquare BatchNormalization".split()
).union(_PRODUCTS)
"""The operators of constant expressions: deterministic, and cheap beside the weights that they make."""
_KEPT_ELEMENTS = 1 << 16
"""Larger results are computed again when they are read, not kept,"""
_LOW_COST = 8
"""unless that takes more than so many times their size."""
_EVALUATION_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What is raised of an expression that makes no sense."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant(RowwiseTensor):
    """A constant of a graph; a `bnfold.algebra.tensor.Tensor`.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        overridable: Whether it is only the default of a graph input, which a caller may override.
        cost_nbytes: What has to be gone through to compute it when it is read; 0 if it only lies somewhere.
    """

    shape: tuple[int, ...]
    dtype: DType
    _read: Callable[[], Array]
    overridable: bool = False
    cost_nbytes: int = 0
    _read_rows: Callable[[int], Iterator[Array]] | None = None

    def read(self) -> Array:
        """The values."""
        return self._read()

    def read_rows(self, count: int) -> Iterator[Array]:
        """See `bnfold.algebra.tensor.RowwiseTensor`."""
        if self._read_rows is not None:
            return self._read_rows(count)
        return rows_of(ArrayTensor(self.read()), count)

    @property
    def nbytes(self) -> int:
        """The size of the values."""
        return prod(self.shape) * self.dtype.itemsize


class Constants:
    """The constants of one graph, with those of the graphs around it.

    Args:
        model: Where the bytes of large tensors are.
        graph: The graph or function.
        opset: The version of the default domain that its nodes are written in.
        types: What is known about its values.
        outer: The constants of the graph around a nested one.
        budget: What may be evaluated; that of the graph around it, or a new one, if left out.
    """

    def __init__(
        self,
        model: OnnxModel,
        graph: GraphLike,
        opset: int,
        types: ValueTypes,
        outer: "Constants | None" = None,
        budget: Budget | None = None,
    ) -> None:
        self.model = model
        self.budget: Budget = (outer.budget if outer else None) or budget or Budget(model.nbytes)
        self.opset = opset
        self._types = types
        self._outer = outer
        self._found: dict[str, Constant | None] = {}
        self._is_constant: dict[str, bool] = {}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._sparse: set[str] = set()
        if isinstance(graph, onnx.GraphProto):
            self._initializers = {tensor.name: tensor for tensor in graph.initializer}
            self._sparse = {sparse.values.name for sparse in graph.sparse_initializer}
            self._inputs = {value.name for value in graph.input}
        else:
            self._inputs = set(graph.input)

    def is_constant(self, name: str) -> bool:
        """Whether a value is known before the graph runs; nothing is computed to find out."""
        if name in self._is_constant:
            return self._is_constant[name]
        for part in self._inputs_first(name, self._is_constant):
            self._is_constant[part] = self._follows_from_constants(part)
        return self._is_constant[name]

    def find(self, name: str) -> Constant | None:
        """The constant of that name, or None if it is none or cannot be computed here."""
        if name in self._found or not self.is_constant(name):
            return self._found.get(name)
        for part in self._inputs_first(name, self._found):
            self._found[part] = self._resolve(part) if self.is_constant(part) else None
        return self._found[name]

    def _inputs_first(self, name: str, known: Mapping[str, object]) -> Iterator[str]:
        """The names of an expression that are not known yet, inputs before results, however long the chain is."""
        waiting = [name]
        while waiting:
            top = waiting[-1]
            if top in known:
                waiting.pop()
                continue
            node = None if top in self._initializers else self._producers.get(top)
            inputs = node.input if node is not None and is_standard(node, *EXPRESSIONS) else ()
            unknown = [part for part in inputs if part and part not in known]
            if unknown:
                waiting += unknown
            else:
                yield waiting.pop()

    def type_of(self, name: str) -> tuple[tuple[int, ...], DType] | None:
        """The shape and element type of a constant, None if they are not known; it is computed only if need be."""
        shape, dtype = self._types.get(name, (None, ""))
        sizes = tuple(size for size in shape or () if isinstance(size, int))
        if shape is not None and len(sizes) == len(shape) and dtype:
            return sizes, np.dtype(dtype)
        found = self.find(name)
        return None if found is None else (found.shape, found.dtype)

    def why_unknown(self, name: str) -> str:
        """Why there is no constant of that name for `find`, in words that follow it."""
        if not self.is_constant(name):
            return "is not a constant"
        if not self._comes_from_sparse(name):
            return "is a constant that cannot be computed here"
        what = "comes from a sparse tensor" if self.producer(name) else "is a sparse initializer"
        return f"{what}, which a fold would make dense"

    def _comes_from_sparse(self, name: str) -> bool:
        """Whether a value is sparse, or cannot be computed because of one that is: such a one has no array here."""
        waiting, seen = [name], {""}
        while waiting:
            part = waiting.pop()
            if part in seen or self.find(part) is not None:
                continue
            seen.add(part)
            node = self._producers.get(part)
            if part in self._sparse or (node is not None and find_attribute(node, "sparse_value") is not None):
                return True
            if node is not None:
                waiting += node.input
            elif part not in self._initializers and self._outer is not None and self._outer._comes_from_sparse(part):
                return True
        return False

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value of this graph or of one around it."""
        if name in self._producers or self._outer is None:
            return self._producers.get(name)
        return self._outer.producer(name)

    def _follows_from_constants(self, name: str) -> bool:
        if name in self._initializers or name in self._sparse:
            return True
        if not name or name in self._inputs:
            return False
        node = self._producers.get(name)
        if node is None:
            return self._outer is not None and self._outer.is_constant(name)
        if node.domain not in DEFAULT_DOMAINS or any(given.ref_attr_name for given in node.attribute):
            return False
        match node.op_type:
            case "Constant":
                return True
            case "Shape":
                return self._known_shape(node) is not None
            case "CastLike":
                return self.is_constant(node.input[0]) and bool(self._element_type(node.input[1]))
            case "BatchNormalization" if name != node.output[0] or not normalises(node, self.opset):
                return False
        return node.op_type in EXPRESSIONS and all(self.is_constant(part) for part in node.input if part)

    def _resolve(self, name: str) -> Constant | None:
        if name in self._initializers:
            overridable = name in self._inputs and self.model.proto.ir_version >= 4
            return self._from_tensor(self._initializers[name], overridable=overridable)
        node = self._producers.get(name)
        if node is None:
            return None if self._outer is None else self._outer.find(name)
        match node.op_type:
            case "Constant":
                return self._from_constant(node)
            case "Shape":
                shape = self._known_shape(node)
                return None if shape is None else _kept(np.array(shape, dtype=np.int64))
            case "CastLike":
                return self._cast_like(node)
        return self._from_expression(node)

    def _from_tensor(self, tensor: onnx.TensorProto, *, overridable: bool = False) -> Constant | None:
        dtype = numpy_dtype(tensor.data_type)
        if dtype is None:
            return None
        model = self.model
        return Constant(
            tuple(tensor.dims),
            dtype,
            lambda: model.array(tensor),
            overridable,
            _read_rows=lambda count: model.store.rows(tensor, count),
        )

    def _from_constant(self, node: onnx.NodeProto) -> Constant | None:
        for given in node.attribute:
            if given.name == "value":
                return self._from_tensor(given.t)
            if given.name in ("value_float", "value_floats"):
                return _kept(np.array(helper.get_attribute_value(given), dtype=np.float32))
            if given.name in ("value_int", "value_ints"):
                return _kept(np.array(helper.get_attribute_value(given), dtype=np.int64))
        return None

    def _from_expression(self, node: onnx.NodeProto) -> Constant | None:
        inputs = [self.find(name) for name in node.input]
        if any(found is None and name for name, found in zip(node.input, inputs, strict=True)):
            return None
        overridable = any(found is not None and found.overridable for found in inputs)
        if node.op_type == "Identity" and inputs[0] is not None:
            return inputs[0]
        return self._evaluated(node, inputs, overridable=overridable)

    def _evaluated(self, node: onnx.NodeProto, inputs: list[Constant | None], *, overridable: bool) -> Constant | None:
        def compute() -> Array:
            return evaluate(node, [None if found is None else found.read() for found in inputs], self.opset)

        cost = sum(found.nbytes + found.cost_nbytes for found in inputs if found is not None)
        cost += _multiply_adds(node, inputs) if node.op_type in _PRODUCTS else 0  # as if each went through a byte
        if self._grows_too_large(node, inputs) or not self.budget.spend(cost):
            return None
        try:
            array = compute()
        except _EVALUATION_ERRORS:
            return None
        cost += array.nbytes
        if array.size > _KEPT_ELEMENTS and cost <= _LOW_COST * array.nbytes:
            return Constant(array.shape, array.dtype, _Recomputed(compute), overridable, cost)
        return replace(_kept(array), overridable=overridable) if self.budget.keep(array.nbytes) else None

    def _known_shape(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """What a Shape node gives, if all sizes that it asks for are static."""
        tensor = self._initializers.get(node.input[0])
        shape = shape_in(self._types, node.input[0]) if tensor is None else tuple(tensor.dims)
        if shape is None:
            return None
        end = find_attribute(node, "end")
        part = shape[int_attribute(node, "start", 0) : None if end is None else end.i]
        sizes = tuple(size for size in part if isinstance(size, int))
        return sizes if len(sizes) == len(part) else None

    def _element_type(self, name: str) -> str:
        """The element type of a value, which need not be constant, as numpy calls it; "" if unknown."""
        if name in self._types:
            return self._types[name][1]
        found = self.find(name)
        return "" if found is None else found.dtype.name

    def _cast_like(self, node: onnx.NodeProto) -> Constant | None:
        source = self.find(node.input[0])
        if source is None:
            return None
        to = helper.np_dtype_to_tensor_dtype(np.dtype(self._element_type(node.input[1])))
        cast = helper.make_node("Cast", node.input[:1], node.output, to=to)
        return self._evaluated(cast, [source], overridable=source.overridable)

    def _grows_too_large(self, node: onnx.NodeProto, inputs: list[Constant | None]) -> bool:
        width = max((found.dtype.itemsize for found in inputs if found is not None), default=1)
        cast = numpy_dtype(int_attribute(node, "to", 0)) if node.op_type == "Cast" else None
        width = cast.itemsize if cast is not None else width
        return self._elements(node, inputs) * width > self.budget.most_nbytes

    @staticmethod
    def _elements(node: onnx.NodeProto, inputs: list[Constant | None]) -> int:
        """An upper bound for the number of elements that a node gives."""
        shapes = [found.shape for found in inputs if found is not None]
        if node.op_type == "Concat":
            return sum(map(prod, shapes))
        if node.op_type in _PRODUCTS:
            return _multiply_adds(node, inputs)
        if node.op_type == "Pad" and len(inputs) > 1 and inputs[1] is not None:
            pads, rank = inputs[1].read().reshape(-1).tolist(), len(shapes[0])
            more = zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=False)
            return prod(shapes[0]) * prod(1 + max(0, before) + max(0, after) for before, after in more) if rank else 0
        if node.op_type == "Gather" and len(shapes) == 2 and shapes[0]:
            picked = shapes[0][int_attribute(node, "axis", 0) % len(shapes[0])]
            return prod(shapes[0]) // max(1, picked) * prod(shapes[1])
        if node.op_type == "Tile" and len(inputs) == 2 and inputs[1] is not None:
            return prod(max(0, int(count)) for count in inputs[1].read().reshape(-1)) * prod(shapes[0])
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return prod(shapes[0])
        asked_for = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
        target = None if asked_for is None else inputs[asked_for]
        if target is not None:
            wanted = tuple(max(0, int(size)) for size in target.read().reshape(-1))
            shapes = [wanted] if node.op_type == "ConstantOfShape" else [shapes[0], wanted]
        try:
            # Arrays that broadcast against each other can grow like an outer product.
            return prod(np.broadcast_shapes(*shapes))
        except ValueError:
            return sum(map(prod, shapes))


def _multiply_adds(node: onnx.NodeProto, inputs: list[Constant | None]) -> int:
    """How many a product of constants takes at most, which is no less than the elements that it gives."""
    shapes = [found.shape for found in inputs if found is not None]
    if node.op_type != "Einsum":
        depth = (shapes[0] or (1,))[0 if int_attribute(node, "transA", 0) else -1]
        return prod(shapes[0]) * prod(shapes[1]) // max(1, depth)
    operands = string_attribute(node, "equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes = dict(pair for term, shape in zip(operands, shapes, strict=False) for pair in zip(term, shape, strict=False))
    return prod(sizes.values()) if "." not in sizes else prod(map(prod, shapes))


class _Recomputed:
    """Computes an array when it is read, unless somebody still holds the one that was computed last."""

    def __init__(self, compute: Callable[[], Array]) -> None:
        self._compute = compute
        self._last: weakref.ref[Array] | None = None

    def __call__(self) -> Array:
        array = None if self._last is None else self._last()
        if array is None:
            array = self._compute()
            self._last = weakref.ref(array)
        return array


def _kept(array: Array) -> Constant:
    return Constant(array.shape, array.dtype, lambda: array)
