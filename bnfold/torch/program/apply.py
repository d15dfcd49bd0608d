"""Carries a plan out on an ExportedProgram: new weights, rewired values, nodes that go away.

A value keeps its name only if it still equals the original's value of that name. Where a conv takes its BN, it takes
over the name of the BN's node; every other value that now differs gets a new name.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from bnfold.algebra.linear_map import Folding
from bnfold.algebra.rounding import Array, round_once
from bnfold.algebra.tensor import Tensor as ConstantTensor
from bnfold.graph import AffineNode, MapNode, Node, Op, OpNode, Value
from bnfold.planning.leftover import form_of
from bnfold.planning.plan import Junction, Leftover, Plan
from bnfold.planning.renaming import Renaming
from bnfold.torch.fx.nodes import arguments, dtype_of, fake_tensor, operator_name
from bnfold.torch.fx.tensors import to_torch
from bnfold.torch.lift.constants import Constant
from bnfold.torch.lift.linear_maps import RepeatedWeight, repeated_weight
from bnfold.torch.lift.provenance import Handle, Scope
from bnfold.torch.program.editor import Position, ProgramEditor
from bnfold.torch.program.leftover import Call, leftover_calls
from bnfold.torch.program.windows import set_window

_CONSTANT_AT: dict[str, tuple[Position, ...]] = {
    **dict.fromkeys(("mm", "matmul", "bmm"), (1, 0)),
    "addmm": (2, 1),
    "einsum": ((1, 1), (1, 0)),
}
"""Where the weight of a matrix product may be among its arguments; that of every other map is at 1."""

_BIAS_AT = {"addmm": 0}
"""Where the bias of a map is, if not at 2."""


def apply_program(program: ExportedProgram, plan: Plan, leftover: Leftover) -> ExportedProgram | None:
    """Carries a plan out on a copy of a program, which shares all tensors that do not change.

    Args:
        program: The program whose lifted graph the plan was made on; it is not changed.
        plan: The plan.
        leftover: What becomes of the affines that stay.

    Returns:
        The new program, or None if nothing changes.
    """
    written = {
        node: leftover_calls(form_of(leftover, node, plan), node, affine, program_handle(node))
        for node, affine in plan.leftovers.items()
    }
    if not plan.steps and not plan.junctions and not any(written.values()):
        return None
    work = _Work(program)
    for node, folding in plan.foldings.items():
        work.set_weights(node, folding)
    for step in plan.steps:
        work.remove(step.source)
    for junction in plan.junctions:
        work.join(junction)
    for stays, calls in written.items():
        if calls:
            work.rewrite(stays, calls)
    work.rename(Renaming(plan))
    for passed in dict.fromkeys(node for step in plan.steps for node in step.passed):
        work.rename_widened(program_handle(passed))
    return work.finish()


class _Work:
    """What a plan asks for, in terms of the program."""

    def __init__(self, program: ExportedProgram) -> None:
        self._editor = ProgramEditor(program)
        self._by_name: dict[fx.Graph, dict[str, fx.Node]] = {}

    def set_weights(self, node: MapNode, folding: Folding) -> None:
        """Gives a linear map its new weight and bias."""
        handle, name = program_handle(node), operator_name(program_handle(node).node)
        constants = handle.scope.constants
        repeated = repeated_weight(handle.node, constants)
        weight_name = _name_of(node.linear.weight, handle)
        stem = weight_name.removesuffix("weight")
        bias_name = f"{stem}bias" if weight_name != stem else f"{weight_name}_bias"
        if repeated is None:
            positions: tuple[Position, ...] = _CONSTANT_AT.get(name, (1,))
            weight_at = next(at for at in positions if constants.is_constant(_argument_at(handle.node, at)))
            self._set(handle, handle.node, weight_at, folding.weight(), node.linear.weight, weight_name)
        else:
            self._repeat(handle, repeated, self._add_parameter(weight_name, folding.weight(), handle, handle.node))
        if folding.linear is not node.linear:
            self._editor.forget_keyword(handle.node, "alpha")
            set_window(self._editor.call(handle.node), folding.linear)
        add = next(iter(handle.chain), None)
        if add is not None:
            # What the product gives before its bias is another value now.
            product = self._editor.node(handle.node)
            self._editor.rename(product, self._editor.fresh_name(f"{product.name}_folded"))
        bias = folding.bias()
        if bias is None:
            return
        if add is not None:
            bias_at = next(at for at in (1, 0) if constants.is_constant(_argument_at(add, at)))
            self._set(handle, add, bias_at, bias, node.linear.bias, bias_name)
        elif node.linear.bias_is_extra:
            self._add_bias(handle, folding, bias_name)
        else:
            self._set(handle, handle.node, _BIAS_AT.get(name, 2), bias, node.linear.bias, bias_name)
            self._editor.forget_keyword(handle.node, "beta")

    def _set(
        self, handle: Handle, node: fx.Node, position: Position, array: Array, old: ConstantTensor | None, name: str
    ) -> None:
        """Gives a call of a map a new constant, in the parameter that it has if nothing else reads that."""
        if isinstance(old, Constant) and old.parameter is not None:
            if np.array_equal(array, old.read()):
                return
            if self._editor.tensors.change(old.parameter, node, to_torch(array)):
                return
        placeholder = self._add_parameter(name, array, handle, node, _argument_at(node, position))
        self._editor.set_argument(node, position, placeholder)

    def _repeat(self, handle: Handle, repeated: RepeatedWeight, matrix: fx.Node) -> None:
        """Gives a batched product another matrix for all of its batch."""
        operators = torch.ops.aten.expand.default, torch.ops.aten.reshape.default
        whole = matrix
        for original, operator in zip((repeated.expand, repeated.view), operators, strict=True):
            if original is not None:
                like = self._editor.call(original)
                sizes = cast(fx.node.Argument, _argument_at(like, 1))
                whole = self._editor.insert(like, operator, (whole, sizes))
        self._editor.set_argument(handle.node, repeated.position, whole)

    def _add_bias(self, handle: Handle, folding: Folding, name: str) -> None:
        """An addition behind a product that had none; it takes over the name of the product."""
        product = self._editor.node(handle.node)
        exact, dtype = folding.exact_bias(), dtype_of(fake_tensor(product))
        assert exact is not None  # the caller has asked
        bias = round_once(exact, np.dtype(dtype))  # in a region of autocast, not that of the weight
        placeholder = self._add_parameter(name, bias, handle, handle.node)
        add = self._editor.insert(product, torch.ops.aten.add.Tensor, (product, placeholder))
        self._editor.put_behind(product, add)
        self._editor.rename(add, product.name)
        self._editor.rename(product, self._editor.fresh_name(f"{product.name}_product"))

    def _add_parameter(self, name: str, array: Array, handle: Handle, node: fx.Node, before: object = None) -> fx.Node:
        """A new parameter for a node, on the device of what it computes and laid out like what it read before.

        It has a gradient if any of those had that it is made of.
        """
        result = fake_tensor(node)
        assert result is not None  # it was lifted as a tensor
        trained = any(self._editor.tensors.find(part).requires_grad for part in handle.parameters)
        tensor = to_torch(array, result.device)
        like = fake_tensor(before) if isinstance(before, fx.Node) else None
        if like is not None and like.dim() == tensor.dim():
            # A convolution whose weight has its channels last gives its output the same layout.
            strides = like.stride()
            order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
            tensor = tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(len(strides))])
        return self._editor.add_parameter(name, torch.nn.Parameter(tensor, trained), handle.scope.graph)

    def remove(self, node: AffineNode) -> None:
        """Takes an affine away: what read its output reads its input."""
        handle = program_handle(node)
        self._editor.remove((handle.node, *handle.chain), self._source(node))
        if not handle.keeps_layout:
            self._editor.let_views_copy(handle.scope.graph)

    def join(self, junction: Junction) -> None:
        """Takes away what one map or affine stands for now."""
        for node, position in junction.collapsed:
            handle = program_handle(node)
            source = self._source(node, position)
            # With two maps in a row, what the first computes gets the shape of what the second did.
            source.meta["val"] = handle.last.meta["val"]
            self._editor.remove((handle.node, *handle.chain), source)
        for node, position in junction.bypassed:
            handle = program_handle(node)
            self._editor.remove((handle.node, *handle.chain), self._source(node, position))
        for value in junction.reshaped:
            if isinstance(value.producer, OpNode) and value.producer.op is Op.ADD:
                self._editor.infer(program_handle(value.producer).last)
        for node in reversed(junction.gone):
            self._editor.remove_idle((program_handle(node).node, *program_handle(node).chain))

    def rewrite(self, node: AffineNode, calls: tuple[Call, ...]) -> None:
        """Writes an affine as other calls; the last takes over its name."""
        handle, value = program_handle(node), self._source(node)
        last = self._editor.node(handle.last)
        name, path = last.name, f"{handle.module}." if handle.module else ""
        after = last
        for call in calls:
            parts = [self._add_parameter(f"{path}{part}", array, handle, handle.last) for part, array in call.constants]
            value = after = self._editor.insert(after, call.target, call.arguments(value, *parts), like=last)
        self._editor.remove((handle.node, *handle.chain), value)
        self._editor.rename(value, name)

    def rename(self, renaming: Renaming) -> None:
        """Gives values that differ now names that the original did not have."""
        for node, value, name in renaming.final(self._editor.fresh_name):
            found = self._find(program_handle(node).scope, value)
            if found is not None:
                self._editor.rename(self._editor.node(found), name)

    def rename_widened(self, handle: Handle) -> None:
        """Renames what is between a cast that an affine has passed and the cast back: it is as precise as before it."""
        for node in dict.fromkeys(map(self._editor.node, handle.widened)):
            self._editor.rename(node, self._editor.fresh_name(f"{node.name}_folded"))

    def finish(self) -> ExportedProgram:
        """The new program."""
        return self._editor.finish()

    def _source(self, node: Node, position: int = 0) -> fx.Node:
        """What computes an input of a node now."""
        found = self._find(program_handle(node).scope, node.inputs[position])
        assert found is not None  # values that are read are called like their nodes
        return self._editor.node(found)

    def _find(self, scope: Scope, value: Value) -> fx.Node | None:
        """The node of the original that computes a value; None for an item that nothing takes."""
        if scope.graph not in self._by_name:
            self._by_name[scope.graph] = {node.name: node for node in scope.graph.nodes}
        return self._by_name[scope.graph].get(value.name)


def _argument_at(node: fx.Node, position: Position) -> object:
    """The argument at a position of the operator's schema, however it was given, or an item of it."""
    if isinstance(position, int):
        return [*arguments(node).values()][position]
    return cast(Sequence[object], _argument_at(node, position[0]))[position[1]]


def _name_of(constant: ConstantTensor, handle: Handle) -> str:
    """The name of the parameter that a weight is, or what it would be called if it were one."""
    if isinstance(constant, Constant) and constant.parameter is not None:
        return constant.parameter
    return f"{handle.module}.weight" if handle.module else "weight"


def program_handle(node: Node) -> Handle:
    """Where a lifted node is in its program."""
    if not isinstance(node.handle, Handle):
        message = f"'{node.name}' was not lifted from an ExportedProgram"
        raise TypeError(message)
    return node.handle
