"""A model of the same structure with small numbers for parameters: what the exact gate folds and runs.

Only what a plan looks at or changes is replaced: the weights and biases of linear maps, the parameters of BNs, the
constants of spelled-out affines and of the operators that affines move past.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.linear_map import LinearMap
from bnfold.algebra.quantised import QuantisedTensor
from bnfold.algebra.rounding import STORAGE_DTYPES, Array, DType, Float64Array, round_once
from bnfold.graph import AffineNode, MapNode, Op, OpNode
from bnfold.onnx.edit.quantised import quantised_nodes
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.file.tensors import TensorStore
from bnfold.onnx.lift.affines import is_scaler
from bnfold.onnx.lift.lift import lift
from bnfold.onnx.lift.nodes import bias_position
from bnfold.onnx.lift.precision.block_products import is_block_product, parts_of
from bnfold.onnx.lift.precision.quantised import dequantised_by
from bnfold.onnx.lift.scopes import Handle, Scope
from bnfold.onnx.proto.names import FreshNames, find_attribute, float_attribute
from bnfold.onnx.proto.normalise import normalise
from bnfold.onnx.proto.walk import all_nodes
from bnfold.planning.recognised import is_last_factor
from bnfold.verification.exact.numbers import Numbers, small_epsilon
from bnfold.verification.onnx.sites.cubic import is_cubic, taking_the_nearest

_Small = Callable[[Array], Float64Array]


def stand_in(model: OnnxModel, numbers: Numbers) -> OnnxModel:
    """Makes it.

    Args:
        model: A checked model; it is not changed.
        numbers: The small numbers.
    """
    copy = model.copy()
    store = TensorStore()
    store.include(model.store)
    copy = OnnxModel(copy.proto, store)
    graph = lift(copy)
    writer = _Writer(copy, numbers.for_graph(graph))
    for node in graph.nodes:
        if not isinstance(node.handle, Handle):
            continue
        if isinstance(node, MapNode):
            writer.replace_map(node, node.handle)
        elif isinstance(node, AffineNode):
            writer.replace_affine(node, node.handle)
        elif isinstance(node, OpNode) and node.op is not Op.OPAQUE:
            writer.replace_operands(node, node.handle)
    writer.finish()
    return copy


def compute_exactly(model: OnnxModel) -> None:
    """Lets operators compute in a form that rounds nothing, in place; a plan looks at that of some.

    A MatMulNBits takes its input as it is, and a cubic Resize the nearest element: its weights, which are none of the
    model, sum to one in both forms.
    """
    for graph in (model.proto.graph, *model.proto.functions):
        for node in all_nodes(graph.node):
            for given in node.attribute if is_block_product(node) else ():
                if given.name == "accuracy_level":
                    given.i = 1
            if is_cubic(node):
                node.CopyFrom(taking_the_nearest(node))


class _Writer:
    def __init__(self, model: OnnxModel, numbers: Numbers) -> None:
        self._model, self._numbers = model, numbers
        self._names = FreshNames(model.proto)
        self._known: dict[tuple[int, str, str], str] = {}
        self._constants: dict[int, tuple[Scope, list[onnx.TensorProto]]] = {}
        self._dequantising: dict[int, list[onnx.NodeProto]] = {}

    def replace_map(self, node: MapNode, handle: Handle) -> None:
        """Gives a linear map another weight and bias."""
        proto, linear, numbers = handle.node, node.linear, self._numbers
        weight_at = 1 if handle.scope.constants.is_constant(proto.input[1]) else 0
        if is_block_product(proto) and isinstance(linear.weight, QuantisedTensor):
            self._replace_blocks(proto, linear.weight, handle.scope)
        elif isinstance(linear.weight, QuantisedTensor):
            self._replace_quantised(proto, weight_at, linear, linear.weight, handle.scope)
        else:
            weight, role = partial(_weight, numbers, linear), f"weight of {linear.groups} {linear.order}"
            self._replace(handle.scope, proto, weight_at, role, weight, is_weight=True)
        for name in ("alpha", "beta"):
            given = find_attribute(proto, name)
            if proto.op_type == "Gemm" and given is not None:
                given.f = float(numbers.scales(np.array(given.f)))
        if handle.bias_node is not None:
            self._replace_constants(handle.scope, handle.bias_node, "shift", numbers.shifts)
        elif 0 < bias_position(proto) < len(proto.input) and proto.input[bias_position(proto)]:
            self._replace(handle.scope, proto, bias_position(proto), "shift", numbers.shifts)

    def _replace_blocks(self, proto: onnx.NodeProto, weight: QuantisedTensor, scope: Scope) -> None:
        """Gives a MatMulNBits small integers and small scales."""
        small = weight.with_integers(self._numbers.weight(weight.shape, 1))
        for position, array in parts_of(proto, small, scope.constants):
            tensor = numpy_helper.from_array(array, self._names.fresh("blocks_small"))
            proto.input[position] = tensor.name
            self._constants.setdefault(id(scope.graph), (scope, []))[1].append(tensor)

    def _replace_quantised(
        self, proto: onnx.NodeProto, position: int, linear: LinearMap, weight: QuantisedTensor, scope: Scope
    ) -> None:
        """Lets a map read small integers, dequantised with small scales as its own are."""
        name = proto.input[position]
        key = (id(scope.graph), name, f"integers of {linear.groups} {linear.order}")
        if key not in self._known:
            new = self._known[key] = self._names.fresh(f"{name}_small")
            small = weight.with_integers(_weight(self._numbers, linear, np.empty(0)))
            _, after = dequantised_by(name, scope.constants)
            nodes, tensors = quantised_nodes(small, new, after, self._names, self._model.store)
            self._constants.setdefault(id(scope.graph), (scope, []))[1].extend(tensors)
            self._dequantising.setdefault(id(scope.graph), []).extend(nodes)
        proto.input[position] = self._known[key]

    def replace_affine(self, node: AffineNode, handle: Handle) -> None:
        """Gives a BN or a spelled-out affine other parameters.

        One that stays as it is keeps its own, and so does the number that an activation is recognised by.
        """
        if node.affine is None or is_last_factor(node):
            return
        proto, scope = handle.node, handle.scope
        if proto.op_type == "BatchNormalization":
            epsilon = small_epsilon(float_attribute(proto, "epsilon", 1e-5))
            small = self._numbers.batch_norm(node.affine.scale, node.affine.shift, epsilon)
            key = f"of {' '.join(proto.input[1:5])} {find_attribute(proto, 'epsilon')}"
            for position, array in enumerate(small, start=1):
                self._replace(scope, proto, position, f"{position} {key}", partial(_given, array))
            given = find_attribute(proto, "epsilon")
            if given is None:
                proto.attribute.append(helper.make_attribute("epsilon", epsilon))
            else:
                given.f = epsilon
            return
        for index in (handle.index, *handle.chain):
            part = scope.graph.node[index]
            for given in part.attribute if is_scaler(part) else ():
                replaced = self._numbers.scales if given.name == "scale" else self._numbers.shifts
                given.floats[:] = replaced(np.array(given.floats)).tolist()
            self._replace_constants(scope, part, *self._role(part))

    def replace_operands(self, node: OpNode, handle: Handle) -> None:
        """Gives the constants that an operator reads beside its values, if it computes with them, small numbers."""
        proto = handle.node
        if proto.op_type == "LeakyRelu":
            slope = find_attribute(proto, "alpha")
            small = float(self._numbers.scales(np.array(0.01 if slope is None else slope.f)))
            if slope is None:
                proto.attribute.append(helper.make_attribute("alpha", small))
            else:
                slope.f = small
        elif node.op in (Op.ADD, Op.MUL, Op.DIV, Op.RELU, Op.CONCAT):
            self._replace_constants(handle.scope, proto, *self._role(proto))

    def _role(self, proto: onnx.NodeProto) -> tuple[str, _Small]:
        if proto.op_type in ("Mul", "PRelu"):
            return "scale", self._numbers.scales
        return ("divisor", self._numbers.divisors) if proto.op_type == "Div" else ("shift", self._numbers.shifts)

    def _replace_constants(self, scope: Scope, proto: onnx.NodeProto, role: str, small: _Small) -> None:
        for position, name in enumerate(proto.input):
            if name and scope.constants.is_constant(name):
                self._replace(scope, proto, position, role, small)

    def _replace(
        self, scope: Scope, proto: onnx.NodeProto, position: int, role: str, small: _Small, *, is_weight: bool = False
    ) -> None:
        """Lets a node read small numbers instead of a constant; equal constants in equal roles stay one."""
        name = proto.input[position]
        constant = scope.constants.find(name)
        if constant is None or constant.overridable or constant.dtype not in STORAGE_DTYPES:
            return
        key = (id(scope.graph), name, role)
        if key not in self._known:
            new = self._known[key] = self._names.fresh(f"{name}_small")
            old = np.empty(0) if is_weight else constant.read()  # of a weight, only the shape counts
            make = partial(_rounded, small, old, constant.shape, constant.dtype)
            data_type = helper.np_dtype_to_tensor_dtype(constant.dtype)
            store = self._model.store
            tensor = store.defer(new, constant.shape, data_type, make) if is_weight else store.embed(new, make())
            self._constants.setdefault(id(scope.graph), (scope, []))[1].append(tensor)
        proto.input[position] = self._known[key]

    def finish(self) -> None:
        """Adds the constants where the nodes of each scope find them."""
        for scope, tensors in self._constants.values():
            first = self._dequantising.get(id(scope.graph), [])
            if isinstance(scope.graph, onnx.FunctionProto):
                first = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + first
            if first:
                kept = [*scope.graph.node]
                del scope.graph.node[:]
                scope.graph.node.extend([*first, *kept])
            if isinstance(scope.graph, onnx.FunctionProto):
                continue
            listed = self._model.proto.ir_version < 4
            graph = scope.root if listed and isinstance(scope.root, onnx.GraphProto) else scope.graph
            graph.initializer.extend(tensors)
            if listed:
                graph.input.extend(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors
                )
        if self._dequantising:
            normalise(self._model.proto)  # what turns a dequantised weight may read what comes later


def _given(array: Float64Array, _: Array) -> Float64Array:
    return array


def _weight(numbers: Numbers, linear: LinearMap, _: Array) -> Float64Array:
    return np.asarray(linear.stored(numbers.weight(linear.shape, linear.groups)), np.float64)


def _rounded(small: _Small, old: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    return round_once(small(old).reshape(shape), dtype)
