"""A program of the same structure with small numbers for parameters; see `stand_in`, which does this for ONNX.

Parameters are replaced by name, so that what is tied stays tied. A constant that an expression makes of several
parameters (weight_norm, for instance) keeps its numbers, and its region is not exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.algebra.rounding import Array, Float64Array, round_once
from bnfold.graph import AffineNode, MapNode, Node, Op, OpNode
from bnfold.torch.capture.copying import ModuleT, copy_with
from bnfold.torch.fx.nodes import arguments, is_batch_norm, operator_name
from bnfold.torch.fx.tensors import to_torch
from bnfold.torch.lift.constants import Constant
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.provenance import Handle
from bnfold.torch.program.editor import ProgramEditor
from bnfold.verification.exact.numbers import Numbers, small_epsilon

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_OPERANDS = ("self", "other", "weight", "negative_slope")


class SmallNumbers:
    """What a program has instead of its own numbers.

    Args:
        program: The program; it is not changed.
        numbers: The small numbers.

    Attributes:
        parameters: New values of parameters and buffers, by name.
        literals: New values of the arguments of calls, by name.
        epsilons: What becomes of the epsilon of each call of a batch norm.
        modules: The same, by the paths of the modules that these run in.
    """

    def __init__(self, program: ExportedProgram, numbers: Numbers) -> None:
        self._numbers = numbers
        self.parameters: dict[str, Array] = {}
        self.literals: dict[fx.Node, dict[str, float]] = {}
        self.epsilons: dict[fx.Node, float] = {}
        self.modules: dict[str, float] = {}
        for node in lift(program).nodes:
            if isinstance(node.handle, Handle):
                self._visit(node, node.handle)

    def _visit(self, node: Node, handle: Handle) -> None:
        if isinstance(node, MapNode):
            weight, bias = node.linear.weight, node.linear.bias
            shape, groups = weight.shape, node.linear.groups
            self._put(weight, lambda _: self._numbers.weight(shape, groups))
            self._put(bias, self._numbers.shifts)
        elif isinstance(node, AffineNode) and node.affine is not None:
            if is_batch_norm(handle.node):
                self._batch_norm(node, handle)
            else:
                for part in (handle.node, *handle.chain):
                    self._operands(part, handle)
        elif isinstance(node, OpNode) and node.op in (Op.ADD, Op.MUL, Op.DIV, Op.RELU, Op.CONCAT):
            self._operands(handle.node, handle)

    def _batch_norm(self, node: AffineNode, handle: Handle) -> None:
        assert node.affine is not None  # the caller has looked
        given = arguments(handle.node)
        has_gamma, has_beta = (given.get(name) is not None for name in _BATCH_NORM[:2])
        size = max(node.affine.scale.size, node.affine.shift.size)
        scale, shift = (np.broadcast_to(a.reshape(-1), (size,)) for a in (node.affine.scale, node.affine.shift))
        epsilon = small_epsilon(cast(float, given.get("eps", given.get("epsilon"))))
        small = self._numbers.batch_norm(scale, shift, epsilon, has_gamma=has_gamma, has_beta=has_beta)
        for name, array in zip(_BATCH_NORM, small, strict=True):
            self._put(handle.scope.constants.find(given.get(name)), partial(_given, array))
        self.epsilons[handle.node] = epsilon
        if handle.module is not None:
            self.modules[handle.module] = epsilon

    def _operands(self, call: fx.Node, handle: Handle) -> None:
        name = operator_name(call)
        small = self._numbers.shifts
        if name in ("mul", "prelu", "leaky_relu"):
            small = self._numbers.scales
        elif name == "div":
            small = self._numbers.divisors
        for argument, given in arguments(call).items():
            if argument not in _OPERANDS:
                continue
            if isinstance(given, int | float) and not isinstance(given, bool):
                self.literals.setdefault(call, {})[argument] = float(small(np.array(float(given))))
            else:
                self._put(handle.scope.constants.find(given), small)

    def _put(self, constant: object, small: Callable[[Array], Float64Array]) -> None:
        """Replaces the one parameter that a constant is, or is a rearrangement of."""
        if not isinstance(constant, Constant) or len(constant.parameters) != 1:
            return
        array = constant.read()
        self.parameters.setdefault(constant.parameters[0], round_once(small(array), constant.dtype))


def stand_in_program(program: ExportedProgram, numbers: Numbers) -> ExportedProgram:
    """Makes one of a program, which is not changed."""
    small = SmallNumbers(program, numbers)
    editor = ProgramEditor(program)
    for name, tensor in replaced(small, dict(_tensors(program))):
        for twin in editor.tensors.twins(name):
            (editor.tensors.state if twin in editor.tensors.state else editor.tensors.constants)[twin] = tensor
    for node, epsilon in small.epsilons.items():
        set_argument(editor.call(node), "eps" if "eps" in arguments(node) else "epsilon", epsilon)
    for node, given in small.literals.items():
        for name, value in given.items():
            set_argument(editor.call(node), name, value)
    return editor.finish()


def stand_in_module(module: ModuleT, small: SmallNumbers) -> ModuleT:
    """Makes one of a module, which is not changed; numbers in its code stay."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    copied = copy_with(module, {tensors[name]: tensor for name, tensor in replaced(small, tensors)})
    for path, epsilon in small.modules.items():
        layer = copied.get_submodule(path)
        if hasattr(layer, "eps"):
            setattr(layer, "eps", epsilon)  # noqa: B010 - of a class that has one
    return copied


def replaced(small: SmallNumbers, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The new tensors, of the type and on the device of the old ones."""
    for name, array in small.parameters.items():
        present = tensors.get(name)
        if present is None or present.numel() != array.size:
            continue
        tensor = to_torch(array.reshape(tuple(present.shape))).to(present.dtype).to(present.device)
        yield name, nn.Parameter(tensor, present.requires_grad) if isinstance(present, nn.Parameter) else tensor


def set_argument(call: fx.Node, name: str, value: float) -> None:
    """Gives an argument of a call another value."""
    target = call.target
    assert isinstance(target, torch._ops.OpOverload)  # only operators have constants
    for position, argument in enumerate(target._schema.arguments[: len(call.args)]):
        if argument.name == name:
            call.args = (*call.args[:position], value, *call.args[position + 1 :])
            return
    call.kwargs = {**call.kwargs, name: value}


def _tensors(program: ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    for held in (program.constants, program.state_dict):
        yield from ((name, tensor) for name, tensor in held.items() if isinstance(tensor, torch.Tensor))


def _given(array: Float64Array, _: Array) -> Float64Array:
    return array
