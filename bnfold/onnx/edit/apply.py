"""Carries a plan out on an ONNX model: new weights, rewired values, nodes that go away.

A value keeps its name only if it still equals the original's value of that name. Where a conv takes its BN, it takes
over the name of the BN's output; every other value that now differs gets a new name.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold.algebra.linear_map import Folding, LinearMap
from bnfold.algebra.quantised import QuantisedTensor
from bnfold.graph import ConstantNorm, MapNode, Node
from bnfold.onnx.edit.cleanup import forget, remove_unused
from bnfold.onnx.edit.leftover import leftover_nodes
from bnfold.onnx.edit.quantised import quantised_nodes
from bnfold.onnx.file.load import OnnxModel
from bnfold.onnx.lift.nodes import OLDEST_OPSET, bias_position
from bnfold.onnx.lift.precision.block_products import is_block_product, parts_of
from bnfold.onnx.lift.precision.quantised import dequantised_by
from bnfold.onnx.lift.scopes import Handle, Scope
from bnfold.onnx.proto.names import (
    FreshNames,
    GraphLike,
    defined_names,
    interface,
    label,
    nested,
    rename_own,
    rename_reads,
    subgraphs,
)
from bnfold.planning.leftover import form_of
from bnfold.planning.plan import Leftover, Plan
from bnfold.planning.renaming import Renaming


def apply(model: OnnxModel, plan: Plan, leftover: Leftover) -> bool:
    """Carries a plan out, in place.

    Args:
        model: The model whose lifted graph the plan was made on.
        plan: The plan.
        leftover: What becomes of the affines that stay.

    Returns:
        Whether that changed anything.
    """
    editor = _Editor(model)
    for norm in plan.constant_norms:
        editor.evaluate(_handle(norm))
    for node, folding in plan.foldings.items():
        editor.set_weights(node, folding)
    for step in plan.steps:
        editor.remove(_handle(step.source))
    for junction in plan.junctions:
        for gone in (*junction.gone, *(node for node, _ in (*junction.collapsed, *junction.bypassed))):
            editor.remove(_handle(gone))
    for stays, affine in plan.leftovers.items():
        handle = _handle(stays)
        old = handle.scope.opset < OLDEST_OPSET
        form = Leftover.KEEP if old else form_of(leftover, stays, plan)
        written = leftover_nodes(form, stays, affine, handle.node, editor.names)
        if written is not None:
            nodes, tensors = written
            editor.remove(handle)
            editor.insert(handle.scope, handle.index, nodes)
            editor.add_constants(handle.scope, tensors)
    editor.rename(Renaming(plan))
    for passed in dict.fromkeys(node for step in plan.steps for node in step.passed):
        editor.rename_widened(_handle(passed))
    return editor.finish()


class _Editor:
    """Collects edits by position, and makes them all at the end, so that positions stay true meanwhile."""

    def __init__(self, model: OnnxModel) -> None:
        self.names = FreshNames(model.proto)
        self._model = model
        self._removed: dict[Scope, set[int]] = defaultdict(set)
        self._inserted: dict[Scope, dict[int, list[onnx.NodeProto]]] = defaultdict(lambda: defaultdict(list))
        self._renamed: dict[Scope, dict[str, str]] = defaultdict(dict)
        self._released: dict[Scope, set[str]] = defaultdict(set)
        self._reshaped: dict[Scope, set[str]] = defaultdict(set)
        self._weights: dict[object, str] = {}

    def remove(self, handle: Handle) -> None:
        """Marks the nodes behind a handle as gone."""
        scope = handle.scope
        for index in (handle.index, *handle.chain, *(() if handle.bias_index is None else (handle.bias_index,))):
            self._removed[scope].add(index)
            self._released[scope].update(filter(scope.constants.is_constant, scope.graph.node[index].input))

    def evaluate(self, handle: Handle) -> None:
        """Puts the constant that a node gives in its place."""
        name = handle.node.output[0]
        constant = handle.scope.constants.find(name)
        assert constant is not None  # or the node would have been lifted
        self.remove(handle)
        self.add_constants(handle.scope, [numpy_helper.from_array(constant.read(), name)])

    def insert(self, scope: Scope, index: int, nodes: list[onnx.NodeProto]) -> None:
        """Puts nodes behind a position; -1 is the beginning."""
        self._inserted[scope][index] += nodes

    def add_constants(self, scope: Scope, tensors: list[onnx.TensorProto]) -> None:
        """Adds constants that the nodes of a scope can read."""
        if isinstance(scope.graph, onnx.FunctionProto):
            self.insert(scope, -1, [helper.make_node("Constant", [], [t.name], value=t) for t in tensors])
            return
        main = self._model.proto.graph
        listed = self._model.proto.ir_version < 4 and {t.name for t in main.initializer} <= {v.name for v in main.input}
        graph = scope.root if listed and isinstance(scope.root, onnx.GraphProto) else scope.graph
        graph.initializer.extend(tensors)
        if listed:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)

    def set_weights(self, node: MapNode, folding: Folding) -> None:
        """Gives a linear map its new weight and bias."""
        handle = _handle(node)
        scope, proto = handle.scope, handle.node
        weight_at = 1 if scope.constants.is_constant(proto.input[1]) else 0
        quantised = folding.quantised()
        if isinstance(quantised, QuantisedTensor) and is_block_product(proto):
            for position, array in parts_of(proto, quantised, scope.constants):
                self._set_input(scope, proto, position, array)
        else:
            self._set_weight(node, folding, quantised, weight_at)
        if folding.linear is not node.linear:
            _set_form(proto, folding.linear)
        if handle.bias_node is not None:
            # What the product gives before its bias is another value now.
            product = proto.output[0]
            self._renamed[scope][product] = self.names.fresh(f"{product}_folded")
        bias = folding.bias()
        if bias is not None:
            self._set_bias(node, bias)

    def _set_weight(
        self, node: MapNode, folding: Folding, quantised: QuantisedTensor | str | None, position: int
    ) -> None:
        scope, proto = _handle(node).scope, _handle(node).node
        shared = (
            (scope, proto.input[position], position, folding.weight_key()) if folding.linear is node.linear else None
        )
        if quantised is None and shared in self._weights:
            self._replace_input(scope, proto, position, self._weights[shared])
            return
        name = self.names.fresh(f"{proto.input[position]}_folded")
        if shared is not None:
            self._weights[shared] = name
        if isinstance(quantised, QuantisedTensor):
            _, after = dequantised_by(proto.input[position], scope.constants)
            nodes, tensors = quantised_nodes(quantised, name, after, self.names, self._model.store)
            self.insert(scope, _handle(node).index - 1, nodes)
            self.add_constants(scope, tensors)
        else:
            data_type = helper.np_dtype_to_tensor_dtype(folding.linear.weight.dtype)
            shape = folding.linear.weight.shape
            weight = self._model.store.defer(name, shape, data_type, folding.weight, folding.weight_rows)
            self.add_constants(scope, [weight])
        self._replace_input(scope, proto, position, name)

    def _set_bias(self, node: MapNode, bias: np.ndarray) -> None:
        handle = _handle(node)
        scope, proto, add = handle.scope, handle.node, handle.bias_node
        position = bias_position(proto)
        if node.linear.bias_is_extra and add is None:
            add = self._new_add(scope, handle.index, node)
        if add is not None:
            proto, position = add, 1
            if add.input[1] and not scope.constants.is_constant(add.input[1]):
                position = 0
        self._set_input(scope, proto, position, bias, f"{label(handle.node)}_bias")
        for given in proto.attribute:
            if proto.op_type == "Gemm" and given.name == "beta":
                given.f = 1.0

    def _new_add(self, scope: Scope, index: int, node: MapNode) -> onnx.NodeProto:
        """An Add behind a MatMul that had none, reading its output and writing what it wrote before."""
        proto = _handle(node).node
        result = proto.output[0]
        proto.output[0] = self.names.fresh(f"{result}_product")
        name = self.names.fresh(f"{label(proto)}_bias_add")
        add = helper.make_node("Add", [proto.output[0], ""], [result], name=name)
        self.insert(scope, index, [add])
        return add

    def _set_input(
        self, scope: Scope, proto: onnx.NodeProto, position: int, array: np.ndarray, name: str = "zero_points"
    ) -> None:
        """Gives a node another constant; it is called after the old one, or `name` if there was none."""
        proto.input.extend([""] * (position + 1 - len(proto.input)))
        old = proto.input[position]
        new = self.names.fresh(f"{old}_folded" if old else name)
        self.add_constants(scope, [numpy_helper.from_array(array, new)])
        self._replace_input(scope, proto, position, new)

    def _replace_input(self, scope: Scope, proto: onnx.NodeProto, position: int, name: str) -> None:
        self._released[scope].add(proto.input[position])
        proto.input[position] = name

    def rename(self, renaming: Renaming) -> None:
        """Marks values as renamed."""
        for node, value, name in renaming.final(self.names.fresh):
            scope = _handle(node).scope
            self._renamed[scope][value.name] = name
            if value in renaming.reshaped:
                self._reshaped[scope].add(value.name)

    def rename_widened(self, handle: Handle) -> None:
        """Marks values between a cast that an affine has passed and the cast back: they are as precise as before it."""
        renamed = self._renamed[handle.scope]
        new_names: dict[str, str] = {}
        for old in handle.widened:
            name = renamed.get(old, old)
            if name not in new_names:
                new_names[name] = self.names.fresh(f"{name}_folded")
            renamed[old] = new_names[name]

    def finish(self) -> bool:
        """Makes the edits; says whether there were any."""
        # Inner graphs first: what is of their own may have to be called something else for what is around them.
        for scope in sorted({*self._removed, *self._inserted, *self._renamed}, key=lambda scope: -scope.depth):
            self._edit(scope)
        for root in {id(scope.root): scope.root for scope in self._released}.values():
            released = [
                (scope.graph, name) for scope, names in self._released.items() if scope.root is root for name in names
            ]
            remove_unused(self._model.proto, root, released)
        return bool(self._removed)

    def _edit(self, scope: Scope) -> None:
        nodes, inserted, renamed = scope.graph.node, self._inserted[scope], self._renamed[scope]
        vanished = {name for index in self._removed[scope] for name in nodes[index].output}
        for index in reversed(range(-1, len(nodes))):
            for node in reversed(inserted.get(index, [])):
                nodes.insert(index + 1, node)
            if index in self._removed[scope]:
                del nodes[index]
        # Nested graphs may still read the shape or the type of a value that is called something else now.
        self._make_way(scope.graph, renamed)
        rename_reads(scope.graph, renamed)
        declared = {item.name: item for item in scope.graph.value_info}
        known = {*declared, *interface(scope.graph)}
        for old, new in renamed.items():
            if old in declared and new not in known and old not in self._reshaped[scope]:
                scope.graph.value_info.add().CopyFrom(declared[old])
                scope.graph.value_info[-1].name = new
                known.add(new)
        vanished.difference_update(defined_names(scope.graph))
        forget(scope.graph, vanished | set(renamed), keep_inputs=True)

    def _make_way(self, graph: GraphLike, renamed: Mapping[str, str]) -> None:
        """Renames what nested graphs have of their own by a name that a value before them is to have."""
        computed: set[str] = set()
        for node in graph.node:
            for inner in (inner for _, outermost in subgraphs(node) for inner in nested(outermost)):
                own = sorted(computed.intersection(defined_names(inner)))
                if own and isinstance(inner, onnx.GraphProto):
                    rename_own(inner, {name: self.names.fresh(name) for name in own})
            computed.update(renamed[name] for name in node.output if name in renamed)


def _set_form(proto: onnx.NodeProto, linear: LinearMap) -> None:
    """Writes the attributes of a map that is another one than the node had."""
    if proto.op_type == "Gemm":
        for given in proto.attribute:
            if given.name == "alpha":
                given.f = 1.0
    if proto.op_type not in ("Conv", "ConvTranspose") or linear.window is None:
        return
    window = linear.window
    attributes = {
        "kernel_shape": linear.weight.shape[2:],
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.before + tuple(max(0, after) for after in window.after),
        "group": linear.groups,
    }
    if proto.op_type == "ConvTranspose":
        attributes["output_padding"] = tuple(max(0, -after) for after in window.after)
    for index in reversed(range(len(proto.attribute))):
        if proto.attribute[index].name in {*attributes, "auto_pad"}:
            del proto.attribute[index]
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def _handle(node: Node | ConstantNorm) -> Handle:
    if not isinstance(node.handle, Handle):
        message = f"'{node.name}' was not lifted from an ONNX model"
        raise TypeError(message)
    return node.handle
