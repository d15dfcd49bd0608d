"""Which small numbers a program gets, for which of its parameters and expressions; `stand_in` puts them in their place.

Parameters get theirs by name, so that what is tied stays tied. What an expression makes of parameters (weight_norm, for
instance) has no small numbers for them all; its result gets some. The spelled-out affine of a frozen BN is exact for
buffers with a variance beside which its epsilon is nothing in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
from torch import fx
from torch.export import ExportedProgram

from bnfold.algebra.affine import Affine
from bnfold.algebra.rounding import STORAGE_DTYPES, Array, Float64Array, round_once
from bnfold.graph import AffineNode, Kind, MapNode, Node, Op, OpNode
from bnfold.planning.recognised import is_last_factor
from bnfold.torch.fx.nodes import arguments, is_batch_norm, operator_name
from bnfold.torch.lift.constants import Constant
from bnfold.torch.lift.lift import lift
from bnfold.torch.lift.provenance import Handle, Scope
from bnfold.verification.exact.numbers import Numbers, small_epsilon

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_OPERANDS = ("self", "other", "weight", "negative_slope")
_LARGE_DEVIATION = 2.0**24
"""Its square and an epsilon below 2^-10 add up to itself in float64."""


class SmallNumbers:
    """What a program has instead of its own numbers.

    Args:
        program: The program; it is not changed.
        numbers: The small numbers.

    Attributes:
        parameters: New values of parameters and buffers, by name.
        literals: New values of the arguments of calls, by name.
        epsilons: What becomes of the epsilon of each call of a batch norm, behind the path of the module that it is in.
        rearranged: New values of those that nothing but an expression reads, which in modules is taken to rearrange.
        results: What constant expressions are to give, by the node that does.
        computed: What the parametrizations of layers are to give, by the path of the layer and the name there.
    """

    def __init__(self, program: ExportedProgram, numbers: Numbers) -> None:
        graph = lift(program)
        self._numbers = numbers.for_graph(graph)
        self.parameters: dict[str, Array] = {}
        self.literals: dict[fx.Node, dict[str, float]] = {}
        self.epsilons: dict[fx.Node, tuple[str | None, float]] = {}
        self.rearranged: dict[str, Array] = {}
        self.results: dict[fx.Node, tuple[Scope, Array]] = {}
        self.computed: dict[tuple[str, str], Array] = {}
        for node in graph.nodes:
            if isinstance(node.handle, Handle):
                self._visit(node, node.handle)

    def _visit(self, node: Node, handle: Handle) -> None:
        if isinstance(node, MapNode):
            linear = node.linear

            def small(_: Array) -> Float64Array:
                return np.asarray(linear.stored(self._numbers.weight(linear.shape, linear.groups)), np.float64)

            self._put(linear.weight, small, handle, "weight")
            self._put(linear.bias, self._numbers.shifts, handle, "bias")
        elif isinstance(node, AffineNode) and node.affine is not None:
            if is_batch_norm(handle.node):
                self._batch_norm(node, handle)
            elif node.kind is Kind.BATCH_NORM:
                self._frozen(node.affine, handle)
            elif not is_last_factor(node):  # a plan recognises an activation by it
                for part in (handle.node, *handle.chain):
                    self._operands(part, handle)
        elif isinstance(node, OpNode) and node.op in (Op.ADD, Op.MUL, Op.DIV, Op.RELU, Op.CONCAT):
            self._operands(handle.node, handle)

    def _batch_norm(self, node: AffineNode, handle: Handle) -> None:
        assert node.affine is not None  # the caller has looked
        given = arguments(handle.node)
        has_gamma, has_beta = (given.get(name) is not None for name in _BATCH_NORM[:2])
        scale, shift = _by_channel(node.affine)
        epsilon = small_epsilon(cast(float, given.get("eps", given.get("epsilon"))))
        small = self._numbers.batch_norm(scale, shift, epsilon, has_gamma=has_gamma, has_beta=has_beta)
        for name, array in zip(_BATCH_NORM, small, strict=True):
            self._put(handle.scope.constants.find(given.get(name)), partial(_given, array), handle)
        self.epsilons[handle.node] = handle.module, epsilon

    def _frozen(self, affine: Affine, handle: Handle) -> None:
        """Gives the buffers of a frozen batch norm small numbers, in units that its epsilon is nothing beside."""
        scale, shift = _by_channel(affine)
        gamma, beta, mean, variance = self._numbers.batch_norm(scale, shift, 0.0)
        arrays = (gamma * _LARGE_DEVIATION, beta, mean, variance * _LARGE_DEVIATION**2)
        names = [f"{handle.module}.{name}" if handle.module else name for name in _BATCH_NORM]
        stored = [handle.scope.constants.stored(name) for name in names]
        if all(array is not None and array.dtype != np.float16 for array in stored):
            self.parameters.update(zip(names, arrays, strict=True))

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
                self._put(handle.scope.constants.find(given), small, handle)

    def _put(
        self, constant: object, small: Callable[[Array], Float64Array], handle: Handle, layer_has: str = ""
    ) -> None:
        """Replaces the parameter that a constant is, or the result of the expression that computes it.

        Args:
            constant: The constant; nothing is done with anything else.
            small: Gives the small numbers.
            handle: What reads it.
            layer_has: Which parameter of its layer it is, if the layer may compute it.
        """
        if not isinstance(constant, Constant) or constant.dtype not in STORAGE_DTYPES:
            return
        array = round_once(small(constant.read()), constant.dtype)
        if constant.parameter is not None:
            self.parameters.setdefault(constant.parameter, array)
            return
        if len(constant.parameters) == 1:
            self.rearranged.setdefault(constant.parameters[0], array)
        self.results.setdefault(constant.node, (handle.scope, array))
        if layer_has and handle.module is not None:
            self.computed.setdefault((handle.module, layer_has), array)


def _by_channel(affine: Affine) -> tuple[Float64Array, Float64Array]:
    """The scale and the shift of a batch norm, as vectors of one length."""
    size = max(affine.scale.size, affine.shift.size)
    return np.broadcast_to(affine.scale.reshape(-1), (size,)), np.broadcast_to(affine.shift.reshape(-1), (size,))


def _given(array: Float64Array, _: Array) -> Float64Array:
    return array
