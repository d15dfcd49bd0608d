"""What regions of programs are fed, and how one node of them runs: small integers, in float64 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import cast

import numpy as np
import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram

from bnfold.torch.fx.nodes import all_reads, arguments, display_name, operator_name
from bnfold.verification.exact.judging import NotCutError
from bnfold.verification.torch.run.traced import Traced

Sizes = Mapping[str, int]
"""A size for each symbol."""

_AVERAGES = frozenset("avg_pool1d avg_pool2d avg_pool3d".split())
_MEANS = frozenset("mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d".split())
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_LARGEST = 3
_MOST = 1 << 16
_MOST_EXACT = 1 << 40
"""Products of such values with weights, biases and scales stay whole numbers that float64 has."""
_POWERS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)


class Given:
    """What both sides begin with, made when one asks for it."""

    def __init__(
        self,
        original: Traced,
        sizes: Sizes,
        draw: np.random.Generator,
        multiple: int,
        divisors: Collection[fx.Node],
        computed: Collection[fx.Node],
    ) -> None:
        self._original, self._sizes, self._draw = original, sizes, draw
        self._multiple, self._divisors, self._computed = multiple, divisors, computed
        self._known: dict[fx.Node, object] = {}

    def value(self, node: fx.Node) -> object:
        """The value of a node of the original: integers for an activation, else what it computes."""
        if node not in self._known:
            self._known[node] = self._make(node)
        return _copied(self._known[node])

    def _make(self, node: fx.Node) -> object:
        if node in self._original.stored:
            return wide(self._original.stored[node])
        if node in self._computed:
            return call(node, self.value)
        found = node.meta.get("val")
        if isinstance(found, torch.Tensor) and (found.dtype in _FLOATS or node.op == "placeholder"):
            return self._random(found, node)
        if isinstance(found, tuple | list) and all(isinstance(item, torch.Tensor) for item in found):
            return [self._random(item, node) for item in found]
        if node.op == "placeholder":
            raise NotCutError(f"it reads the input {node.name!r}, which is no tensor")
        return call(node, self.value)

    def _random(self, like: torch.Tensor, node: fx.Node) -> torch.Tensor:
        shape = [concrete(size, self._sizes) for size in like.shape]
        if like.dtype not in _FLOATS:
            return torch.from_numpy(self._draw.integers(0, 2, shape)).to(like.dtype)
        if node in self._divisors:
            return torch.from_numpy(np.asarray(self._draw.choice(_POWERS, shape)))
        drawn = self._draw.integers(-_LARGEST, _LARGEST, shape, endpoint=True) * self._multiple
        return torch.from_numpy(np.asarray(drawn, np.float64))


def symbols(program: ExportedProgram) -> dict[str, tuple[int, int]]:
    """The symbols of a program, each with the least and the greatest size."""
    found: dict[str, tuple[int, int]] = {}
    for symbol, allowed in program.range_constraints.items():
        low = int(allowed.lower) if allowed.lower > 1 else 1
        found[str(symbol)] = low, int(allowed.upper) if allowed.upper < _MOST else _MOST
    return found


def concrete(size: int | torch.SymInt, sizes: Sizes) -> int:
    """A size of a value, at some sizes of the symbols."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    known = {symbol: sizes[str(symbol)] for symbol in expression.free_symbols if str(symbol) in sizes}
    if len(known) < len(expression.free_symbols):
        raise NotCutError(f"was not run: the size {expression} depends on data")
    return int(expression.subs(known))


def multiple_for(nodes: Iterable[fx.Node], sizes: Sizes) -> int:
    """What whole numbers have to be multiples of to be whole behind all the averages on a way through the nodes."""
    needed: dict[fx.Node, int] = {}
    for node in nodes:
        needed[node] = math.lcm(*(needed.get(read, 1) for read in all_reads(node))) * _divided_by(node, sizes)
    needed_by_all = math.lcm(*needed.values())
    return needed_by_all if needed_by_all <= _MOST_EXACT else 1


def _divided_by(node: fx.Node, sizes: Sizes) -> int:
    name = operator_name(node)
    if name in _AVERAGES:
        given = arguments(node)
        if given.get("divisor_override"):
            return int(cast(int, given["divisor_override"]))
        kernel = [int(size) for size in cast(Iterable[int], given.get("kernel_size"))]
        padded = any(cast(Iterable[int], given.get("padding") or ()))
        if given.get("ceil_mode") or (padded and not given.get("count_include_pad")):
            return math.prod(math.lcm(*range(1, size + 1)) for size in kernel)
        return math.prod(kernel)
    source, target = (_fake(read) for read in (next(all_reads(node), node), node))
    if name not in _MEANS or source is None or target is None:
        return 1
    before, after = (math.prod(concrete(size, sizes) for size in fake.shape) for fake in (source, target))
    return max(1, before // max(1, after))


def _fake(node: fx.Node) -> torch.Tensor | None:
    found = node.meta.get("val")
    return found if isinstance(found, torch.Tensor) else None


def call(node: fx.Node, value: Callable[[fx.Node], object]) -> object:
    """Runs one node in float64 on the CPU, whatever types and devices it names.

    Args:
        node: A call of a function.
        value: Gives what it reads.

    Raises:
        NotCutError: It runs graphs.
    """
    if isinstance(node.target, HigherOrderOperator):
        raise NotCutError(f"it is inside of {display_name(node)} {node.name!r}")

    def argument(given: fx.node.Argument) -> fx.node.Argument:
        if isinstance(given, fx.Node):
            return cast(fx.node.Argument, value(given))
        if isinstance(given, torch.device):
            return torch.device("cpu")
        return torch.float64 if isinstance(given, torch.dtype) and given in _FLOATS else given

    args = cast(Iterable[object], fx.node.map_aggregate(node.args, argument))
    kwargs = cast(Mapping[str, object], fx.node.map_aggregate(node.kwargs, argument))
    if operator_name(node) == "_assert_tensor_metadata":
        return None
    # What is fed lies in memory in its own order, of which not everything can be seen in another shape.
    target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    with torch.no_grad():
        return cast(Callable[..., object], target)(*args, **kwargs)


def wide(stored: object) -> object:
    """What is stored, in float64 on the CPU."""
    if isinstance(stored, torch.Tensor):
        there = stored.detach().cpu()
        return there.to(torch.float64) if there.dtype in _FLOATS else there
    return stored


def _copied(value: object) -> object:
    """In-place operators of one side are not to change what the other reads."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [_copied(item) for item in value] if isinstance(value, list) else value
